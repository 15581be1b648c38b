# Long polling uses one connection for all its requests, and loses nothing between them.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;

with_nginx <<'CONF', sub ($nginx) {
%%MAIN%%
events {}
http {
    %%HTTP%%
    keepalive_requests 10000;
    push_stream_shared_memory_size 4m;
    push_stream_channels_path $arg_id;

    server {
        listen 127.0.0.1:%%PORT%%;

        location /pub { push_stream_publisher; }
        location /store { push_stream_publisher; push_stream_store_messages on; }
        location /wait { push_stream_subscriber long-polling; }
        location /short { push_stream_subscriber long-polling; push_stream_longpolling_connection_ttl 20ms; }
    }
}
CONF
    my $client = $nginx->connect;
    my $publisher = $nginx->connect;

    # Nothing is stored, so a message reaches only who is waiting.
    my @wrong;
    for my $n (1 .. 500) {
        $client->send_request(GET => '/wait?id=a');
        wait_until { $publisher->request(POST => '/pub?id=a', body => "message $n")->json->{subscribers} } or last;
        my $answer = $client->response;
        push @wrong, $n if $answer->status != 200 || $answer->body ne "message $n";
    }
    is "@wrong", '', '500 requests on one connection, each answered by its message';

    # Stored messages, and a client that always asks behind the last one it has.
    my %position = ('If-Modified-Since' => 'Thu, 01 Jan 1970 00:00:00 GMT');
    my ($sent, $read) = (0, '');
    while ($sent < 300) {
        $publisher->request(POST => '/store?id=b', body => "<$sent>") for 1 .. 1 + $sent++ % 3;
        my $answer = $client->request(GET => '/wait?id=b', headers => \%position);
        $read .= $answer->body;
        %position = ('If-Modified-Since' => $answer->header('Last-Modified'), 'If-None-Match' => $answer->header('Etag'));
    }
    is $read, join('', map { "<$_>" x (1 + ($_ - 1) % 3) } 1 .. 300), 'no message twice, none missing';

    my @statuses = map { $client->request(GET => '/short?id=c')->status } 1 .. 20;
    is "@statuses", join(' ', (304) x 20), 'the connection stays after the time limit too';
};

done_testing;
