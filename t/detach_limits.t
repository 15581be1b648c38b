# Detached connections still obey nginx's own directives, and are counted where nginx counts.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;

only_over_http1 'it keeps its requests';
use PushStream::WebSocket;

plan skip_all => 'this nginx has no stub_status' if !PushStream::Nginx->has_module('http_stub_status');

my $conf = <<'CONF';
%%MAIN%%
worker_shutdown_timeout 1s;
events {}
http {
    %%HTTP%%
    push_stream_handover off;
    push_stream_shared_memory_size 8m;
    push_stream_channels_path $arg_id;
    push_stream_drain_time 1h;

    server {
        listen 127.0.0.1:%%PORT%% sndbuf=16k;
        client_max_body_size 1m;
        client_body_buffer_size 1m;
        send_timeout 1s;
        push_stream_subscriber_queue 100m;

        location /pub { push_stream_publisher admin; }
        location /status { push_stream_channels_statistics; }
        location /stub { stub_status; }
        location /ev { push_stream_subscriber eventsource; }
        location /reset { reset_timedout_connection on; push_stream_subscriber eventsource; }
        location /ws { push_stream_subscriber websocket; lingering_timeout 3s; }
        location /always { lingering_close always; lingering_timeout 3s; push_stream_subscriber; }
    }
}
CONF

with_nginx $conf, sub ($nginx) {
    my $stub = sub {
        my ($active, $reading, $writing) = $nginx->get('/stub')->body =~ /connections: (\d+).*Reading: (\d+) Writing: (\d+)/s;
        # Without the one that asks.
        return ($active - 1) . ' ' . ($writing - 1);
    };
    my @streams = (map({ $nginx->subscribe('/ev?id=a') } 1 .. 5), PushStream::WebSocket->new($nginx, '/ws?id=a')->client);
    ok wait_until { $stub->() eq '6 6' }, 'stub_status counts them as active and writing' or diag $stub->();
    $_->close for @streams[0 .. 2];
    ok wait_until { $stub->() eq '3 3' }, 'and those that left not any more' or diag $stub->();
    $nginx->delete('/pub?id=a');
    $_->rest for @streams[3 .. 5];
    ok wait_until { $stub->() eq '0 0' }, 'nor those that were ended' or diag $stub->();

    for my $case ([ '/ev', 0 ], [ '/reset', 1 ]) {
        my ($uri, $resets) = @$case;
        my $stuck = $nginx->connect(receive_buffer => 4096);
        $stuck->send_request(GET => "$uri?id=b");
        $stuck->head;
        $nginx->post('/pub?id=b', 'x' x 500_000) for 1 .. 4;
        ok wait_until { ($nginx->figures('b')->{subscribers} // 0) == 0 }, "$uri: who takes nothing for send_timeout is cut";
        ok $nginx->wait_for_log(qr/client timed out/), 'the log says so';
        my $read = 1;
        1 while ($read = sysread $stuck->socket, my $buffer, 65536);
        is defined $read ? 0 : 1, $resets, $resets ? 'the connection was reset' : 'what was sent before can still be read';
    }

    # A client that does not close its side is waited for, but not for ever.
    my $socket = PushStream::WebSocket->new($nginx, '/ws?id=c')->client;
    my $always = $nginx->subscribe('/always?id=c');
    ok wait_until { $stub->() eq '2 2' }, 'two';
    $nginx->delete('/pub?id=c');
    $_->rest for $socket, $always;
    ok wait_until { $stub->() eq '2 0' }, 'they have ended, and their connections linger' or diag $stub->();
    ok wait_until { $stub->() eq '0 0' }, 'for lingering_timeout' or diag $stub->();

    my @old = map { $nginx->subscribe('/ev?id=d') } 1 .. 5;
    my $start = time;
    $nginx->reload;
    within time - $start, 4, 'worker_shutdown_timeout ends a worker, whatever push_stream_drain_time says';
    ok wait_until { $stub->() =~ /^0 / }, 'nobody is left';
};

done_testing;
