# A configuration as it is found: TLS and HTTP/2 for browsers, plain HTTP inside for publishers.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;
use PushStream::Http2;
use PushStream::WebSocket;

with_nginx <<'CONF', sub ($nginx) {
%%MAIN%%
events { worker_connections 1024; }
http {
    %%HTTP%%
    ssl_certificate           %%CERTIFICATE%%;
    ssl_certificate_key       %%KEY%%;
    ssl_protocols             TLSv1.2 TLSv1.3;
    ssl_session_cache         shared:tls:1m;
    ssl_session_timeout       10m;
    ssl_prefer_server_ciphers off;
    keepalive_timeout         65;
    tcp_nopush                on;
    push_stream_shared_memory_size    32m;
    push_stream_ping_message_interval 30s;

    server {
        listen 127.0.0.1:%%PORT%% ssl http2;
        http2_max_concurrent_streams 256;
        add_header Strict-Transport-Security "max-age=31536000" always;

        location ~ ^/ev/(.*) { push_stream_subscriber eventsource; push_stream_channels_path $1; push_stream_footer_template "bye"; }
        location ~ ^/lp/(.*) { push_stream_subscriber long-polling; push_stream_channels_path $1; }
        location ~ ^/ws/(.*) { push_stream_subscriber websocket; push_stream_channels_path $1; }
    }
    server {
        listen unix:%%DIR%%/publish.sock;
        location /pub { push_stream_publisher admin; push_stream_channels_path $arg_id; push_stream_store_messages on; }
        location /status { push_stream_channels_statistics; push_stream_channels_path $arg_id; }
    }
}
CONF
    my $inside = sub (@arguments) { qx{curl -s --unix-socket @{[ $nginx->dir ]}/publish.sock @{[ join ' ', map { "'$_'" } @arguments ]}} };
    my $subscribers = sub { ($inside->('http://inside/status') =~ /"subscribers": (\d+), "uptime"/)[0] };
    my @http2 = map { PushStream::Http2->new($nginx->port) } 1 .. 3;
    $_->send_request(GET => '/ev/a') for @http2;
    is $_->status, 200, 'an event stream over HTTP/2' for @http2;
    is $http2[0]->header('Strict-Transport-Security'), 'max-age=31536000', 'add_header works on streams';
    my $poll = PushStream::Http2->new($nginx->port);
    $poll->send_request(GET => '/lp/a');
    my $http1 = PushStream::Client->new($nginx->port, tls => ['http/1.1']);
    $http1->send_request(GET => '/ev/a');
    is $http1->status, 200, 'and over HTTP/1.1 on the same port';
    my $socket = PushStream::Client->new($nginx->port, tls => ['http/1.1']);
    my %handshake = PushStream::WebSocket::handshake();
    $socket->send("GET /ws/a HTTP/1.1\r\nHost: x\r\n" . join('', map { "$_: $handshake{$_}\r\n" } keys %handshake) . "\r\n");
    is $socket->status, 101, 'a WebSocket over TLS';
    ok wait_until { $subscribers->() == 6 }, 'six subscribers';
    is $inside->('--data', 'hello', 'http://inside/pub?id=a'),
        qq({"channel": "a", "published_messages": 1, "stored_messages": 1, "subscribers": 6}\r\n), 'published on the socket inside';
    is $_->event->{data}, 'hello', 'an event' for @http2, $http1;
    is $poll->response->body, 'hello', 'the answer of a poll';
    is $socket->bytes(7), "\x81\x05hello", 'a frame';
    is $poll->request(GET => '/lp/a.b1')->body, 'hello', 'the connection takes more requests';
    my $answer = PushStream::Client->new($nginx->port, tls => ['http/1.1'])->request(POST => '/pub?id=a', body => 'x');
    is $answer->status, 404, 'nobody publishes from outside';
    $inside->('-X', 'DELETE', 'http://inside/pub?id=a');
    is join('', $_->chunks_to_end), "data: Channel deleted\n\n: bye\n", 'the end, in order' for @http2, $http1;
};

done_testing;
