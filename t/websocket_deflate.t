# permessage-deflate (RFC 7692): what is agreed on, messages that are compressed once for all readers, and compressed
# messages of clients.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;
use PushStream::WebSocket;

BEGIN { *frame = \&PushStream::WebSocket::frame; *deflated = \&PushStream::WebSocket::deflated }
my ($TEXT, $BINARY, $CLOSE, $PING, $PONG, $RSV1) = (0x1, 0x2, 0x8, 0x9, 0xa, 0x40);
my $OFFER = 'permessage-deflate; client_max_window_bits';

my $conf = <<'CONF';
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_shared_memory_size 32m;
    push_stream_channels_path $arg_id;
    push_stream_store_messages on;
    push_stream_websocket_deflate on;
    push_stream_websocket_binary on;
    keepalive_requests 100000;

    server {
        listen 127.0.0.1:%%PORT%%;

        location /pub { push_stream_publisher admin; }
        location /ws { push_stream_subscriber websocket; push_stream_header_template "head"; push_stream_footer_template "bye"; }
        location /attached { push_stream_subscriber websocket; push_stream_detach off; push_stream_footer_template "bye"; }
        location /alone { push_stream_subscriber websocket; push_stream_compress_context message; }
        location /ping { push_stream_subscriber websocket; push_stream_ping_message_interval 1s; }
        location /off { push_stream_subscriber websocket; push_stream_websocket_deflate off; push_stream_websocket_allow_publish on; }
        location /echo {
            push_stream_subscriber websocket;
            push_stream_websocket_allow_publish on;
            push_stream_websocket_max_message_size 200k;
            push_stream_store_messages off;
        }
        location /skip { push_stream_subscriber websocket; push_stream_slow_reader skip; push_stream_subscriber_queue 64k; }
        location /status { push_stream_channels_statistics; }
        location /metrics { push_stream_channels_statistics; push_stream_statistics_format prometheus; }
    }
}
CONF

sub post_text ($n) {
    my $noise = $n * 2654435761 % 2**32;
    return sprintf '{"id":%d,"author":"reader%d","body":"It is not quite clear to me what %x is about, but %d agree","likes":%d}',
        $n, $noise % 997, $noise, $noise % 89, $noise % 13;
}

my $seed = 1;
# Publishes over one connection: hands are shaken once.
sub publisher ($nginx) {
    my $client = $nginx->connect;
    return sub ($uri, $body) { $client->request(POST => $uri, body => $body)->status == 200 or die "not published to $uri" };
}

sub noise ($length) {
    return pack 'L*', map { $seed = ($seed * 1103515245 + 12345) % 2**32 } 1 .. $length / 4;
}

with_nginx $conf, sub ($nginx) {
    my $post = publisher($nginx);
    my $open = sub ($uri, $offer = $OFFER, %options) {
        return PushStream::WebSocket->new($nginx, $uri, headers => { 'Sec-WebSocket-Extensions' => $offer }, %options);
    };
    my $metric = sub ($name) { $nginx->get('/metrics')->body =~ /^\Q$name\E (\S+)/m ? $1 : undef };
    my $agreed = sub ($socket) { $socket->answer->header('Sec-WebSocket-Extensions') };

    # --- what is agreed on ---
    my $base = 'permessage-deflate; client_no_context_takeover';
    for (
        [ $OFFER, $base ],
        [ 'permessage-deflate; server_no_context_takeover', "$base; server_no_context_takeover" ],
        [ 'permessage-deflate; server_max_window_bits=10', "$base; server_max_window_bits=10" ],
        [ 'permessage-deflate; client_max_window_bits=9; client_no_context_takeover', $base ],
        [ 'x-webkit-deflate-frame, permessage-deflate; server_max_window_bits=8, permessage-deflate; server_max_window_bits=15',
            "$base; server_max_window_bits=15" ],
        [ 'permessage-deflate; server_max_window_bits', undef ],
        [ 'permessage-deflate; server_max_window_bits=8', undef ],
        [ 'permessage-deflate; mine', undef ],
        [ 'permessage-deflate; client_max_window_bits=99', undef ],
        [ 'x-webkit-deflate-frame', undef ],
        [ ';;=,"', undef ],
    ) {
        my ($offer, $answer) = @$_;
        is $agreed->($open->('/ws?id=n', $offer)), $answer, "answer to $offer";
    }
    is $agreed->($open->('/off?id=n')), undef, 'off, nothing is';
    is $agreed->(PushStream::WebSocket->new($nginx, '/ws?id=n')), undef, 'nor if it is not offered';
    is $agreed->($open->('/alone?id=n')), "$base; server_no_context_takeover", 'without a common context, the client is told';

    # --- one compression for all ---
    my @kinds = ($OFFER, map({"permessage-deflate; server_max_window_bits=$_"} 9 .. 15), 'permessage-deflate; server_no_context_takeover');
    my @readers = ($open->('/ws?id=a'), map({ $open->('/ws?id=a', $_) } @kinds));
    is $_->text, 'head', 'the header template' for @readers;
    push @readers, $open->('/attached?id=a'), $open->('/alone?id=a'), $open->('/off?id=a'), PushStream::WebSocket->new($nginx, '/off?id=a');
    my $wrong = 0;
    for my $n (1 .. 60) {
        my $text = post_text($n);
        $post->('/pub?id=a', $text);
        $wrong += $_->text ne $text for @readers;
        push @readers, $open->('/attached?id=a') if $n == 20;
    }
    is $wrong, 0, 'all read each message at once, whatever they agreed on';
    my ($wire, $length) = $readers[0]->sizes;
    cmp_ok $wire, '<', 0.5 * $length, "a common context makes it short: $wire of $length bytes";
    is $readers[$_]->compressed, 0, 'and is nobody else\'s' for 12, 13;
    $wrong = 0;
    for my $size (0, 1, 16, 64, 125, 126, 127, 128, 4096, 65535, 65536, 131072, 300_000) {
        for my $payload ('x' x $size, $size % 4 ? () : noise($size)) {
            next if $payload eq '';
            $post->('/pub?id=a', $payload);
            $wrong += ($_->next_frame(20))[1] ne $payload for @readers;
        }
    }
    is $wrong, 0, 'of all lengths, texts and others';
    ok wait_until { $metric->('push_stream_compressed_deliveries_total{context="group"}') > 60 }, 'deliveries are counted';
    my $bytes = 'push_stream_compressed_bytes_total{coding="permessage-deflate",stage=';
    cmp_ok $metric->(qq($bytes"in"})), '>', $metric->(qq($bytes"out"})), 'and bytes';

    # --- history, several channels, pings, what is not a message ---
    $post->('/pub?id=h', post_text($_)) for 1 .. 30;
    my $old = $open->('/ws?id=h.b30/a', $OFFER);
    is $old->text, 'head', 'a reader of stored messages';
    $wrong = 0;
    $wrong += $old->text ne post_text($_) for 1 .. 30;
    for my $n (31 .. 60) {
        $nginx->post($n % 3 ? '/pub?id=h' : '/pub?id=a', post_text($n));
        $wrong += $old->text ne post_text($n);
        $old->send($PING, "$n") if $n % 7 == 0;
        if ($n % 7 == 0) { $wrong += join(' ', $old->next_frame) ne "$PONG $n" }
    }
    is $wrong, 0, 'a reader of two channels reads all, with pongs between';
    my $pinged = $open->('/ping?id=p');
    for my $n (1 .. 3) {
        $post->('/pub?id=p', post_text($n));
        my ($opcode, $text) = $pinged->next_frame;
        while ($opcode == $PING) {
            $pinged->send($PONG, '');
            ($opcode, $text) = $pinged->next_frame;
        }
        is $text, post_text($n), 'a message before and after a ping';
        next if $n == 3;
        is_deeply [ $pinged->next_frame ], [ $PING, '' ], 'which is not compressed';
        $pinged->send($PONG, '');
    }
    is $pinged->compressed, 3, 'and disturbs nothing';

    # --- messages of clients ---
    my $echo = $open->('/echo?id=e');
    my $said = sub ($payload, $name, $opcode = $TEXT) {
        my ($got, $text) = $echo->next_frame(20);
        ok $got == $opcode && $text eq $payload, $name;
    };
    for my $size (0, 1, 16, 125, 126, 4096, 65536, 131072) {
        for my $bits (9, 12, 15) {
            my $text = substr join('', map { post_text($_) } 1 .. $size / 90 + 1), 0, $size;
            $echo->send($TEXT, deflated($text, window_bits => $bits), rsv => $RSV1);
            $said->($text, "$size bytes, with a window of $bits bits") if $size;
        }
    }
    my $noise = noise(100_000);
    $echo->send($BINARY, deflated($noise), rsv => $RSV1);
    $said->($noise, 'binary', $BINARY);
    $echo->send($TEXT, 'as it is');
    $said->('as it is', 'a message that is not compressed');
    my $compressed = deflated('in several pieces' x 9);
    $echo->send_bytes(frame($TEXT, substr($compressed, 0, 4), rsv => $RSV1, more => 1) . frame($PING, 'in between')
            . frame(0, substr($compressed, 4, 3), more => 1) . frame(0, '', more => 1) . frame(0, substr $compressed, 7));
    is_deeply [ $echo->next_frame ], [ $PONG, 'in between' ], 'a control frame between fragments';
    $said->('in several pieces' x 9, 'fragments');
    for my $byte (split //, frame($TEXT, "\xf3\x48\xcd\xc9\xc9\x07\0\0", rsv => $RSV1)) { $echo->send_bytes($byte) }
    $said->('Hello', 'a last block, byte by byte');

    my $closes = sub ($uri, $bytes, $code, $name) {
        my $socket = $open->($uri);
        $socket->send_bytes($bytes);
        is unpack('n', $socket->close_payload(20)), $code, $name;
    };
    $closes->('/off?id=c', frame($TEXT, deflated('x' x 99), rsv => $RSV1), 1002, 'compressed, and nobody agreed');
    $closes->('/echo?id=c', frame($PING, '', rsv => $RSV1), 1002, 'a compressed ping');
    $closes->('/echo?id=c', frame($TEXT, '', rsv => 0x20), 1002, 'another extension');
    $closes->('/echo?id=c', frame($TEXT, 'a', more => 1) . frame(0, deflated('b'), rsv => $RSV1), 1002, 'a compressed fragment');
    $closes->('/echo?id=c', frame($TEXT, "\xff" x 20, rsv => $RSV1), 1007, 'broken data');
    $closes->('/echo?id=c', frame($TEXT, substr(deflated(noise(400)), 0, 100), rsv => $RSV1), 1007, 'cut data');
    $closes->('/echo?id=c', frame($TEXT, deflated("\xc3("), rsv => $RSV1), 1007, 'no UTF-8');
    $closes->('/echo?id=c', frame($TEXT, deflated('x' x (200 * 1024 + 1)), rsv => $RSV1), 1009, 'a byte too long');

    # --- a bomb ---
    my $memory = sub { my $sum = 0; $sum += `awk '/^VmHWM/ {print \$2}' /proc/$_/status` for $nginx->worker_pids; return $sum };
    my $piece = deflated("\0" x (1 << 20), level => 9);
    # Each piece begins anew: a block boundary, and no reference before it.
    my $bomb = join "\0\0\xff\xff", ($piece) x 1024;
    cmp_ok length $bomb, '<', 1.2 * 2**20, 'a gigabyte in a megabyte';
    my $before = $memory->();
    for my $uri ('/echo?id=c', '/ws?id=c') {
        my $limit = $uri =~ /echo/ ? '200 KiB' : 'the default';
        my $socket = $open->($uri);
        $socket->text if $uri =~ /ws/;
        # Its worker may close before it has got all. The end of TLS waits for a client that goes on sending, so there
        # it is no more than what fits into the sockets.
        local $SIG{PIPE} = 'IGNORE';
        my $bytes = frame($BINARY, $bomb, rsv => $RSV1);
        substr $bytes, 64 * 1024, length $bytes, '' if PushStream::Nginx::transport() ne 'http1';
        eval { $socket->send_bytes($bytes) };
        my ($opcode, $payload) = $socket->next_frame(30);
        ok $opcode == $CLOSE && unpack('n', $payload) == 1009, "ends at $limit";
    }
    cmp_ok $memory->() - $before, '<', 24 * 1024, 'and takes no memory, kB';

    # --- slow readers ---
    my $slow = $open->('/skip?id=s');
    my @large = map { "$_ " . unpack 'H*', noise(40_000) } 1 .. 150;
    $post->('/pub?id=s', $_) for @large;
    my ($last, $got) = (0, 0);
    $wrong = 0;
    while ($last < @large) {
        my $text = $slow->text(20);
        my ($number) = $text =~ /^(\d+) /;
        $wrong++ if $number <= $last || $text ne $large[ $number - 1 ];
        ($last, $got) = ($number, $got + 1);
    }
    is $wrong, 0, 'a slow reader skips whole messages, and reads the rest';
    cmp_ok $got, '<', @large, 'some were skipped';

    # --- the end ---
    $nginx->delete("/pub?id=$_") for qw(a h);
    for my $reader ($readers[0], $readers[10], $old) {
        my @rest;
        while (1) {
            my ($opcode, $payload) = $reader->next_frame;
            push @rest, $opcode == $CLOSE ? "close $payload" : $payload;
            last if $opcode == $CLOSE;
        }
        is_deeply [ @rest[ -2, -1 ] ], [ 'bye', 'close ' ], 'an end with footer and close frame';
    }
};

SKIP: {
    my $taken = PushStream::Nginx::transport() eq 'taken-tls';
    skip 'subscribers over HTTP/2 and with the TLS of OpenSSL end at a reload', 1 if !$taken && PushStream::Nginx::transport() ne 'http1';
    with_nginx $conf, sub ($nginx) {
        my $post = publisher($nginx);
        my $open = sub ($uri, $offer) { PushStream::WebSocket->new($nginx, $uri, headers => { 'Sec-WebSocket-Extensions' => $offer }) };
        my @readers = map { $open->('/ws?id=a', $_) } $OFFER, $OFFER, 'permessage-deflate; server_max_window_bits=9',
            'permessage-deflate; server_no_context_takeover';
        $_->text for @readers;
        my $echo = $open->('/echo?id=b', $OFFER);
        my $slow = $open->('/ws?id=slow', $OFFER);
        $slow->text;
        my $n = 0;
        my $round = sub ($name) {
            my $wrong = 0;
            for (1 .. 12) {
                my $text = post_text(++$n);
                $post->('/pub?id=a', $text);
                $wrong += $_->text ne $text for @readers;
                $echo->send($TEXT, deflated($text), rsv => $RSV1);
                $wrong += $echo->text ne $text;
            }
            is $wrong, 0, "all messages $name, in both directions";
        };
        $round->('before the reload');
        ok wait_until { $nginx->get('/metrics')->body =~ /^push_stream_tls_taken_over_total 6$/m }, 'the TLS of all was taken over' if $taken;
        my @large = map { "$_ " . unpack 'H*', noise(30_000) } 1 .. 20;
        $post->('/pub?id=slow', $_) for @large;
        $nginx->reload;
        $post = publisher($nginx);
        ok wait_until { $nginx->get('/metrics')->body =~ /^push_stream_subscribers_handed_over_total 6$/m }, 'handed over';
        $round->('after it');
        my $wrong = 0;
        $wrong += $slow->text(20) ne $_ for @large;
        is $wrong, 0, 'a slow reader gets all';
        cmp_ok $readers[0]->compressed, '>=', 20, 'they are still compressed';
        $nginx->reload($conf =~ s/push_stream_websocket_deflate on;//r);
        my ($opcode, $text) = $readers[0]->next_frame;
        ($opcode) = $readers[0]->next_frame if $text eq 'bye';
        is $opcode, $CLOSE, 'if the new configuration does not compress, they end as ever';
    };
}

refuses $conf =~ s/websocket_deflate on/websocket_deflate gzip/r, '"gzip" in "push_stream_websocket_deflate" directive', 'another value is refused';

done_testing;
