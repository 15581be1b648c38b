# WebSocket: the handshake, its refusals, and messages to the client.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;
use PushStream::WebSocket;

my $cache_control = 'no-cache, no-store, must-revalidate';

with_nginx <<'CONF', sub ($nginx) {
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_handover off;
    push_stream_shared_memory_size 16m;
    push_stream_channels_path $arg_id;
    push_stream_store_messages on;
    push_stream_max_channel_id_length 10;
    push_stream_authorized_channels_only off;

    server {
        listen 127.0.0.1:%%PORT%%;
        client_max_body_size 8m;

        location /pub { push_stream_publisher admin; }
        location /status { push_stream_channels_statistics; }
        location /ws { push_stream_subscriber websocket; }
        location /known { push_stream_subscriber websocket; push_stream_authorized_channels_only on; }
        location /framed {
            push_stream_subscriber websocket;
            push_stream_header_template "hello";
            push_stream_message_template '{"id":~id~,"channel":"~channel~","text":"~text~"}';
            push_stream_footer_template "bye";
            if ($arg_other) { push_stream_store_messages off; }
        }
        location /short { push_stream_subscriber websocket; push_stream_footer_template "bye"; push_stream_subscriber_connection_ttl 300ms; }
        location /ping { push_stream_subscriber websocket; push_stream_ping_message_interval 200ms; }
        location /binary { push_stream_subscriber websocket; push_stream_websocket_binary on; push_stream_message_template "[~text~]"; }
    }
}
CONF
    # --- the handshake ---
    my $socket = PushStream::WebSocket->new($nginx, '/ws?id=a');
    my $answer = $socket->answer;
    is $answer->header('Sec-WebSocket-Accept'), PushStream::WebSocket::ACCEPT, 'the key is answered';
    is $answer->header('Upgrade'), 'WebSocket', 'the protocol is named';
    is $answer->header('Connection'), 'Upgrade', 'the connection is upgraded';
    is $answer->header('Cache-Control'), $cache_control, 'nothing is cached';
    is $answer->header($_), undef, "no $_" for qw(Date Server Sec-WebSocket-Protocol Sec-WebSocket-Extensions);
    is $nginx->figures('a')->{subscribers}, 1, 'it counts as soon as it has its answer';

    my %handshake = PushStream::WebSocket::handshake();
    for my $missing (sort keys %handshake) {
        my %others = %handshake;
        delete $others{$missing};
        my $refused = $nginx->get('/ws?id=a', %others);
        is $refused->status, 400, "without $missing";
        like $refused->header('X-Nginx-PushStream-Explain'), qr/^Don't have at least one of the mandatory headers: Connection, Upgrade, Sec-WebSocket-Key and Sec-WebSocket-Version$/, 'and why';
    }
    # --- RFC 6455 section 4.2.1 ---
    for my $wrong (
        [ Upgrade => 'h2c', 'Header Upgrade must name websocket.' ],
        [ Upgrade => 'websockets', 'Header Upgrade must name websocket.' ],
        [ Connection => 'close', 'Header Connection must name Upgrade.' ],
        [ Connection => 'keep-alive', 'Header Connection must name Upgrade.' ],
        [ 'Sec-WebSocket-Key' => 'x', 'Header Sec-WebSocket-Key must be 16 bytes in base64.' ],
        [ 'Sec-WebSocket-Key' => 'dGhlIHNhbXBsZSBub25jZSBsb25nZXI=', 'Header Sec-WebSocket-Key must be 16 bytes in base64.' ],
        [ 'Sec-WebSocket-Key' => 'dGhlIHNhbXBsZSBub25jZQ==, dGhlIHNhbXBsZSBub25jZQ==', 'Header Sec-WebSocket-Key must be 16 bytes in base64.' ],
    ) {
        my ($name, $value, $explain) = @$wrong;
        my $refused = $nginx->get('/ws?id=a', %handshake, $name => $value);
        is $refused->status, 400, "$name: $value";
        is $refused->explain, $explain, 'and why';
    }
    for my $right ([ Upgrade => 'WEBSOCKET' ], [ Upgrade => 'h2c, websocket' ], [ Connection => 'keep-alive, upgrade' ]) {
        my ($name, $value) = @$right;
        is(PushStream::WebSocket->new($nginx, '/ws?id=a', headers => { $name => $value })->answer->status, 101, "$name: $value");
    }
    my $old = $nginx->get('/ws?id=a', %handshake, 'Sec-WebSocket-Version' => 7);
    is $old->status, 400, 'an old version';
    is $old->header('Sec-WebSocket-Version'), '8, 13', 'what is spoken';
    is $old->header('X-Nginx-PushStream-Explain'), 'Version not supported. Supported versions: 8, 13', 'and why';
    my $post = $nginx->post('/ws?id=a', 'x');
    is $post->status, 405, 'another method';
    is $post->header('Allow'), 'GET', 'is not allowed';
    is $post->header('Cache-Control'), undef, 'and is refused before anything else';
    is(PushStream::WebSocket->new($nginx, '/ws?id=a', headers => { 'Sec-WebSocket-Version' => 8 })->answer->status, 101, 'version 8');

    # --- refusals come as close frames ---
    my $unknown = PushStream::WebSocket->new($nginx, '/known?id=nobody');
    is $unknown->close_payload, qq{\x03\xf0{"http_status": 403, "explain":"Subscriber could not create channels."}}, 'not authorized';
    my $long = PushStream::WebSocket->new($nginx, '/ws?id=12345678901');
    is $long->close_payload, qq{\x03\xf0{"http_status": 400, "explain":"Channel id is too large."}}, 'too long';
    is(PushStream::WebSocket->new($nginx, '/ws')->client->rest, '', 'no channel: closed without a frame');
    is_deeply $nginx->figures('nobody'), {}, 'nothing came into being';

    # --- messages ---
    $nginx->post('/pub?id=a', 'first');
    is $socket->text, 'first', 'a message is a text frame';
    for my $length (0, 1, 125, 126, 65535, 65536, 4 * 1024 * 1024) {
        next if !$length;
        $nginx->post('/pub?id=a', 'x' x $length);
        is length($socket->text), $length, "$length bytes";
    }
    $nginx->post('/pub?id=a', $_) for 1 .. 20;
    is_deeply [ map { $socket->text } 1 .. 20 ], [ 1 .. 20 ], 'in order';
    my $latin = "caf\xe9";
    $nginx->post('/pub?id=a', $latin);
    is $socket->text, $latin, 'whatever bytes it holds';
    my $binary = PushStream::WebSocket->new($nginx, '/binary?id=a');
    $nginx->post('/pub?id=a', $latin);
    is_deeply [ $binary->next_frame ], [ PushStream::WebSocket::BINARY, $latin ], 'a binary frame where that is on, without template';
    $nginx->post('/pub?id=a', 'plain');
    is $binary->text, '[plain]', 'and texts as ever';

    my $framed = PushStream::WebSocket->new($nginx, '/framed?id=b');
    is $framed->text, 'hello', 'a header';
    $nginx->post('/pub?id=b', 'x');
    is $framed->text, '{"id":1,"channel":"b","text":"x"}', 'through the template';
    my $again = PushStream::WebSocket->new($nginx, '/framed?id=b.b1/a.b2&other=1');
    is $again->text, 'hello', 'framed once, also inside of an if';
    is_deeply [ map { $again->text } 1 .. 3 ],
        [ '{"id":1,"channel":"b","text":"x"}', map({ my $n = $_; '{"id":' . $n->[0] . ',"channel":"a","text":"' . $n->[1] . '"}' } [ 29, $latin ], [ 30, 'plain' ]) ],
        'old messages channel by channel';

    # --- ends ---
    $nginx->delete('/pub?id=b');
    is $framed->text, '{"id":-2,"channel":"b","text":"Channel deleted"}', 'the notice of a deletion';
    is $framed->text, 'bye', 'the footer';
    is $framed->close_payload, '', 'and the end, with its last channel';
    is $again->text, '{"id":-2,"channel":"b","text":"Channel deleted"}', 'who has another channel';
    $nginx->post('/pub?id=a', 'on');
    is $again->text, '{"id":31,"channel":"a","text":"on"}', 'goes on with that';

    my $short = PushStream::WebSocket->new($nginx, '/short?id=a');
    is $short->text, 'bye', 'a time limit ends with the footer';
    is $short->close_payload, '', 'and a close frame';

    # --- pings ---
    my $pinged = PushStream::WebSocket->new($nginx, '/ping?id=c');
    for (1 .. 6) {
        is_deeply [ $pinged->next_frame ], [ PushStream::WebSocket::PING, '' ], 'who answers pings gets more';
        $pinged->send(PushStream::WebSocket::PONG, '');
    }
    my $dead = PushStream::WebSocket->new($nginx, '/ping?id=d');
    like $dead->client->rest(3), qr/^(?:\x89\x00){2,3}$/, 'who answers none for two intervals is cut';
    ok wait_until { $nginx->figures('d')->{subscribers} == 0 }, 'and gone';

    # --- the end of the worker ---
    my $last = PushStream::WebSocket->new($nginx, '/framed?id=d');
    is $last->text, 'hello', 'one more';
    $nginx->reload;
    is $last->text, 'bye', 'a reload ends with the footer';
    is $last->close_payload, '', 'and a close frame';
};

done_testing;
