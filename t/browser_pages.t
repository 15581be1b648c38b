# docs/pages.md: its configuration and its examples, as they stand there, in a browser on a bad network; and what it says of how things end.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib", "$FindBin::Bin/browser";
use PushStream::Program;
use PushStream::Test;
use PushStream::WebSocket;

use JSON::PP qw(decode_json);
use Relay;
use WebDriver;

only_over_plain_http1 'the browser would have to be told of the certificate';
$ENV{TEST_WORKERS} //= '2';
# What the browser answers is decoded already.
my $json = JSON::PP->new;
my $count = $ENV{TEST_BROWSER_MESSAGES} || 40;

# --- the document ---

my $document = do { local (@ARGV, $/) = "$FindBin::Bin/../docs/pages.md"; <> };
my @conf = $document =~ /^```nginx\n(.*?)^```$/msg;
my %example;
for my $block ($document =~ /^```js\n(.*?)^```$/msg) {
    my ($name) = $block =~ /^(?:async )?function (\w+)/m;
    $name //= $block =~ /withCredentials/ ? 'credentials' : 'live';
    $example{$name} = $block;
}
is_deeply [ sort keys %example ], [qw(credentials follow join jsonp live poll stream)], 'every example is tried here';
$example{live} = $example{follow} =~ s/^follow\(.*//mr . $example{live};
my $at_http = join "\n", grep { !/^location/ } @conf;
my $proxy_port = PushStream::Program->free_port;
my $in_server = join "\n", grep { /^location/ } @conf;

# What belongs to the machine, and what would take a test too long.
$at_http =~ s/^push_stream_shared_memory_size .*;/push_stream_shared_memory_size 16m;/m or die;
$at_http =~ s[listen 127\.0\.0\.1:8080;][listen 127.0.0.1:$proxy_port; client_header_timeout 1s; location = /page { default_type text/html; root %%DIR%%; }] or die;
$at_http =~ s{http://127\.0\.0\.1:9080;}{http://127.0.0.1:%%PORT%%;} or die;
$at_http =~ s{"https://www\.example\.org"}{"~^http://127\\.0\\.0\\.1:\\d+\$"} or die;
$at_http =~ s/(push_stream_ping_message_interval\s+)30s/${1}300ms/ or die;
$at_http =~ s/(push_stream_longpolling_connection_ttl\s+)30s/${1}2s/ or die;

# The proxy is the same nginx: its old workers would keep what they pass on open for as long as the new ones serve it.
my $conf = <<"CONF";
%%MAIN%%
worker_shutdown_timeout 2s;
events {}
http {
    %%HTTP%%
    $at_http
    push_stream_max_messages_stored_per_channel %%STORED%%;
    push_stream_eventsource_retry 1ms 20ms;
    keepalive_requests 1000000;

    server {
        listen 127.0.0.1:%%PORT%% reuseport;
        # Browsers connect ahead of their requests, and a worker that leaves waits for those.
        client_header_timeout 1s;
        # While there is such a file, subscribers are refused by nginx.
        set \$refused "";
        if (-f %%DIR%%/refuse) { set \$refused 1; }
        if (\$uri ~ ^/(?:pub|page|exact/pub)\$) { set \$refused ""; }
        if (\$refused) { return 503; }

        location = /page { default_type text/html; root %%DIR%%; }
        $in_server
        # As the C module does it: no ids, and no order over channels.
        location = /exact/pub {
            push_stream_publisher      admin;
            push_stream_channels_path  \$arg_id;
            push_stream_store_messages on;
        }
        location ~ ^/exact/poll/(.+)\$ {
            push_stream_subscriber    long-polling;
            push_stream_channels_path \$1;
            push_stream_resume        exact;
            push_stream_gap_notice    off;
        }

        # How things end.
        location = /end/ws/ttl { push_stream_subscriber websocket; push_stream_channels_path ttl; push_stream_subscriber_connection_ttl 500ms; }
        location = /end/ev { push_stream_subscriber eventsource; push_stream_channels_path \$arg_id; }
        location = /end/ev/ttl { push_stream_subscriber eventsource; push_stream_channels_path ttl; push_stream_subscriber_connection_ttl 500ms; }
        location = /end/ws { push_stream_subscriber websocket; push_stream_channels_path \$arg_id; push_stream_websocket_max_message_size 1k; }
        location = /end/ws/echo { push_stream_subscriber websocket; push_stream_channels_path echo; push_stream_websocket_allow_publish on; push_stream_message_template ~text~; }
        location = /end/ws/slow { push_stream_subscriber websocket; push_stream_channels_path slow; push_stream_subscriber_queue 4k; }
        location = /end/ws/refused { push_stream_subscriber websocket; push_stream_channels_path nobody; push_stream_authorized_channels_only on; }
        @{[ map { "location = /status/$_ { return $_; }\n" } 204, 403, 404, 429, 500, 502, 503, 507 ]}
        location = /forge { push_stream_subscriber polling; push_stream_channels_path \$arg_id; push_stream_message_template '{"text":"~text~"}'; }
        location = /whole { push_stream_subscriber polling; push_stream_channels_path \$arg_id; push_stream_message_template '{"id":~id~,"data":~text~}'; }
        location = /sized { push_stream_subscriber polling; push_stream_channels_path \$arg_id; push_stream_message_template '~id~ ~size~ ~text~'; }
    }
}
CONF

# --- the page ---

# What the examples expect of a page; their random waits are short.
my $frame = <<'HTML';
<!doctype html><meta charset="utf-8"><title>page</title><script>
const log = [], gaps = [], ends = [], warnings = [];
const position = new URLSearchParams(location.search).get("position");
const show = (data) => log.push(data), reload = (channel) => gaps.push(channel), goodbye = (channel) => ends.push(channel ?? "");
Math.random = () => 0.02;
console.warn = (...words) => warnings.push(words.join(" "));
</script><script>
%%EXAMPLE%%</script>
HTML

# A page that is kept to go back to keeps its connections.
my $browser = WebDriver->new(flags => ['--disable-features=BackForwardCache']);

# Opens a page with this example through the relay.
sub open_page ($nginx, $relay, $example, $position = '') {
    open my $file, '>', $nginx->dir . '/page' or die $!;
    # Another origin: the server itself, without the relay.
    print {$file} $frame =~ s/%%EXAMPLE%%/$example/r =~ s{https://push\.example\.org}{'http://127.0.0.1:' . $nginx->port}ger;
    close $file;
    $browser->open_url('http://127.0.0.1:' . $relay->port . "/page?position=$position");
}
# Returns when nginx has noticed that the page is gone: the next one is not to be taken for it.
sub close_page ($nginx) {
    $browser->open_url('about:blank');
    ok wait_until(sub { !grep { subscribers($nginx, $_) > 0 } qw(news sport chat.lobby match-7) }, 20), 'a page that is left is gone';
}
sub variable ($name) { return $browser->js("return $name") }
sub shown { return variable('log') }
sub subscribers ($nginx, $channel) {
    my $answer = eval { $nginx->get("/pub?id=$channel") } or return -1;
    return $answer->status == 200 ? $answer->json->{subscribers} : 0;
}
sub set_refusing ($nginx, $on) {
    my $file = $nginx->dir . '/refuse';
    if ($on) { open my $out, '>', $file or die $! }
    else { unlink $file or die $! }
}
sub requests ($nginx, $pattern) {
    open my $file, '<', $nginx->dir . '/access.log' or die $!;
    return scalar grep { $_ =~ $pattern } <$file>;
}

# What comes: how each example is published to, and what it shows.
my @modes = (
    { name => 'follow', example => 'follow', channels => [qw(news sport)], url => qr{/sub/} },
    { name => 'join', example => 'join', channels => ['chat.lobby'], url => qr{/chat/}, text => 1 },
    { name => 'poll', example => 'poll', channels => [qw(news sport)], url => qr{/poll/} },
    { name => 'poll by time and tag alone', example => 'poll', channels => [qw(news sport)], url => qr{/poll/}, exact => 1 },
    { name => 'stream', example => 'stream', channels => [qw(news sport)], url => qr{/stream/} },
);
# The configuration of the proxy takes all of them.
my @proxied = map { { %$_, name => "$_->{name} behind a proxy", proxied => 1 } } grep { !$_->{exact} } @modes;

with_nginx $conf =~ s/%%STORED%%/1000000/r, sub ($nginx) {
    for my $mode (@modes, @proxied) {
        subtest "$mode->{name}: cut anywhere, refused for a while, and it misses nothing" => sub {
            my $relay = Relay->new($mode->{proxied} ? $proxy_port : $nginx->port);
            my @channels = @{ $mode->{channels} };
            my $pub = ($mode->{exact} ? '/exact' : '') . '/pub?id=';
            $nginx->delete("/pub?id=$_") for grep { $nginx->get("/pub?id=$_")->status == 200 } @channels;
            my @expected;
            my $publish = sub ($n) {
                my ($channel, $text) = ($channels[ $n % @channels ], qq({"n":$n,"text":"ü \\"quoted\\" {}"}));
                my $answer = eval { $nginx->post("$pub$channel", $text) } // $nginx->post("$pub$channel", $text);
                is $answer->status, 200, 'published' or return if $answer->status != 200;
                push @expected, $n;
                return $answer->header('X-Nginx-PushStream-Event-Id');
            };
            my $numbers = sub { [ map { ref ? $_->{n} : $json->decode($_)->{n} } @{ shown() } ] };
            my $arrives = sub ($name) {
                ok wait_until(sub { @{ shown() } >= @expected }, 20), "$name: everything arrives";
                my $seen = $numbers->();
                # By time and tag a poll gets several messages channel by channel.
                $seen = [ sort { $a <=> $b } @$seen ] if $mode->{exact};
                is_deeply $seen, \@expected, "$name: once and in order"
                    or diag explain variable('warnings');
            };

            # The application asks for the position before it makes the page.
            my $position = $publish->(0) // '';
            @expected = ();
            $publish->(1) if !$mode->{exact};
            my $example = $example{ $mode->{example} };
            $example =~ s{"/poll/}{"/exact/poll/} or die if $mode->{exact};
            open_page($nginx, $relay, $example, $position);
            ok wait_until(sub { subscribers($nginx, $channels[0]) >= 1 }, 20), 'the page subscribes';
            $publish->(2);
            $arrives->('from its position on');

            $relay->cut(100, 1500);
            my $last = 2;
            while ($last < $count || $relay->cuts < 5 && $last < 50 * $count) {
                $publish->(++$last);
                sleep 0.02;
                $nginx->reload if $last == int $count / 2 && !$mode->{exact};
            }
            $relay->pass;
            $arrives->('cut');
            cmp_ok $relay->cuts, '>=', 5, $relay->cuts . ' connections were cut';

            set_refusing($nginx, 1);
            my $before = requests($nginx, qr/$mode->{url}.*" 503 /);
            $relay->close_all;
            ok wait_until(sub { subscribers($nginx, $channels[0]) == 0 }, 20), 'its connection ends';
            $relay->pass;
            ok wait_until(sub { requests($nginx, qr/$mode->{url}.*" 503 /) > $before + 1 }, 20), 'it asks again and again, and is refused';
            $publish->($last + $_) for 1 .. 4;
            set_refusing($nginx, 0);
            $arrives->('refused');
            is_deeply variable('gaps'), [], 'no gap is told';
            is_deeply variable('ends'), [], 'and no end';

            if ($mode->{example} eq 'join') {
                ok $browser->js('return say(arguments[0])', "7 chat.x forged\n-2  lobby "), 'it sends';
                ok wait_until(sub { shown()->[-1] =~ /forged/ }, 10), 'and gets its own message back';
                is shown()->[-1], "7 chat.x forged\n-2  lobby ", 'which is a text, whatever it pretends to be';
                $browser->js('return say(arguments[0])', '');
            }
            if ($mode->{name} eq 'stream') {
                sleep 0.7;
                is scalar @{ shown() }, scalar @expected, 'pings are no messages';
            }
            $nginx->delete("/pub?id=$channels[-1]");
            ok wait_until(sub { @{ variable('ends') } }, 20), 'the end of a channel';
            is_deeply variable('ends'), [ $channels[-1] ], 'is told once';
            close_page($nginx);
        };
    }

    subtest 'jsonp' => sub {
        my $relay = Relay->new($nginx->port);
        my $position = $nginx->post('/pub?id=news', '{"n":0}')->header('X-Nginx-PushStream-Event-Id');
        open_page($nginx, $relay, $example{jsonp}, $position);
        for my $n (1 .. 5) {
            $nginx->post('/pub?id=news', qq({"n":$n}));
            sleep 2.5 if $n == 2;
        }
        ok wait_until(sub { @{ shown() } >= 5 }, 20), 'all messages, also after a time limit';
        is_deeply [ map { $_->{n} } @{ shown() } ], [ 1 .. 5 ], 'once and in order';
        ok wait_until(sub { subscribers($nginx, 'news') == 1 }, 20), 'it waits again';
        $nginx->delete('/pub?id=news');
        ok wait_until(sub { "@{ variable('ends') }" eq 'news' }, 20), 'the end of the channel';
        close_page($nginx);
    };

    subtest 'pages of another origin' => sub {
        my $relay = Relay->new($nginx->port);
        open_page($nginx, $relay, 'document.cookie = "session=1; path=/";' . $example{credentials});
        ok wait_until(sub { subscribers($nginx, 'news') == 1 }, 20), 'with its cookie it may subscribe';
        $nginx->post('/pub?id=news', '{"n":1}');
        ok wait_until(sub { @{ shown() } }, 20), 'and read';
        open_page($nginx, $relay, 'document.cookie = "session=1; path=/";' . $example{credentials} =~ s/true/false/r);
        ok wait_until(sub { variable('source.readyState') == 2 }, 20), 'without withCredentials the cookie stays at home';
        open_page($nginx, $relay, 'document.cookie = "session=; path=/; max-age=0";' . $example{credentials});
        ok wait_until(sub { variable('source.readyState') == 2 }, 20), 'without a cookie it may not';
        close_page($nginx);
        my $other = $nginx->get('/shared/news', Cookie => 'session=1', Origin => 'http://127.0.0.1:1', 'X-Nginx-PushStream-Mode' => 'polling');
        like $other->header('Access-Control-Expose-Headers'), qr/Etag, X-Nginx-PushStream-Gap, X-Nginx-PushStream-Event-Id/, 'headers that such pages may read';
        is $other->header('Access-Control-Allow-Credentials'), 'true', 'also with cookies';
        my $foreign = $nginx->get('/shared/news', Cookie => 'session=1', Origin => 'http://evil.example', 'X-Nginx-PushStream-Mode' => 'polling');
        is $foreign->header('Access-Control-Allow-Origin'), undef, 'others are not let in';
        is $nginx->get('/chat/lobby', PushStream::WebSocket::handshake(), Origin => 'http://evil.example')->status, 403, 'not by WebSocket either';
    };

    subtest 'the end of a channel for good' => sub {
        my $relay = Relay->new($nginx->port);
        for my $away (0, 1) {
            my $position = $nginx->post('/pub?id=match-7', '{"n":0}')->header('X-Nginx-PushStream-Event-Id');
            open_page($nginx, $relay, $example{live}, $position);
            ok wait_until(sub { subscribers($nginx, 'match-7') == 1 }, 20), 'it follows';
            $nginx->post('/pub?id=match-7', '{"n":1}');
            ok wait_until(sub { @{ shown() } }, 20), 'and reads';
            if ($away) {
                $relay->close_all;
                ok wait_until(sub { subscribers($nginx, 'match-7') == 0 }, 20), 'it is away';
            }
            $nginx->delete('/pub?id=match-7');
            $relay->pass;
            ok wait_until(sub { @{ variable('ends') } }, 20), 'it learns of the end';
            is_deeply variable('ends'), [ $away ? '' : 'match-7' ], $away ? 'though it was away' : 'by the notice';
            close_page($nginx);
        }
    };
};

with_nginx $conf =~ s/%%STORED%%/3/r, sub ($nginx) {
    for my $mode ((grep { !$_->{exact} } @modes), { name => 'jsonp', example => 'jsonp', channels => ['news'] }) {
        subtest "$mode->{name}: away for too long" => sub {
            my $relay = Relay->new($nginx->port);
            my $channel = $mode->{channels}[0];
            my $position = $nginx->post("/pub?id=$channel", '{"n":0}')->header('X-Nginx-PushStream-Event-Id');
            open_page($nginx, $relay, $example{ $mode->{example} }, $position);
            ok wait_until(sub { subscribers($nginx, $channel) >= 1 }, 20), 'the page subscribes';
            $nginx->post("/pub?id=$channel", '{"n":1}');
            ok wait_until(sub { @{ shown() } == 1 }, 20), 'it reads';
            # JSONP is for pages of another origin, which do not come through the relay.
            set_refusing($nginx, 1);
            $relay->close_all;
            ok wait_until(sub { subscribers($nginx, $channel) == 0 }, 20), 'it is away';
            $nginx->post("/pub?id=$channel", qq({"n":$_})) for 2 .. 6;
            set_refusing($nginx, 0);
            $relay->pass;
            ok wait_until(sub { @{ shown() } >= 4 }, 20), 'it comes back';
            is_deeply [ map { ref ? $_->{n} : $json->decode($_)->{n} } @{ shown() } ], [ 1, 4, 5, 6 ], 'and gets what is there';
            is_deeply variable('gaps'), [$channel], 'with a notice';
            close_page($nginx);
        };
    }
};

# --- what is said of ends ---

with_nginx $conf =~ s/%%STORED%%/1000/r, sub ($nginx) {
    open my $file, '>', $nginx->dir . '/page' or die $!;
    print {$file} <<'HTML';
<!doctype html><title>ends</title><script>
const seen = {}, open = {};
const socket = (name, path) => {
    const it = open[name] = new WebSocket(location.origin.replace("http", "ws") + path), log = seen[name] = [];
    it.onopen = () => log.push("open");
    it.onmessage = (event) => log.push(event.data);
    it.onclose = ({ code, reason }) => log.push(`${code} ${reason}`.trim());
};
const source = (name, path) => {
    const it = open[name] = new EventSource(path), log = seen[name] = [];
    it.onopen = () => log.push("open");
    it.onerror = () => log.push(["connecting", "open", "closed"][it.readyState]);
};
</script>
HTML
    close $file;
    $browser->open_url('http://127.0.0.1:' . $nginx->port . '/page');
    my $opens = sub ($kind, $name, $path) { $browser->js("$kind(...arguments)", $name, $path) };
    my $seen = sub ($name) { $browser->js('return seen[arguments[0]]', $name) };
    my $ends = sub ($name, $expected, $what) {
        wait_until { @{ $seen->($name) } >= @$expected } 20;
        is_deeply [ @{ $seen->($name) }[ 0 .. $#$expected ] ], $expected, $what;
    };

    $opens->(socket => ttl => '/end/ws/ttl');
    $ends->(ttl => [ 'open', '1005' ], 'WebSocket, the end of its time: 1005');
    $opens->(socket => refused => '/end/ws/refused');
    $ends->(refused => [ 'open', '1008 {"http_status": 403, "explain":"Subscriber could not create channels."}' ], 'refused by the module: open, then 1008');
    $opens->(socket => denied => '/status/403');
    $ends->(denied => ['1006'], 'refused by nginx: 1006');
    $opens->(socket => $_ => "/end/ws?id=$_") for qw(long binary gone mine reload);
    $opens->(socket => both => '/end/ws?id=gone/stays');
    $opens->(socket => echo => '/end/ws/echo');
    wait_until { (grep { @{ $seen->($_) } } qw(long binary gone mine reload both echo)) == 7 } 20;
    $browser->js('open.long.send("x".repeat(2000)); open.binary.send(new Uint8Array([1])); open.mine.close(4001); open.echo.send(""); open.echo.send("echo")');
    $ends->(long => [ 'open', '1009' ], 'a message that is too long: 1009');
    $ends->(binary => [ 'open', '1005' ], 'a binary message: 1005');
    $ends->(mine => [ 'open', '4001' ], 'closed by the page: its own code');
    $ends->(echo => [ 'open', 'echo' ], 'the sender gets its message back, and no empty one');
    $nginx->delete('/pub?id=gone', 'Content-Type' => 'text/plain');
    my $notice = qq({"id":-2,"event":"","channel":"gone","data":"deleted"}\n);
    $ends->(gone => [ 'open', $notice, '1005' ], 'the last channel deleted: the notice, then 1005');
    $ends->(both => [ 'open', $notice ], 'one of several: the notice');
    is scalar @{ $seen->('both') }, 2, 'and it goes on';

    $opens->(source => $_ => "/status/$_") for 204, 403, 404, 429, 500, 502, 503, 507;
    $ends->($_ => ['closed'], "EventSource, $_: closed") for 204, 403, 404, 429, 500, 502, 503, 507;
    $opens->(source => ttl_source => '/end/ev/ttl');
    $ends->(ttl_source => [ 'open', 'connecting', 'open' ], 'the end of its time: it comes again');
    $opens->(source => deleted => '/end/ev?id=deleted');
    wait_until { @{ $seen->('deleted') } } 20;
    $nginx->delete('/pub?id=deleted');
    $ends->(deleted => [ 'open', 'connecting', 'open' ], 'a deleted channel: it comes again');
    ok wait_until(sub { subscribers($nginx, 'deleted') == 1 }, 20), 'and makes it anew';

    $nginx->reload;
    $ends->(reload => ['open'], 'a reload hands it over');
    $nginx->reload($conf =~ s/%%STORED%%/1000/r =~ s/(?=push_stream_shared_memory_size)/push_stream_handover off; /r);
    $ends->(reload => [ 'open', '1005' ], 'a reload without that: 1005');
    $opens->(socket => killed => '/end/ws?id=killed');
    wait_until { @{ $seen->('killed') } } 20;
    $nginx->kill_worker($_) for $nginx->worker_pids;
    $ends->(killed => [ 'open', '1006' ], 'a killed worker: 1006');
    close_page($nginx);

    # A page cannot be made to read slowly.
    my $slow = PushStream::WebSocket->new($nginx, '/end/ws/slow', receive_buffer => 4096);
    my $publisher = $nginx->connect;
    for (1 .. 2000) {
        $publisher->request(POST => '/pub?id=slow', body => '"' . 'x' x 8000 . '"');
        last if $_ % 50 == 0 && subscribers($nginx, 'slow') == 0;
    }
    is subscribers($nginx, 'slow'), 0, 'too slow: it is gone';
    my $frames = 0;
    my $opcode = -1;
    eval { while (1) { ($opcode) = $slow->next_frame; $frames++ } };
    isnt $opcode, PushStream::WebSocket::CLOSE, "after $frames messages without a close frame, which browsers call 1006";

    # Time and tag.
    my $publish = sub (@texts) { map { $nginx->post('/pub?id=tag', $_)->header('X-Nginx-PushStream-Event-Id') } @texts };
    my $first;
    for (1 .. 20) {
        $nginx->delete('/pub?id=tag') if $first;
        $publish->('1');
        $first = $nginx->get('/poll/tag.b1');
        $publish->('2');
        my $second = $nginx->get('/poll/tag.b1');
        last if $first->header('Last-Modified') eq $second->header('Last-Modified');
    }
    for my $path ('/poll/tag', '/exact/poll/tag') {
        my %time = ('If-Modified-Since' => $first->header('Last-Modified'));
        is $nginx->get($path, %time)->status, 304, "$path: by the time alone, what came in the same second is lost";
        like $nginx->get($path, %time, 'If-None-Match' => $first->header('Etag'))->body, qr/"data":2/, 'by time and tag it is not';
        is $nginx->get($path, 'If-None-Match' => $first->header('Etag'))->status, 304, 'the tag alone is no position';
    }

    # Templates.
    my $forged = '","from":"the boss';
    $nginx->post('/pub?id=forge', $forged);
    is decode_json($nginx->get('/forge?id=forge.b1')->body)->{from}, 'the boss', 'a text forges fields in quotes';
    $nginx->post('/pub?id=forge', '1,"channel":"x"');
    is decode_json($nginx->get('/whole?id=forge.b1')->body)->{channel}, 'x', 'and one that is no JSON where JSON stands';
    $nginx->post('/pub?id=forge', $_) for 'ü 9 9 x', "{}\n7 1 {}";
    my ($rest, @texts) = ($nginx->get('/sized?id=forge.b2')->body);
    while ($rest =~ s/^(\d+) (\d+) //) { push @texts, substr $rest, 0, $2, '' }
    is_deeply \@texts, [ 'ü 9 9 x', "{}\n7 1 {}" ], 'but not behind its size';
};

done_testing;
