# Requests that went wrong on the way: valid ones of every kind, with bytes changed, dropped, doubled and cut anywhere, and sent in pieces.
# Whatever comes, no worker ends, nobody else notices, and in the end everything is given back.
#
# TEST_FUZZ_SECONDS: how long; default 3. TEST_FUZZ_SEED: repeats a run.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;

only_over_plain_http1 'it is about what HTTP/1 looks like';
use PushStream::WebSocket;

my $seconds = $ENV{TEST_FUZZ_SECONDS} || 3;
my $seed = $ENV{TEST_FUZZ_SEED} // int rand 1_000_000;

with_nginx <<'CONF', sub ($nginx) {
%%MAIN%%
events { worker_connections 2048; }
http {
    %%HTTP%%
    push_stream_shared_memory_size 256k;
    push_stream_on_full evict;
    push_stream_store_messages on;
    push_stream_message_ttl 2s;
    push_stream_channel_inactivity_time 1s;
    push_stream_channels_path $arg_id;
    push_stream_ping_message_interval 200ms;
    push_stream_subscriber_connection_ttl 2s;
    push_stream_longpolling_connection_ttl 500ms;
    client_header_timeout 1s;
    client_body_timeout 1s;
    keepalive_timeout 1s;
    lingering_timeout 500ms;
    large_client_header_buffers 4 128k;

    server {
        listen 127.0.0.1:%%PORT%%;

        location /pub { push_stream_publisher admin; push_stream_allowed_origins "*"; }
        location /batch { push_stream_publisher; push_stream_batch_publish on; }
        location /sub { push_stream_subscriber; push_stream_header_template "head"; push_stream_footer_template "foot"; }
        location /ev { push_stream_subscriber eventsource; push_stream_last_event_id $arg_last; }
        location /poll { push_stream_subscriber polling; push_stream_last_received_message_time $arg_time; }
        location /lp { push_stream_subscriber long-polling; push_stream_user_agent $http_user_agent; }
        location /ws { push_stream_subscriber websocket; push_stream_websocket_allow_publish on; push_stream_websocket_binary on; }
        location /strict { push_stream_subscriber websocket; push_stream_websocket_strict on; }
        location /status { push_stream_channels_statistics; }
    }
}
CONF
    srand $seed;
    note "seed $seed";
    my @pids = sort $nginx->worker_pids;

    # --- what is mutated ---
    my $head = sub ($method, $uri, %headers) {
        my $body = delete $headers{body} // '';
        $headers{'Content-Length'} //= length $body if length $body;
        return join "\r\n", "$method $uri HTTP/1.1", 'Host: localhost', (map { "$_: $headers{$_}" } sort keys %headers), '', $body;
    };
    my $frame = \&PushStream::WebSocket::frame;
    my $handshake = sub ($uri) { $head->(GET => $uri, PushStream::WebSocket::handshake()) };
    my $chunked = "POST /pub?id=a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n";
    my $ndjson = qq({"channels": ["a", "b"], "text": "one", "id": "1"}\n{"channels": ["c"], "base64": "SGVsbG8=", "store": false}\n);
    my @seeds = (
        $head->(POST => '/pub?id=a/b.b3/c', 'Event-Id' => '17', 'Event-Type' => 'note', body => 'a message'),
        $head->(PUT => '/pub?id=w%20%2Fx', Accept => 'application/xml', body => 'x' x 3000),
        $head->(POST => '/batch', 'Content-Type' => 'application/x-ndjson', body => $ndjson),
        $head->(POST => '/pub?id=a', 'Event-Id' => 'i' x 70_000, body => 'long id'),
        $head->(DELETE => '/pub?id=a/b'),
        $head->(OPTIONS => '/pub?id=a', Origin => 'http://localhost'),
        $chunked,
        $head->(GET => '/pub?id=a', Accept => 'text/plain, */*;q=0.1'),
        $head->(GET => '/sub?id=a.b5/b/c'),
        $head->(GET => '/ev?id=a.b2&last=17', 'Last-Event-Id' => '17'),
        $head->(GET => '/poll?id=a&time=Thu,%2001%20Jan%201970%2000:00:00%20GMT', 'If-None-Match' => '3', 'User-Agent' => 'x'),
        $head->(GET => '/poll?id=a.b9&callback=cb', 'X-Nginx-PushStream-Mode' => 'long-polling'),
        $head->(GET => '/lp?id=a', 'If-Modified-Since' => 'Sun, 06 Nov 1994 08:49:37 GMT', 'If-None-Match' => '1'),
        $handshake->('/ws?id=a/b') . $frame->(1, 'hello') . $frame->(9, 'ping') . $frame->(1, 'a', more => 1) . $frame->(0, 'b') . $frame->(8, pack 'n', 1000),
        $handshake->('/ws?id=a') . $frame->(2, "\xff\x00" x 300) . $frame->(1, 'y' x 70_000),
        $handshake->('/strict?id=a') . $frame->(1, 'unmasked', mask => undef),
        $head->(GET => '/status?id=ALL', Accept => 'application/yaml'),
        $head->(GET => '/status?id=a*', Accept => 'text/xml'),
        $head->(GET => '/status', Accept => 'application/openmetrics-text'),
    );
    my @tokens = ("\r\n", "\0", "\n", ':', '%', '%00', '/', '.b', '*', 'ALL', '~text~', "\xff", ',', ';q=', '99999999999999999999', '-1',
        'Content-Length: 5', "Transfer-Encoding: chunked\r\n", '{', '"', '\\u', "\x81\xff", "\x88\x02");
    my $mutate = sub ($text) {
        for (1 .. int(rand 4)) {
            my $at = int rand(1 + length $text);
            my $kind = int rand 6;
            if ($kind == 0) { substr($text, $at, 1) = chr int rand 256 if $at < length $text }
            elsif ($kind == 1) { substr $text, $at, 1 + int rand 20, '' }
            elsif ($kind == 2) { substr $text, $at, 0, $tokens[ rand @tokens ] }
            elsif ($kind == 3) { my $piece = substr $text, $at, 1 + int rand 60; substr $text, $at, 0, $piece x (1 + int rand 3) }
            elsif ($kind == 4) { my $other = $seeds[ rand @seeds ]; $text = substr($text, 0, $at) . substr $other, int rand length $other }
            else { $text = substr $text, 0, $at }
        }
        return $text;
    };

    # --- sending it ---
    my ($control, $publisher);
    # Both connections have their time limits, so a failure may be their end, which the next attempt is far from.
    my $works = sub ($text) {
        for (1 .. 3) {
            return 1 if eval {
                $control //= $nginx->subscribe('/sub?id=control');
                $publisher //= $nginx->connect;
                my $status = $publisher->request(POST => '/pub?id=control', body => "<$text>")->status;
                die "publishing is answered $status\n" if $status != 200;
                $control->text_until(qr/<\Q$text\E>/);
                1;
            };
            ($control, $publisher) = ();
        }
        return 0;
    };
    my ($sent, @troubles) = (0);
    my $end = time + $seconds;
    my @open;
    while (time < $end && !@troubles) {
        my $text = $mutate->($seeds[ rand @seeds ]);
        my $shown = unpack 'H*', substr $text, 0, 400;
        my $client = eval { $nginx->connect } or do { push @troubles, "nobody accepts after $shown"; last };
        my $socket = $client->socket;
        $socket->blocking(0);
        for (my $at = 0; $at < length $text;) {
            my $part = rand() < 0.7 ? length $text : 1 + int rand 40;
            my $done = syswrite $socket, $text, $part, $at;
            last if !$done;
            $at += $done;
        }
        $sent++;
        push @open, $client;
        # Some are closed at once, some are left to nginx's patience.
        if (@open > 60) {
            my $old = splice @open, rand @open, 1;
            rand() < 0.5 ? $old->reset : $old->close;
        }
        if ($sent % 100 == 0) {
            push @troubles, "after $sent requests: $@" if !$works->("control $sent");
            push @troubles, 'a worker was replaced' if "@{[ sort $nginx->worker_pids ]}" ne "@pids";
        }
    }
    is "@troubles", '', "$sent requests, and nobody else noticed (seed $seed)";
    cmp_ok $sent, '>', 100 * $seconds, 'as many as were meant';
    is_deeply [ sort $nginx->worker_pids ], \@pids, 'all workers live';
    $_->close for @open, grep { $_ } $control, $publisher;
    my @left = qw(subscribers channels stored_messages channels_in_delete);
    # The trash is kept for half a minute.
    push @left, qw(messages_in_trash channels_in_trash) if $ENV{TEST_FUZZ_SECONDS};
    ok wait_until(sub { my $zone = $nginx->figures; !grep { $zone->{$_} } @left }, 40), 'in the end nothing is left'
        or diag $nginx->get('/status')->body;
};

done_testing;
