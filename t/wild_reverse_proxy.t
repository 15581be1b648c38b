# A configuration as it is found: another nginx in front passes everything on.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;
use PushStream::WebSocket;

only_over_http1 'a proxy holds back a head by itself';

with_nginx <<'CONF', sub ($nginx) {
%%MAIN%%
events { worker_connections 1024; }
http {
    %%HTTP%%
    push_stream_shared_memory_size 16m;

    map $http_upgrade $connection_upgrade { default upgrade; "" ""; }

    server {
        listen 127.0.0.1:%%PORT%%;

        location /push/ {
            proxy_pass          http://127.0.0.1:%%PORT%%/;
            proxy_http_version  1.1;
            proxy_buffering     off;
            proxy_read_timeout  1h;
            proxy_set_header    Host $host;
            proxy_set_header    Upgrade $http_upgrade;
            proxy_set_header    Connection $connection_upgrade;
            proxy_set_header    X-Forwarded-For $proxy_add_x_forwarded_for;
        }
        location /buffered/ {
            proxy_pass          http://127.0.0.1:%%PORT%%/;
            proxy_http_version  1.1;
            proxy_set_header    Connection "";
        }
        location /pub { push_stream_publisher admin; push_stream_channels_path $arg_id; push_stream_store_messages on; }
        location ~ ^/ev/(.*) { push_stream_subscriber eventsource; push_stream_channels_path $1; push_stream_footer_template "bye"; }
        location ~ ^/lp/(.*) { push_stream_subscriber long-polling; push_stream_channels_path $1; push_stream_longpolling_connection_ttl 300ms; }
        location ~ ^/ws/(.*) { push_stream_subscriber websocket; push_stream_channels_path $1; push_stream_websocket_allow_publish on; }
        location /status { push_stream_channels_statistics; push_stream_channels_path $arg_id; }
    }
}
CONF
    is $nginx->post('/push/pub?id=a', 'first', 'Event-Id' => 1)->json->{stored_messages}, 1, 'publishing through the proxy';
    my $events = $nginx->subscribe('/push/ev/a', 'Last-Event-ID' => 0);
    is $events->header('Content-Type'), 'text/event-stream; charset=utf-8', 'an event stream through it';
    my $socket = PushStream::WebSocket->new($nginx, '/push/ws/a');
    ok wait_until { $nginx->figures('a')->{subscribers} == 2 }, 'and a WebSocket';
    $nginx->post('/push/pub?id=a', "message $_", 'Event-Id' => $_) for 2 .. 4;
    is_deeply [ map { $events->event->{data} } 2 .. 4 ], [ map { "message $_" } 2 .. 4 ], 'messages come at once';
    is_deeply [ map { $socket->text } 2 .. 4 ], [ map { "message $_" } 2 .. 4 ], 'on both';
    $socket->send(PushStream::WebSocket::TEXT, 'from a socket');
    is $events->event->{data}, 'from a socket', 'and from the socket';
    is $socket->text, 'from a socket', 'which hears itself';
    is $nginx->get('/push/lp/a')->status, 304, 'a poll with nothing new';
    is $nginx->get('/buffered/lp/a.b1')->body, 'message 4', 'a poll may be buffered';
    my $again = $nginx->subscribe('/push/ev/a', 'Last-Event-ID' => 3);
    is $again->event->{id}, 4, 'who comes back goes on where it was';
    $again->close;
    ok wait_until { $nginx->figures('a')->{subscribers} == 2 }, 'who leaves the proxy is gone behind it';
    $nginx->delete('/push/pub?id=a');
    is $events->event->{data}, 'Channel deleted', 'the end comes through';
    is $events->comment, 'bye', 'with its footer';
    is $socket->text, 'Channel deleted', 'for both';
    is $socket->close_payload, '', 'with a close frame';
};

done_testing;
