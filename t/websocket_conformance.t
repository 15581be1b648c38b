# WebSocket frame by frame, as RFC 6455 has it: what is legal comes back from an echo, what is not ends the connection with
# the right code. Every case is sent as a whole, frame by frame, and byte by byte.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;
use PushStream::WebSocket;

BEGIN { *frame = \&PushStream::WebSocket::frame }

use constant { CONTINUED => 0x0, TEXT => 0x1, BINARY => 0x2, CLOSE => 0x8, PING => 0x9, PONG => 0xa };

# A case: name, what the client sends (frames), what comes back (frames, each [ opcode, payload ]). If the last one is a close
# frame, the connection ends behind it.
my @cases;
my $section;
sub case ($name, $sends, @returns) { push @cases, [ "$section: $name", $sends, @returns ] }
sub closes ($code, $reason = '') { return [ CLOSE, defined $code ? pack('n', $code) . $reason : '' ] }

# Ends a case regularly, so that nothing unexpected goes unnoticed.
my @BYE = (frame(CLOSE, pack 'n', 1000));
my $BYE = closes(1000);

my $pattern = sub ($length) { substr 'The quick brown fox jumps over the lazy dog. ' x (1 + $length / 45), 0, $length };

$section = 'payload lengths (5.2)';
for my $length (1, 2, 124, 125, 126, 127, 128, 129, 65534, 65535, 65536, 65537) {
    for my $opcode (TEXT, BINARY) {
        my $payload = $pattern->($length);
        case("$length bytes, type $opcode", [ frame($opcode, $payload), @BYE ], [ $opcode, $payload ], $BYE);
    }
}
case('no bytes: no message', [ frame(TEXT, ''), frame(BINARY, ''), @BYE ], $BYE);
case('a length that needs fewer bytes', [ pack('CCn', 0x81, 0x80 | 126, 5) . 'mAsK' . ('hello' ^. 'mAsKm') ], closes(1002));
case('a longer one', [ pack('CCQ>', 0x81, 0x80 | 127, 200) . 'mAsK' . "\0" x 200 ], closes(1002));
case('a length beyond 63 bits', [ pack('CCQ>', 0x81, 0x80 | 127, 1 << 63) . 'mAsK' ], closes(1002));

$section = 'masks (5.3)';
case('of zeroes', [ frame(TEXT, 'plain', mask => "\0\0\0\0"), @BYE ], [ TEXT, 'plain' ], $BYE);
case('of ones', [ frame(TEXT, 'inverted', mask => "\xff\xff\xff\xff"), @BYE ], [ TEXT, 'inverted' ], $BYE);
case('another for each fragment',
    [ frame(TEXT, 'one', mask => 'abcd', more => 1), frame(CONTINUED, 'two', mask => 'efgh', more => 1), frame(CONTINUED, 'three', mask => 'ijkl'), @BYE ],
    [ TEXT, 'onetwothree' ], $BYE);
case('none', [ frame(TEXT, 'x', mask => undef) ], closes(1002));
case('none in a ping', [ frame(PING, 'x', mask => undef) ], closes(1002));
case('none in the second fragment', [ frame(TEXT, 'x', more => 1), frame(CONTINUED, 'y', mask => undef) ], closes(1002));

$section = 'pings and pongs (5.5.2, 5.5.3)';
for my $payload ('', 'Hello', "\x00\xff\xfe\xfd\xfc\xfb\x00\xff", "\xfe" x 125) {
    case(length($payload) . ' bytes', [ frame(PING, $payload), @BYE ], [ PONG, $payload ], $BYE);
}
case('126 bytes', [ frame(PING, 'x' x 126) ], closes(1002));
case('126 bytes of pong', [ frame(PONG, 'x' x 126) ], closes(1002));
case('ten pings', [ map({ frame(PING, "ping $_") } 1 .. 10), @BYE ], map({ [ PONG, "ping $_" ] } 1 .. 10), $BYE);
case('pongs that nobody asked for', [ frame(PONG, ''), frame(PONG, 'unasked'), frame(PING, 'asked'), frame(PONG, 'late'), @BYE ], [ PONG, 'asked' ], $BYE);

$section = 'reserved bits (5.2)';
for my $rsv (map { $_ << 4 } 1 .. 7) {
    case("$rsv in a text", [ frame(TEXT, 'x', rsv => $rsv) ], closes(1002));
    case("$rsv behind a text", [ frame(TEXT, 'first'), frame(TEXT, 'x', rsv => $rsv), frame(PING, 'never') ], [ TEXT, 'first' ], closes(1002));
    case("$rsv in a binary message", [ frame(BINARY, 'x', rsv => $rsv) ], closes(1002));
    case("$rsv in a ping", [ frame(PING, 'x', rsv => $rsv) ], closes(1002));
    case("$rsv in a close", [ frame(CLOSE, '', rsv => $rsv) ], closes(1002));
}
case('in a continuation', [ frame(TEXT, 'x', more => 1), frame(CONTINUED, 'y', rsv => 0x40) ], closes(1002));

$section = 'reserved opcodes (5.2)';
for my $opcode (3 .. 7, 11 .. 15) {
    case($opcode, [ frame($opcode, '') ], closes(1002));
    case("$opcode with a payload", [ frame($opcode, 'reserved') ], closes(1002));
    case("$opcode behind a text", [ frame(TEXT, 'first'), frame($opcode, 'x'), frame(PING, '') ], [ TEXT, 'first' ], closes(1002));
}

$section = 'fragments (5.4)';
for my $opcode (TEXT, BINARY) {
    case("two, type $opcode", [ frame($opcode, 'fragment1', more => 1), frame(CONTINUED, 'fragment2'), @BYE ], [ $opcode, 'fragment1fragment2' ], $BYE);
    case("a ping between, type $opcode",
        [ frame($opcode, 'fragment1', more => 1), frame(PING, 'ping'), frame(CONTINUED, 'fragment2'), @BYE ],
        [ PONG, 'ping' ], [ $opcode, 'fragment1fragment2' ], $BYE);
    case("a pong between, type $opcode",
        [ frame($opcode, 'fragment1', more => 1), frame(PONG, 'pong'), frame(CONTINUED, 'fragment2'), @BYE ],
        [ $opcode, 'fragment1fragment2' ], $BYE);
    case("empty ones, type $opcode",
        [ frame($opcode, '', more => 1), map({ frame(CONTINUED, '', more => 1) } 1 .. 5), frame(CONTINUED, 'middle', more => 1), frame(CONTINUED, ''), @BYE ],
        [ $opcode, 'middle' ], $BYE);
    case("a hundred with pings, type $opcode",
        [ frame($opcode, '0;', more => 1), map({ (frame(CONTINUED, "$_;", more => 1), $_ % 10 ? () : frame(PING, $_)) } 1 .. 100), frame(CONTINUED, 'end'), @BYE ],
        map({ [ PONG, $_ * 10 ] } 1 .. 10), [ $opcode, join('', map { "$_;" } 0 .. 100) . 'end' ], $BYE);
    case("a message within a message, type $opcode", [ frame($opcode, 'x', more => 1), frame($opcode, 'y') ], closes(1002));
    case("an unfinished one within, type $opcode", [ frame($opcode, 'x', more => 1), frame($opcode, 'y', more => 1) ], closes(1002));
    case("all of them empty: no message, type $opcode", [ frame($opcode, '', more => 1), frame(CONTINUED, ''), @BYE ], $BYE);
}
case('one type begun, another within', [ frame(TEXT, 'x', more => 1), frame(BINARY, 'y') ], closes(1002));
case('a ping in two', [ frame(PING, 'fragment1', more => 1), frame(CONTINUED, 'fragment2') ], closes(1002));
case('a pong in two', [ frame(PONG, 'fragment1', more => 1), frame(CONTINUED, 'fragment2') ], closes(1002));
case('a close in two', [ frame(CLOSE, pack('n', 1000), more => 1) ], closes(1002));
case('a continuation of nothing', [ frame(CONTINUED, 'x'), frame(TEXT, 'y') ], closes(1002));
case('an unfinished one', [ frame(CONTINUED, 'x', more => 1), frame(TEXT, 'y') ], closes(1002));
case('a continuation behind a whole message', [ frame(TEXT, 'whole'), frame(CONTINUED, 'x') ], [ TEXT, 'whole' ], closes(1002));
case('a continuation behind a finished one',
    [ frame(TEXT, 'a', more => 1), frame(CONTINUED, 'b'), frame(CONTINUED, 'c') ], [ TEXT, 'ab' ], closes(1002));
case('messages behind each other',
    [ frame(TEXT, 'a', more => 1), frame(CONTINUED, 'b'), frame(TEXT, 'c'), frame(BINARY, 'd', more => 1), frame(CONTINUED, 'e'), @BYE ],
    [ TEXT, 'ab' ], [ TEXT, 'c' ], [ BINARY, 'de' ], $BYE);
case('a close between: the message is given up', [ frame(TEXT, 'x', more => 1), frame(CLOSE, pack 'n', 1001) ], closes(1001));

$section = 'UTF-8 (8.1)';
my @valid = (
    'Hello', "\xc2\xa9", "\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5", "\x00", "\x7f", "\xc2\x80", "\xdf\xbf", "\xe0\xa0\x80",
    "\xed\x9f\xbf", "\xee\x80\x80", "\xef\xbf\xbd", "\xef\xbf\xbe", "\xef\xbf\xbf", "\xef\xb7\x90", "\xf0\x90\x80\x80",
    "\xf0\x9f\xbf\xbe", "\xf4\x8f\xbf\xbf", "\xf3\xb0\x80\x80", "a\xcc\x8a",
);
my @invalid = (
    # Lone continuations, and leading bytes without theirs.
    "\x80", "\xbf", "\x80\xbf", "\xc0", "\xc3", "\xc3 ", "\xe0 ", "\xe2\x82", "\xe2\x82 ", "\xf0\x9f\x98", "\xf0\x9f\x98 ", "\xe2 \x82\xac",
    # Bytes that are in no UTF-8.
    "\xfe", "\xff", "\xfe\xfe\xff\xff", "\xf5\x80\x80\x80", "\xf8\x88\x80\x80\x80", "\xfc\x84\x80\x80\x80\x80",
    # Overlong forms.
    "\xc0\xaf", "\xc1\xbf", "\xe0\x80\xaf", "\xe0\x9f\xbf", "\xf0\x80\x80\xaf", "\xf0\x8f\xbf\xbf", "\xc0\x80", "\xe0\x80\x80", "\xf0\x80\x80\x80",
    # Surrogates, and what lies beyond U+10FFFF.
    "\xed\xa0\x80", "\xed\xad\xbf", "\xed\xae\x80", "\xed\xbf\xbf", "\xed\xa0\x80\xed\xb0\x80", "\xf4\x90\x80\x80", "\xf7\xbf\xbf\xbf",
    # Among what is right.
    "fine\xed\xa0\x80fine", "\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xf4\x90\x80\x80edited", "ends \xe2\x82",
);
my $hex = sub ($bytes) { join ' ', map { sprintf '%02x', ord } split //, $bytes };
for my $text (@valid) {
    case($hex->($text), [ frame(TEXT, $text), @BYE ], [ TEXT, $text ], $BYE);
    for my $cut (1 .. length($text) - 1) {
        case($hex->($text) . " in two at $cut",
            [ frame(TEXT, substr($text, 0, $cut), more => 1), frame(PING, ''), frame(CONTINUED, substr $text, $cut), @BYE ],
            [ PONG, '' ], [ TEXT, $text ], $BYE);
    }
}
for my $text (@invalid) {
    case($hex->($text), [ frame(TEXT, $text) ], closes(1007));
    case($hex->($text) . ' one byte a fragment',
        [ map({ frame(TEXT, $_, more => 1) } substr $text, 0, 1), map({ frame(CONTINUED, $_, more => 1) } split //, substr $text, 1), frame(CONTINUED, '') ],
        closes(1007));
    case($hex->($text) . ' is nothing to a binary message', [ frame(BINARY, $text), @BYE ], [ BINARY, $text ], $BYE);
}

$section = 'closing (5.5.1, 7)';
case('without a code', [ frame(CLOSE, '') ], closes(undef));
for my $code (1000 .. 1003, 1007 .. 1011, 3000, 3999, 4000, 4999) {
    case($code, [ frame(CLOSE, pack 'n', $code) ], closes($code));
    my $reason = "\xe2\x82\xac because";
    case("$code with a reason", [ frame(CLOSE, pack('n', $code) . $reason) ], closes($code, $reason));
}
for my $code (0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535) {
    case("$code, which nobody may send", [ frame(CLOSE, pack 'n', $code) ], closes(1002));
}
case('half a code', [ frame(CLOSE, 'x') ], closes(1002));
case('the longest reason', [ frame(CLOSE, pack('n', 1000) . 'r' x 123) ], closes(1000, 'r' x 123));
case('one byte more', [ frame(CLOSE, pack('n', 1000) . 'r' x 124) ], closes(1002));
case('a reason that is no UTF-8', [ frame(CLOSE, pack('n', 1000) . "\xce\xba\xf4\x90\x80\x80") ], closes(1007));
case('a reason that ends within a character', [ frame(CLOSE, pack('n', 1000) . "\xe2\x82") ], closes(1007));
case('what follows is not looked at', [ frame(CLOSE, pack 'n', 1000), frame(PING, 'late'), frame(TEXT, "\xff"), frame(CLOSE, '') ], closes(1000));
case('messages before', [ frame(TEXT, 'a'), frame(PING, 'b'), @BYE ], [ TEXT, 'a' ], [ PONG, 'b' ], $BYE);

my $channel = 0;
# True if what comes back is what must: the pongs, the messages and the close frame, each in order. An echo is published
# first, so pongs may overtake it, and whoever then breaks the rules may be cut off before it.
sub run ($nginx, $case, $how, $send) {
    my ($name, $sends, @returns) = @$case;
    my $socket = PushStream::WebSocket->new($nginx, '/echo?id=c' . ++$channel);
    my $close = $returns[-1][0] == CLOSE ? pop @returns : undef;
    my $broken = $close && $close->[1] =~ /^\x03[\xea-\xef]/;
    my @frames;
    my $ended = eval {
        my @before = @$sends;
        # Who says goodbye waits for what is still to come.
        my @goodbye = $before[-1] eq $BYE[0] ? pop @before : ();
        $send->($socket, @before);
        if (!$broken) {
            push @frames, [ $socket->next_frame ] while @frames < @returns;
            $send->($socket, @goodbye) if @goodbye;
        }
        push @frames, [ $socket->next_frame ] while !@frames || $frames[-1][0] != CLOSE;
        die "something came behind the close frame\n" if length $socket->client->rest;
        1;
    };
    my $shown = sub ($kind, @frames) {
        my @chosen = grep { ($_->[0] == PONG ? 'pongs' : $_->[0] == CLOSE ? 'close' : 'messages') eq $kind } @frames;
        return join ' ', map { $_->[0] . ':' . (length $_->[1] > 60 ? length($_->[1]) . ':' . unpack('%32C*', $_->[1]) : $hex->($_->[1])) } @chosen;
    };
    my @wrong = grep { $shown->($_, @frames) ne $shown->($_, @returns, $close // ()) } qw(pongs messages close);
    @wrong = grep { $_ ne 'messages' } @wrong if $broken && !$shown->('messages', @frames);
    return 1 if $ended && !@wrong;
    diag "$name, sent $how: ", $@ || '', map { "\n  $_: wanted " . $shown->($_, @returns, $close // ()) . "\n  $_: got    " . $shown->($_, @frames) } @wrong;
    return 0;
}

my %ways = (
    'as a whole' => sub ($socket, @frames) { $socket->send_bytes(join '', @frames) },
    'frame by frame' => sub ($socket, @frames) { $socket->send_bytes($_) for @frames },
    'byte by byte' => sub ($socket, @frames) { $socket->send_bytes($_) for split //, join '', @frames },
);

with_nginx <<'CONF', sub ($nginx) {
%%MAIN%%
events { worker_connections 4096; }
http {
    %%HTTP%%
    access_log off;
    push_stream_shared_memory_size 64m;
    push_stream_channels_path $arg_id;

    server {
        listen 127.0.0.1:%%PORT%%;

        location /echo {
            push_stream_subscriber websocket;
            push_stream_websocket_allow_publish on;
            push_stream_websocket_strict on;
            push_stream_websocket_binary on;
            push_stream_websocket_max_message_size 16m;
            push_stream_subscriber_queue 64m;
        }
        location /status { push_stream_channels_statistics; }
    }
}
CONF
    for my $how (sort keys %ways) {
        my $send = $ways{$how};
        my @chosen = grep { $how ne 'byte by byte' || length(join '', @{ $_->[1] }) < 1000 } @cases;
        my @failed = grep { !run($nginx, $_, $how, $send) } @chosen;
        is scalar @failed, 0, @chosen . " cases, sent $how";
    }

    subtest 'large messages' => sub {
        for my $opcode (TEXT, BINARY) {
            my $socket = PushStream::WebSocket->new($nginx, "/echo?id=large$opcode");
            for my $length (256 * 1024, 1024 * 1024, 4 * 1024 * 1024) {
                my $payload = $pattern->($length);
                $socket->send($opcode, $payload);
                my ($type, $echo) = $socket->next_frame(30);
                ok $type == $opcode && $echo eq $payload, "$length bytes, type $opcode";
            }
            for my $size (64, 1024, 16 * 1024, 256 * 1024) {
                my $payload = $pattern->(512 * 1024);
                my $bytes = '';
                for (my $at = 0; $at < length $payload; $at += $size) {
                    $bytes .= frame($at ? CONTINUED : $opcode, substr($payload, $at, $size), more => $at + $size < length $payload);
                }
                $socket->send_bytes($bytes);
                my ($type, $echo) = $socket->next_frame(30);
                ok $type == $opcode && $echo eq $payload, "half a megabyte in fragments of $size bytes, type $opcode";
            }
        }
    };
    my $limit = PushStream::WebSocket->new($nginx, '/echo?id=limit');
    $limit->send_bytes(pack('CCQ>', 0x82, 0xff, 16 * 1024 * 1024 + 1) . 'mAsK');
    is $limit->close_payload, pack('n', 1009), 'a frame over the limit is refused before it comes';

    ok wait_until { $nginx->figures->{subscribers} <= 2 }, 'nobody else is left';
};

done_testing;
