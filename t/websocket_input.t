# What WebSocket clients send: publishing, pings, closes, fragments, and everything that is wrong with them.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;
use PushStream::WebSocket;

BEGIN { *frame = \&PushStream::WebSocket::frame }
my ($TEXT, $BINARY, $CLOSE, $PING, $PONG) = (0x1, 0x2, 0x8, 0x9, 0xa);

with_nginx <<'CONF', sub ($nginx) {
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_shared_memory_size 32m;
    push_stream_channels_path $arg_id;
    push_stream_store_messages on;
    push_stream_events_channel_id events;
    push_stream_allow_connections_to_events_channel on;

    server {
        listen 127.0.0.1:%%PORT%%;

        location /status { push_stream_channels_statistics; }
        location /ws { push_stream_subscriber websocket; push_stream_websocket_allow_publish on; }
        location /listen { push_stream_subscriber websocket; push_stream_footer_template "bye"; }
        location /strict { push_stream_subscriber websocket; push_stream_websocket_strict on; push_stream_websocket_allow_publish on; }
        location /small { push_stream_subscriber websocket; push_stream_websocket_max_message_size 1k; push_stream_websocket_allow_publish on; }
        location /binary { push_stream_subscriber websocket; push_stream_websocket_binary on; push_stream_websocket_allow_publish on; }
    }
}
CONF
    my $open = sub ($uri, %options) { PushStream::WebSocket->new($nginx, $uri, %options) };

    # --- publishing ---
    my $socket = $open->('/ws?id=a/b');
    my $other = $open->('/listen?id=b');
    $socket->send($TEXT, 'hello');
    is_deeply [ map { $socket->text } 1, 2 ], [ 'hello', 'hello' ], 'to every channel of the connection, the sender included';
    is $other->text, 'hello', 'and everybody else';
    is $nginx->figures('a')->{stored_messages}, 1, 'stored as the location says';
    $socket->send($TEXT, '');
    $socket->send($TEXT, 'unmasked', mask => undef);
    is $socket->text, 'unmasked', 'a mask is not asked for, and an empty text is nothing' for 1, 2;
    $other->send($TEXT, 'nobody asked');
    my $with_events = $open->('/ws?id=events/c');
    $with_events->send($TEXT, 'not an event');
    ok wait_until { $nginx->figures('c')->{published_messages} == 1 }, 'it is published';
    is $nginx->figures('b')->{published_messages}, 2, 'but not where publishing is off';
    my $events = $nginx->figures('events');
    $with_events->send($TEXT, 'again');
    ok wait_until { $nginx->figures('c')->{published_messages} == 2 }, 'again';
    is_deeply $nginx->figures('events'), $events, 'the events channel is left out';

    # --- many frames, cut anywhere ---
    my $fast = $open->('/ws?id=d', more => frame($TEXT, 'with the handshake') . substr(frame($TEXT, 'cut'), 0, 3));
    is $fast->text, 'with the handshake', 'bytes that came with the handshake are frames';
    $fast->send_bytes(substr(frame($TEXT, 'cut'), 3) . join '', map { frame($TEXT, $_) } 1 .. 50);
    is_deeply [ map { $fast->text } 0 .. 50 ], [ 'cut', 1 .. 50 ], 'back to back';
    for my $byte (split //, frame($TEXT, 'byte by byte')) {
        $fast->send_bytes($byte);
        sleep 0.002;
    }
    is $fast->text, 'byte by byte', 'slowly';
    my $big = 'y' x (4 * 1024 * 1024);
    $fast->send($TEXT, $big);
    ok $fast->text(20) eq $big, 'four megabytes';
    $fast->send_bytes(frame($TEXT, 'frag', more => 1) . frame($PING, 'in between') . frame(0, 'men', more => 1) . frame(0, ''));
    is_deeply [ $fast->next_frame ], [ $PONG, 'in between' ], 'a control frame between fragments';
    is $fast->text, 'fragmen', 'fragments are put together, an empty one ends them';
    my $euro = "\xe2\x82\xac";
    $fast->send_bytes(frame($TEXT, substr($euro, 0, 1), more => 1) . frame(0, substr $euro, 1));
    is $fast->text, $euro, 'a character in two fragments';

    # --- pings and closes ---
    for my $payload ('', 'Hello', 'z' x 125) {
        $fast->send($PING, $payload);
        is_deeply [ $fast->next_frame ], [ $PONG, $payload ], 'a pong with the same payload';
    }
    $fast->send($PONG, 'unasked');
    ok $fast->client->is_quiet, 'pongs need no answer';
    for my $payload ('', pack('n', 1000), pack('n', 4321) . 'reason') {
        my $leaving = $open->('/listen?id=leaving');
        $leaving->send($CLOSE, $payload);
        my ($opcode, $answer) = $leaving->next_frame;
        is_deeply [ $opcode, $answer ], [ $CLOSE, $payload ], 'a close is answered in kind, its reason included';
        is $nginx->figures('leaving')->{subscribers}, 0, 'and the client is gone by then';
        $leaving->send_bytes("GET /status HTTP/1.1\r\nHost: x\r\n\r\n");
        is $leaving->client->rest, '', 'what follows is no request';
    }

    # --- what is wrong ---
    my %wrong = (
        'a reserved bit' => [ frame($TEXT, 'x', rsv => 0x40), 1002 ],
        'an unknown opcode' => [ frame(0x3, 'x'), 1002 ],
        'a long ping' => [ frame($PING, 'x' x 126), 1002 ],
        'a ping in fragments' => [ frame($PING, 'x', more => 1), 1002 ],
        'a continuation of nothing' => [ frame(0, 'x'), 1002 ],
        'a text within a text' => [ frame($TEXT, 'x', more => 1) . frame($TEXT, 'x'), 1002 ],
        'half a close code' => [ frame($CLOSE, 'x'), 1002 ],
        'a close code that may not be sent' => [ frame($CLOSE, pack 'n', 1005), 1002 ],
        'text that is not UTF-8' => [ frame($TEXT, "\xff"), 1007 ],
        'text that ends within a character' => [ frame($TEXT, substr $euro, 0, 2), 1007 ],
        'a binary message' => [ frame($BINARY, 'x'), undef ],
        'an announced gigabyte' => [ pack('CCQ>', 0x81, 0xff, 1 << 30) . 'mask', 1009 ],
    );
    for my $what (sort keys %wrong) {
        my ($bytes, $code) = $wrong{$what}->@*;
        my $bad = $open->('/ws?id=wrong');
        $bad->send_bytes($bytes);
        is $bad->close_payload, defined $code ? pack('n', $code) : '', "$what: " . ($code // 'closed');
    }
    is $nginx->figures('wrong')->{published_messages}, 0, 'nothing of that was published';
    my $strict = $open->('/strict?id=s');
    $strict->send($TEXT, 'masked');
    is $strict->text, 'masked', 'strict: masked frames are taken';
    $strict->send($TEXT, 'x', mask => undef);
    is $strict->close_payload, pack('n', 1002), 'others are not';
    my $small = $open->('/small?id=s');
    $small->send($TEXT, 'x' x 1024);
    is length $small->text, 1024, 'up to the limit';
    $small->send_bytes(frame($TEXT, 'x' x 1000, more => 1) . frame(0, 'x' x 25));
    is $small->close_payload, pack('n', 1009), 'not above, fragments added up';
    my $binary = $open->('/binary?id=bin');
    $binary->send($BINARY, "\x00\xff");
    is_deeply [ $binary->next_frame ], [ $BINARY, "\x00\xff" ], 'binary messages where they are on';

    # --- who goes without a word ---
    my $gone = $open->('/ws?id=gone');
    $gone->send_bytes(substr frame($TEXT, 'never finished'), 0, 9);
    ok wait_until { $nginx->figures('gone')->{subscribers} == 1 }, 'it is there';
    close $gone->client->socket;
    ok wait_until { $nginx->figures('gone')->{subscribers} == 0 }, 'it is gone';

    # --- a client that pings and never reads ---
    my $flood = $open->('/ws?id=flood');
    my $sent = eval {
        local $SIG{ALRM} = sub { die "time\n" };
        alarm 10;
        $flood->send_bytes(frame($PING, 'p' x 100) x 5000) for 1 .. 60;
        alarm 0;
        1;
    };
    alarm 0;
    ok !$sent, 'is cut, or not read from, before it fills the memory';
};

done_testing;
