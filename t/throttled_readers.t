# Readers of every kind that read too slowly, while what they wait for is evicted under them: whatever they get is whole messages
# of their own channels, in order. Not one byte of anything else.
#
# TEST_THROTTLED_MESSAGES: how many messages; default 2500. TEST_THROTTLED_SEED: repeats a run.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;

only_over_plain_http1 'its clients speak nothing else';
use PushStream::WebSocket;
use PushStream::Zstd;

use Compress::Raw::Zlib;
use IO::Select;

my $count = $ENV{TEST_THROTTLED_MESSAGES} || 2500;
my $seed = $ENV{TEST_THROTTLED_SEED} // int rand 1_000_000;
my $curl_features = `curl --version 2>/dev/null`;
my $curl_has_http2 = $curl_features =~ /HTTP2/;

my $certificate = File::Temp->newdir;
system "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -keyout $certificate/key.pem -out $certificate/cert.pem 2>/dev/null";

with_nginx <<'CONF' =~ s/%%CERTIFICATE%%/$certificate/gr, sub ($nginx) {
%%MAIN%%
events { worker_connections 1024; }
http {
    %%HTTP%%
    # Full all the time: three messages in four go elsewhere, and push out what the readers wait for.
    push_stream_shared_memory_size 1m;
    push_stream_on_full evict;
    push_stream_store_messages on;
    push_stream_channels_path $arg_id;
    push_stream_subscriber_queue 100k;
    push_stream_slow_reader skip;
    push_stream_ping_message_interval 300ms;
    push_stream_ping_message_text "<ping>";
    keepalive_requests 1000000;
    gzip_min_length 0;
    gzip_types text/plain text/event-stream;
    ssl_certificate %%CERTIFICATE%%/cert.pem;
    ssl_certificate_key %%CERTIFICATE%%/key.pem;

    server {
        listen 127.0.0.1:%%PORT%% sndbuf=16k;
        listen unix:%%DIR%%/tls.sock ssl sndbuf=16k;
        listen unix:%%DIR%%/h2.sock http2 sndbuf=16k;

        location /pub { push_stream_publisher; }
        location /sub { push_stream_subscriber; push_stream_padding_by_user_agent "[T|t]est,0,2000"; }
        location /close { push_stream_subscriber; push_stream_slow_reader close; }
        location /latest { push_stream_subscriber; push_stream_slow_reader latest; }
        location /ev { push_stream_subscriber eventsource; }
        location /ws { push_stream_subscriber websocket; }
        location /gzip { push_stream_subscriber eventsource; gzip on; }
        location /coded { push_stream_subscriber eventsource; push_stream_compress zstd gzip; }
        location /limited { push_stream_subscriber; limit_rate 200k; }
        location /poll { push_stream_subscriber polling; }
        location /wait { push_stream_subscriber long-polling; }
        location /status { push_stream_channels_statistics; }
    }
}
CONF
    srand $seed;
    my $message = sub ($channel, $n) { "<$channel.$n:" . chr(97 + $n % 26) x (1 + $n * 7919 % 6000) . '>' };
    # What is wrong with a text, if anything: it must be whole messages in order, the last perhaps cut.
    my $wrong = sub ($text, $cut) {
        my %last;
        while ($text =~ /\G(?:<ping>| *\r\n|\s)*<(\w+)\.(\d+):/gc) {
            my ($channel, $n) = ($1, $2);
            my $start = $-[1] - 1;
            my $whole = $message->($channel, $n);
            my $got = substr $text, $start, length $whole;
            return if $cut && length $got < length $whole && index($whole, $got) == 0;
            return "message $channel.$n is broken: " . substr $got, 0, 80 if $got ne $whole;
            return "message $channel.$n after $last{$channel}" if $n <= ($last{$channel} // 0);
            return "message $channel.$n is of no channel of this reader" if $channel !~ /^[ab]$/;
            $last{$channel} = $n;
            pos($text) = $start + length $whole;
        }
        my $rest = substr $text, pos($text) // 0;
        $rest =~ s/^(?:<ping>| *\r\n|\s)+//;
        return if $rest eq '' || $cut && $rest =~ /^<(?:p|pi|pin|ping|[ab](?:\.\d*)?)?$/;
        return 'foreign: ' . substr $rest, 0, 80;
    };

    my $good = join '', map { $message->('a', $_) } 1 .. 3;
    is $wrong->($good, 0), undef, 'good messages are found good';
    like $wrong->($good =~ s/b(?=b)/c/r, 0), qr/broken/, 'a wrong byte is found';
    like $wrong->($good . $message->('junk1', 9), 0), qr/no channel of this reader/, 'so is a foreign message';
    like $wrong->($message->('a', 3) . $message->('a', 3), 0), qr/after/, 'and one that comes twice';
    ok defined $wrong->(substr($good, 0, -1), 0), 'and half a message';

    # --- readers: what they asked, and how their bytes become text ---

    # (text, whether it is cut) of a chunked body.
    my $dechunk = sub ($bytes) {
        my $text = '';
        while ($bytes =~ /\G([0-9a-f]+)\r\n/gc) {
            my ($size, $at) = (hex $1, pos $bytes);
            return ($text, 0) if !$size;
            $text .= substr $bytes, $at, $size;
            return ($text, 1) if length $bytes < $at + $size + 2;
            return ("$text NO CHUNK END", 0) if substr($bytes, $at + $size, 2) ne "\r\n";
            pos($bytes) = $at + $size + 2;
        }
        return ($text, 1);
    };
    my $events = sub ($text) {
        $text =~ s/^:.*\n//gm;
        $text =~ s/^data: //gm;
        # What the cut may leave of a line.
        $text =~ s/^(?:d|da|dat|data|data:|:[^\n]*)\z//m;
        return $text;
    };
    my $frames = sub ($bytes) {
        my $text = '';
        while (length $bytes >= 2) {
            my ($first, $length) = unpack 'CC', $bytes;
            my $header = 2;
            if ($length == 126) { last if length $bytes < 4; ($length, $header) = (unpack('x2n', $bytes), 4) }
            elsif ($length == 127) { last if length $bytes < 10; ($length, $header) = (unpack('x2Q>', $bytes), 10) }
            return ("$text NO FRAME " . unpack('H*', substr $bytes, 0, 4), 0) if $first !~ /^(?:129|137|136)$/;
            my $payload = substr $bytes, $header, $length;
            $text .= $payload if $first == 129;
            last if length $bytes < $header + $length;
            substr $bytes, 0, $header + $length, '';
        }
        return ($text, 1);
    };
    my $inflate = sub ($bytes) {
        my ($packed, $cut) = $dechunk->($bytes);
        my ($inflate) = Compress::Raw::Zlib::Inflate->new(-WindowBits => WANT_GZIP);
        $inflate->inflate($packed, my $text);
        return ($events->($text), 1);
    };
    my $unzstd = sub ($bytes) {
        my ($packed, $cut) = $dechunk->($bytes);
        return ($events->(PushStream::Zstd->new->decode($packed)), 1);
    };
    my $sse = sub ($bytes) { my ($text, $cut) = $dechunk->($bytes); return ($events->($text), $cut) };
    my %reader;
    my $open = sub ($name, $uri, $decode, %options) {
        my $client = $nginx->connect(receive_buffer => 4096);
        $client->send_request(GET => $uri, %options);
        $reader{$name} = { socket => $client->socket, client => $client, raw => '', decode => $decode };
    };
    my $open_all = sub ($path, $mark) {
        $open->("streaming$mark", "/sub?id=$path", $dechunk);
        $open->("streaming with padding$mark", "/sub?id=$path", $dechunk, headers => { 'User-Agent' => 'Test' });
        $open->("streaming over HTTP/1.0$mark", "/sub?id=$path", sub ($bytes) { ($bytes, 1) }, version => '1.0');
        $open->("closed when slow$mark", "/close?id=$path", $dechunk);
        $open->("latest$mark", "/latest?id=$path", $dechunk);
        $open->("EventSource$mark", "/ev?id=$path", $sse);
        $open->("WebSocket$mark", "/ws?id=$path", $frames, headers => { PushStream::WebSocket::handshake() });
        $open->("gzip$mark", "/gzip?id=$path", $inflate, headers => { 'Accept-Encoding' => 'gzip' });
        $open->("compressed in gzip$mark", "/coded?id=$path", $inflate, headers => { 'Accept-Encoding' => 'gzip' });
        $open->("compressed in zstd$mark", "/coded?id=$path", $unzstd, headers => { 'Accept-Encoding' => 'zstd' });
        $open->("limit_rate$mark", "/limited?id=$path", $dechunk);
    };

    # TLS and HTTP/2: curl reads slowly into a pipe.
    my $curl = sub ($name, $socket, @arguments) {
        my $pid = CORE::open my $pipe, '-|', 'curl', '-sNk', '--limit-rate', '60k', '--max-time', 120, '--unix-socket',
            $nginx->dir . "/$socket.sock", @arguments or die "no curl: $!";
        $reader{$name} = { socket => $pipe, pid => $pid, raw => '', headless => 1, decode => sub ($bytes) {
            return ($arguments[-1] =~ m{/ev|/coded} ? $events->($bytes) : $bytes, 1) } };
    };

    $open_all->('a/b', '');
    $curl->('TLS', 'tls', 'https://localhost/sub?id=a/b');
    $curl->('EventSource over TLS', 'tls', 'https://localhost/ev?id=a/b');
    for my $coding (grep { $curl_features =~ /^Features:.*\b$_\b/m } qw(libz zstd)) {
        my @asked = ('--compressed', '--header', 'Accept-Encoding: ' . $coding =~ s/libz/gzip/r);
        $curl->("$coding over TLS", 'tls', @asked, 'https://localhost/coded?id=a/b');
        $curl->("$coding over HTTP/2", 'h2', @asked, '--http2-prior-knowledge', 'http://localhost/coded?id=a/b') if $curl_has_http2;
    }
    if ($curl_has_http2) {
        $curl->('HTTP/2', 'h2', '--http2-prior-knowledge', 'http://localhost/sub?id=a/b');
        $curl->('EventSource over HTTP/2', 'h2', '--http2-prior-knowledge', 'http://localhost/ev?id=a/b');
    }

    # Everybody takes a little now and then.
    my $take = sub ($most) {
        my %by_socket = map { fileno($_->{socket}) => $_ } grep { !$_->{ended} } values %reader;
        for my $socket (IO::Select->new(map { $_->{socket} } values %by_socket)->can_read(0)) {
            my $reader = $by_socket{ fileno $socket };
            my $read = sysread $socket, $reader->{raw}, 1 + int rand $most, length $reader->{raw};
            $reader->{ended} = 1 if !$read;
        }
    };
    my $publisher = $nginx->connect;
    my ($refused, $poll_n, @poll_complaints) = (0, 0);
    for my $n (1 .. $count) {
        my $channel = $n % 4 ? "junk" . $n % 7 : $n % 8 ? 'a' : 'b';
        $refused++ if $publisher->request(POST => "/pub?id=$channel", body => $message->($channel, $n))->status != 200;
        $take->(3000) if $n % 3 == 0;
        if ($n == int $count / 3) {
            # Now there is a history, which goes away while it is read.
            $open_all->('a.b999/b.b999', ' with a history');
        }
        if ($n % 50 == 0) {
            for my $uri ('/poll?id=a.b99/b.b99', '/wait?id=a.b99/b.b99') {
                my $complaint = $wrong->($nginx->get($uri)->body, 0) // next;
                push @poll_complaints, "$uri: $complaint";
            }
        }
    }
    is $refused, 0, "publishing never stops (seed $seed)";
    is "@poll_complaints", '', 'polls get whole messages';

    my $end = time + 3;
    $take->(100_000), sleep 0.01 while time < $end && grep { !$_->{ended} } values %reader;
    for my $name (sort keys %reader) {
        my $reader = $reader{$name};
        my $raw = $reader->{raw};
        if (!$reader->{headless}) {
            ok $raw =~ s/^HTTP\/1\.1 (?:200|101) .*?\r\n\r\n//s, "$name: an answer" or next;
        }
        my ($text, $cut) = $reader->{decode}->($raw);
        my $messages = () = $text =~ /</g;
        is $wrong->($text, $cut), undef, sprintf '%s: %d messages, %d bytes, nothing wrong with them', $name, $messages, length $text;
        cmp_ok $messages, '>', 3, "$name: it got something";
        if ($reader->{pid}) { kill TERM => $reader->{pid}; CORE::close $reader->{socket} }
        else { $reader->{client}->close }
    }
    ok wait_until { $nginx->figures->{subscribers} == 0 }, 'nobody is left';
};

done_testing;
