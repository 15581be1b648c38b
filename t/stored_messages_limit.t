# A channel stores no more messages than configured; the oldest one makes room.

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
    push_stream_store_messages on;
    push_stream_max_messages_stored_per_channel 3;

    server {
        listen 127.0.0.1:%%PORT%%;

        location /pub { push_stream_publisher; }
        location /sub { push_stream_subscriber; }
        location /poll { push_stream_subscriber polling; }
        location /status { push_stream_channels_statistics; }
    }
}
CONF
    my %all = ('If-Modified-Since' => 'Thu, 01 Jan 1970 00:00:00 GMT');
    my $stream = $nginx->subscribe('/sub?id=a');
    my @stored = map { $nginx->post('/pub?id=a', "$_;")->json->{stored_messages} } 1 .. 10;
    is "@stored", '1 2 3 3 3 3 3 3 3 3', 'never more than three';
    is $nginx->get('/poll?id=a', %all)->body, '8;9;10;', 'the newest';
    is $stream->text_until(qr/10;/), join('', map { "$_;" } 1 .. 10), 'subscribers get all of them';
    my $zone = $nginx->figures;
    is "$zone->{published_messages} $zone->{stored_messages} $zone->{messages_in_trash}", '10 3 7', 'the others are trash';

    my $burst = $nginx->connect;
    $burst->send(join '', map { "POST /pub?id=a HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n" . sprintf '%03d;', $_ } 1 .. 200);
    $burst->response for 1 .. 200;
    is $stream->text_until(qr/200;/), join('', map { sprintf '%03d;', $_ } 1 .. 200),
        'also those that were pushed out before they were sent';
};

done_testing;
