# What real browsers make of compressed streams: EventSource and fetch, in each coding, through several groups and pings, to a regular end.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib", "$FindBin::Bin/browser";
use PushStream::Test;

use Firefox;
use WebDriver;

$ENV{TEST_WORKERS} //= '2';

my $conf = <<'CONF';
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_shared_memory_size 16m;
    push_stream_channels_path $arg_id;
    push_stream_ping_message_interval 300ms;
    keepalive_requests 100000;

    server {
        listen 127.0.0.1:%%PORT%%;

        location = /page { default_type text/html; return 200 '<!doctype html><title>page</title>'; }
        location /pub { push_stream_publisher admin; }
        location /gzip/ev { push_stream_subscriber eventsource; push_stream_compress gzip; }
        location /zstd/ev { push_stream_subscriber eventsource; push_stream_compress zstd; }
        location /gzip/st { push_stream_subscriber; push_stream_compress gzip; push_stream_ping_message_interval 10m;
            push_stream_message_template "~text~\n"; push_stream_footer_template "end\n"; }
        location /zstd/st { push_stream_subscriber; push_stream_compress zstd; push_stream_ping_message_interval 10m;
            push_stream_message_template "~text~\n"; push_stream_footer_template "end\n"; }
        location /status { push_stream_channels_statistics; }
    }
}
CONF

my $script = <<'JS';
window.log = { events: [], stream: "", coding: null, ended: false, failed: null };
const [coding, channel] = arguments;
const source = new EventSource(`/${coding}/ev?id=${channel}`);
source.onmessage = (event) => log.events.push(event.data);
(async () => {
    try {
        const answer = await fetch(`/${coding}/st?id=${channel}`, { cache: "no-store" });
        log.coding = answer.headers.get("Content-Encoding");
        const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
        for (let piece; !(piece = await reader.read()).done;) log.stream += piece.value;
        log.ended = true;
    } catch (error) { log.failed = String(error) }
})();
JS

only_over_plain_http1 'the browser would have to be told of the certificate';
my %browser = (Chromium => WebDriver->new);
# Else it asks for zstd over TLS only.
$browser{Firefox} = Firefox->new('network.http.accept-encoding' => 'gzip, deflate, zstd') if Firefox->program;

sub post_text ($n) {
    my $noise = $n * 2654435761 % 2**32;
    return sprintf('{"id":%d,"author":"reader%d","body":"It is not quite clear what %x is about"}', $n, $noise % 997, $noise) . 'x' x ($n % 50 ? 0 : 20_000);
}

with_nginx $conf, sub ($nginx) {
    for my $name (sort keys %browser) {
        reads($nginx, $browser{$name}, $name, $_) for qw(gzip zstd);
    }
};

sub reads ($nginx, $browser, $name, $coding) {
    my ($channel, $count) = ("$name-$coding", 200);
    my $base = 'http://127.0.0.1:' . $nginx->port;
    $browser->open_url("$base/page");
    $browser->js($script, $coding, $channel);
    ok wait_until { ($nginx->figures($channel)->{subscribers} // 0) == 2 }, "$name, $coding: two listen";
    my $publisher = $nginx->connect;
    my ($wrong, @newcomers) = 0;
    for my $n (1 .. $count) {
        $publisher->request(POST => "/pub?id=$channel", body => post_text($n));
        # Each message at once: nothing waits in the decoder for the next one.
        next if $n % 40;
        my $seen = wait_until { $browser->js('return log.events.length') == $n };
        $wrong++ if !$seen;
        # Newcomers who are not in the groups, so that these begin again some time.
        push @newcomers, map { $nginx->subscribe("/$coding/$_?id=$channel", 'Accept-Encoding' => $coding) } 'ev', 'st';
    }
    is $wrong, 0, 'the browser has each event at once';
    is $browser->js('return log.failed'), undef, 'no failure';
    my $events = $browser->js('return log.events');
    is_deeply $events, [ map { post_text($_) } 1 .. $count ], 'all events';
    is $browser->js('return log.coding'), $coding, 'in the coding';
    $publisher->request(DELETE => "/pub?id=$channel");
    ok wait_until { $browser->js('return log.ended') }, 'the stream ends without an error';
    is $browser->js('return log.stream'), join('', map { "$_\n" } map({ post_text($_) } 1 .. $count), 'Channel deleted', 'end'), 'and is whole';
}

done_testing;
