# A subscription counts from the moment its request is handled: within one worker in the order in which connections and
# requests came, and in any worker once its client has the response head.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;
use PushStream::WebSocket;

with_nginx <<'CONF', sub ($nginx) {
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_shared_memory_size 8m;
    push_stream_channels_path $arg_id;
    push_stream_store_messages on;

    server {
        listen 127.0.0.1:%%PORT%%;
        location /pub { push_stream_publisher; }
        location /sub { push_stream_subscriber; }
        location /ev { push_stream_subscriber eventsource; }
        location /ws { push_stream_subscriber websocket; }
        location /wait { push_stream_subscriber long-polling; }
    }
}
CONF
    my $subscribers = sub ($id) { $nginx->post("/pub?id=$id", 'x')->json->{subscribers} };
    my %missing;
    for my $n (1 .. 20) {
        for my $mode (qw(sub ev)) {
            my $stream = $nginx->subscribe("/$mode?id=$mode$n");
            $missing{$mode}++ if $subscribers->("$mode$n") != 1;
        }
        my $socket = PushStream::WebSocket->new($nginx, "/ws?id=ws$n");
        $missing{ws}++ if $subscribers->("ws$n") != 1;
    }
    is_deeply \%missing, {}, 'with the head of its answer a client is subscribed, at whatever worker';

    if ($nginx->worker_count == 1) {
        my $overtaken = 0;
        for my $n (1 .. 60) {
            my $mode = (qw(sub ev wait))[ $n % 3 ];
            my $reader = $nginx->connect;
            my $publisher = $n % 2 ? $nginx->connect : undef;
            $reader->send_request(GET => "/$mode?id=order$n");
            $publisher //= $nginx->connect;
            $overtaken++ if $publisher->request(POST => "/pub?id=order$n", body => 'x')->json->{subscribers} != 1;
        }
        is $overtaken, 0, 'within a worker no publish overtakes a subscription that was sent before, on an older connection';
    }
};

done_testing;
