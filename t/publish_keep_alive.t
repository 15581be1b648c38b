# Publishers keep their connections: hundreds of requests on one, pipelined or not.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;

with_nginx <<'CONF', sub ($nginx) {
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_shared_memory_size 4m;
    push_stream_channels_path $arg_id;
    keepalive_requests 10000;

    server {
        listen 127.0.0.1:%%PORT%%;

        location /pub { push_stream_publisher; }
        location /sub { push_stream_subscriber; }
    }
}
CONF
    my $stream = $nginx->subscribe('/sub?id=a');
    my $publisher = $nginx->connect;
    my @wrong = grep { $publisher->request(POST => '/pub?id=a', body => "message $_")->status != 200 } 1 .. 500;
    is "@wrong", '', '500 publishes on one connection';
    my $expected = join '', map { "message $_" } 1 .. 500;
    is $stream->text_until(qr/message 500/), $expected, 'arrive in order, none missing';

    my $pipelined = join '', map { "POST /pub?id=a HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n" . sprintf '%04d;', $_ } 1 .. 200;
    $publisher->send($pipelined);
    @wrong = grep { $publisher->response->json->{published_messages} != 500 + $_ } 1 .. 200;
    is "@wrong", '', '200 publishes without waiting for answers';
    is $stream->text_until(qr/0200;/), join('', map { sprintf '%04d;', $_ } 1 .. 200), 'arrive in order too';

    my $old = $nginx->open(POST => '/pub?id=a', version => '1.0', body => 'from long ago');
    is $old->response->status, 200, 'HTTP/1.0';
    is $stream->chunk, 'from long ago', 'is understood';
};

done_testing;
