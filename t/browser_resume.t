# A real browser on a bad network: EventSource without a line of JavaScript for it, WebSocket and long polling with a few, on three
# channels at once. Connections are broken anywhere, nginx reloads, workers are killed; the page gets every message, in order.
#
# TEST_BROWSER_MESSAGES: how many; default 50.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib", "$FindBin::Bin/browser";
use PushStream::Test;

use JSON::PP qw(decode_json);
use Relay;
use WebDriver;

my $count = $ENV{TEST_BROWSER_MESSAGES} || 50;
$ENV{TEST_WORKERS} //= '2';

my $conf = <<'CONF';
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_shared_memory_size 64m;
    push_stream_channels_path $arg_id;
    push_stream_store_messages on;
    push_stream_last_event_id $arg_eventid;
    push_stream_resume ordered;
    push_stream_gap_notice on;
    push_stream_max_messages_stored_per_channel %%STORED%%;
    push_stream_longpolling_connection_ttl 1s;
    push_stream_eventsource_retry 1ms 20ms;
    push_stream_message_template '{"id":"~event-id~","channel":"~channel~","text":"~text~"}\n';
    keepalive_requests 1000000;

    server {
        listen 127.0.0.1:%%PORT%% reuseport;

        location = /page { default_type text/html; root %%DIR%%; try_files /page.html =404; }
        location /pub { push_stream_publisher admin; push_stream_auto_event_id %%AUTO%%; }
        location /ev { push_stream_subscriber eventsource; }
        location /ws { push_stream_subscriber websocket; }
        location /wait { push_stream_subscriber long-polling; }
    }
}
CONF

my $page = <<'HTML';
<!doctype html><title>page</title><script>
const log = { ev: [], ws: [], wait: [] }, gaps = [], opened = { ev: 0, ws: 0 };
const take = (way, text) => { for (const line of text.split("\n")) if (line) log[way].push(JSON.parse(line)) };

const source = new EventSource("/ev?id=a/b/c");
source.onopen = () => opened.ev++;
source.onmessage = (event) => take("ev", event.data);
source.addEventListener("gap", (event) => gaps.push(JSON.parse(event.data)));

const position = { ws: "", wait: "" };
const move = (way) => { for (const message of log[way].slice(-1000)) if (message.id) position[way] = message.id };
const later = (again) => setTimeout(again, 5);
const talk = () => {
    const socket = new WebSocket(`ws://${location.host}/ws?id=a/b/c&eventid=${position.ws}`);
    socket.onopen = () => opened.ws++;
    socket.onmessage = (event) => { take("ws", event.data); move("ws") };
    socket.onclose = () => later(talk);
};
talk();
const poll = async () => {
    try {
        const answer = await fetch(`/wait?id=a/b/c&eventid=${position.wait}`, { cache: "no-store" });
        if (answer.status == 200) { take("wait", await answer.text()); move("wait") }
    } catch { }
    later(poll);
};
poll();
</script>
HTML

my $browser = WebDriver->new;

# Opens the page through the relay and waits until the three of them listen.
sub open_page ($nginx, $relay) {
    open my $file, '>', $nginx->dir . '/page.html' or die $!;
    print {$file} $page;
    close $file;
    $browser->open_url('http://127.0.0.1:' . $relay->port . '/page');
    wait_until { (eval { $nginx->get('/pub?id=a')->json->{subscribers} } // 0) == 3 } 20 or die 'nobody listens';
}

sub seen ($way) { return $browser->js('return log[arguments[0]]', $way) }
sub last_seen ($way) { return $browser->js('return log[arguments[0]].at(-1)', $way) // {} }
# The stream and the socket were broken so often that the rest means something.
sub judge_cuts ($relay) {
    my $opened = $browser->js('return opened');
    diag $relay->cuts . " connections cut, EventSource opened $opened->{ev} times, WebSocket $opened->{ws} times" if $count > 1000;
    my $least = $count >= 20_000 ? 50 : 2;
    cmp_ok $opened->{$_}, '>', $least, "$_: begun $opened->{$_} times" for qw(ev ws);
    cmp_ok $relay->cuts, '>', 5, 'after ' . $relay->cuts . ' broken connections';
}

sub count_seen ($way) { return $browser->js('return log[arguments[0]].length', $way) }

# Breaks what can be broken while `publish` is called for each number.
sub publish_and_break ($nginx, $relay, $publish) {
    my $publisher = $nginx->connect;
    my $send = sub ($n) {
        my ($channels, %headers) = $publish->($n);
        $publisher->request(POST => "/pub?id=$channels", headers => \%headers, body => "m$n")->status == 200 or die;
    };
    # A position to begin with, on a good network.
    $send->(0);
    wait_until { !grep { !count_seen($_) } qw(ev ws wait) } 20 or die 'the first message did not arrive';
    $relay->cut($count > 1000 ? (1_500, 25_000) : (100, 1500));
    for my $n (1 .. $count) {
        my $sent = eval { $send->($n); 1 };
        if (!$sent) {
            # With an id of its own it could be sent again; this one was on its way when its worker was killed.
            $publisher = $nginx->connect;
            $send->($n);
        }
        sleep 0.01 if $count <= 1000;
        if ($n == int $count / 3) { $nginx->reload; $publisher = $nginx->connect }
        if ($n == int $count * 2 / 3) {
            $publisher->close;
            $nginx->kill_worker(($nginx->worker_pids)[0]);
            $publisher = $nginx->connect;
        }
    }
    # An answer to a poll is worth nothing unless all of it arrives.
    $relay->pass;
}

with_nginx $conf =~ s/%%AUTO%%/on/r =~ s/%%STORED%%/1000000/r, sub ($nginx) {
    my $relay = Relay->new($nginx->port);
    open_page($nginx, $relay);
    publish_and_break($nginx, $relay, sub ($n) { [qw(a b c)]->[ $n % 3 ] });
    my @expected = map { [qw(a b c)]->[ $_ % 3 ] . ":m$_" } 0 .. $count;
    for my $way (qw(ev ws wait)) {
        wait_until { count_seen($way) >= @expected } 20 + $count / 100;
        is_deeply [ map { "$_->{channel}:$_->{text}" } @{ seen($way) } ], \@expected, "$way: every message once and in order";
    }
    is_deeply $browser->js('return gaps'), [], 'and no notice of a gap';
    judge_cuts($relay);
    $browser->open_url('about:blank');
};

with_nginx $conf =~ s/%%AUTO%%/off/r =~ s/%%STORED%%/1000000/r, sub ($nginx) {
    my $relay = Relay->new($nginx->port);
    open_page($nginx, $relay);
    my @sets = ('a', 'a/b', 'c/b/a', 'b', 'c/a');
    my $channels = sub ($n) { $sets[ $n % @sets ] };
    publish_and_break($nginx, $relay, sub ($n) { ($channels->($n), 'Event-Id' => $n + 1) });
    for my $way (qw(ev ws wait)) {
        wait_until { my $last = last_seen($way); ($last->{text} // '') eq "m$count" && $last->{id} } 20 + $count / 100;
        my @seen = @{ seen($way) };
        is_deeply [ map { $_->{text} } grep { $_->{id} } @seen ], [ map { "m$_" } 0 .. $count ],
            "$way: every id once and in order";
        # A client that is cut between two copies gets the first again; none is missing, and nothing else comes twice.
        my (%copies, @wrong);
        my $complete = -1;
        for my $message (@seen) {
            my ($n) = $message->{text} =~ /^m(\d+)$/;
            push @wrong, $message->{text} if $n != $complete + 1;
            $copies{ $message->{channel} }++;
            next if !$message->{id};
            push @wrong, "$message->{text} in $_" for grep { !$copies{$_} } split m{/}, $channels->($n);
            ($complete, %copies) = ($n);
        }
        is "@wrong", '', "$way: all copies of each";
        my $copies = 0;
        $copies += split m{/}, $channels->($_) for 0 .. $count;
        diag "$way: " . @seen . " copies of $copies, " . (@seen - $copies) . ' of them again' if $count > 1000;
    }
    is_deeply $browser->js('return gaps'), [], 'and no notice of a gap';
    judge_cuts($relay);
    $browser->open_url('about:blank');
};

# Away for longer than messages are kept.
with_nginx $conf =~ s/%%AUTO%%/on/r =~ s/%%STORED%%/5/r, sub ($nginx) {
    my $relay = Relay->new($nginx->port);
    open_page($nginx, $relay);
    $nginx->post('/pub?id=a', 'm0');
    wait_until { count_seen('ev') } 20;
    $relay->close_all;
    wait_until { $nginx->get('/pub?id=a')->json->{subscribers} == 0 } 20 or die 'somebody is still there';
    $nginx->post('/pub?id=' . ($_ % 2 ? 'a' : 'b'), "m$_") for 1 .. 20;
    $relay->pass;
    wait_until { count_seen('ev') >= 11 } 20;
    is_deeply [ map { $_->{text} } @{ seen('ev') } ], [ 'm0', map { "m$_" } 11 .. 20 ], 'the page gets what is left';
    is_deeply [ sort map { $_->{channel} } @{ $browser->js('return gaps') } ], [qw(a b)], 'and is told where messages are missing';
    $browser->open_url('about:blank');
};

done_testing;
