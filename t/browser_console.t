# The console in a browser: what it shows and does, by keyboard, in dark and light, on a phone; axe finds nothing wrong with it.
#
# TEST_SCREENSHOTS: a directory for pictures of it.

use v5.36;
use utf8;
use FindBin;
use lib "$FindBin::Bin/lib", "$FindBin::Bin/browser";
use PushStream::Test;

use JSON::PP ();
use MIME::Base64 qw(decode_base64);
use WebDriver;

binmode Test::More->builder->$_, ':utf8' for qw(output failure_output todo_output);
only_over_plain_http1 'the browser would have to be told of the certificate';
$ENV{TEST_WORKERS} //= '2';

my $conf = <<'CONF';
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_shared_memory_size 1m;
    push_stream_on_full evict;
    keepalive_requests 1000000;
    push_stream_max_messages_stored_per_channel 100000;
    server {
        listen 127.0.0.1:%%PORT%%;
        location = /pub { push_stream_publisher admin; push_stream_channels_path $arg_id; push_stream_store_messages on; }
        location /sub { push_stream_subscriber eventsource; push_stream_channels_path $arg_id; }
        location = /look { push_stream_console; }
        location = /console {
            push_stream_console;
            push_stream_statistics_channels 20;
            push_stream_admin_api on;
            push_stream_channels_path $arg_id;
            push_stream_store_messages on;
        }
    }
}
CONF

my $browser = WebDriver->new;
# axe takes its time on a busy machine.
$browser->call(POST => '/timeouts', { script => 300_000 });
# It looks every two seconds, of which the test waits for many.
$browser->devtools('Page.addScriptToEvaluateOnNewDocument', { source => 'const later = setTimeout; window.setTimeout = (what, ms) => later(what, ms / 5);' });
my ($ENTER, $ESCAPE, $TAB, $SHIFT, $CONTROL, $RIGHT, $DELETE, $SPACE) = ("\x{e007}", "\x{e00c}", "\x{e004}", "\x{e008}", "\x{e009}", "\x{e014}", "\x{e017}", ' ');
my $text = sub ($css) { $browser->js('return document.querySelector(arguments[0])?.innerText ?? ""', $css) };
my $shows = sub ($css, $pattern, $name) {
    my $got = '';
    ok wait_until(sub { ($got = $text->($css)) =~ $pattern }, 20), $name or diag "$css says: $got";
};
my $type = sub (@keys) { $browser->call(POST => '/actions', { actions => [ { type => 'key', id => 'keys', actions => [ map { { type => 'keyDown', value => $_ }, { type => 'keyUp', value => $_ } } @keys ] } ] }) };
# One key while another is held.
my $chord = sub ($held, $key) { $browser->call(POST => '/actions', { actions => [ { type => 'key', id => 'keys', actions => [
    { type => 'keyDown', value => $held }, { type => 'keyDown', value => $key }, { type => 'keyUp', value => $key }, { type => 'keyUp', value => $held } ] } ] }) };
my $focus = sub () { $browser->js('return document.activeElement.id') };
# Goes to what is called so, forwards or backwards, as somebody without a mouse does.
my $go_to = sub ($id, $step = sub { $type->($TAB) }) {
    for (1 .. 60) {
        return pass "the keyboard gets to $id" if $focus->() eq $id;
        $step->();
    }
    fail "the keyboard gets to $id";
};
my $back_to = sub ($id) { $go_to->($id, sub { $chord->($SHIFT, $TAB) }) };
my $search = sub ($text) { $type->('/'); $chord->($CONTROL, 'a'); $type->($DELETE, split //, $text) };
my $axe = do { local (@ARGV, $/) = "$FindBin::Bin/../clients/js/node_modules/axe-core/axe.min.js"; -e $ARGV[0] ? <> : undef };
my $picture = sub ($name) {
    my $directory = $ENV{TEST_SCREENSHOTS} or return;
    open my $file, '>:raw', "$directory/console-$name.png" or die $!;
    print {$file} decode_base64($browser->call(GET => '/screenshot'));
};
my $scheme = sub ($value) { $browser->devtools('Emulation.setEmulatedMedia', { features => [ { name => 'prefers-color-scheme', value => $value } ] }) };
my $clean = sub ($name) {
    SKIP: {
        skip 'axe-core is not installed (scripts/test --only client)', 1 if !$axe;
        # The page's policy lets no other script in, but that of a driver.
        $browser->js($axe);
        my $found = $browser->call(POST => '/execute/async', { args => [], script =>
            'const done = arguments[0]; axe.run({ resultTypes: ["violations"] }).then(({ violations }) => done(violations.map(({ id, nodes }) => `${id}: ${nodes.map((node) => node.target).join(", ")}`)), (error) => done([String(error)]))' });
        is_deeply $found, [], "$name: axe finds nothing";
    }
};

with_nginx $conf, sub ($nginx) {
    my $address = 'http://127.0.0.1:' . $nginx->port;
    my @readers = map { $nginx->subscribe('/sub?id=news') } 1 .. 3;
    $nginx->post('/pub?id=news', qq({"number":$_,"text":"<b>bold</b>"}), 'Event-Id' => "id-$_", 'Event-Type' => 'note') for 1 .. 3;
    $nginx->post("/pub?id=sport-$_", 'x' x 50) for 1 .. 8;
    $nginx->post('/pub?id=a%20b%26c', 'odd');

    $browser->open_url("$address/console");
    $shows->('#state', qr/^live$/, 'it is live');
    $shows->('#health', qr/^All well: 3 subscribers, 10 channels, 12 messages stored, zone \d+ % full\.$/, 'health in words');
    $shows->('#workers', qr/^\d+ \(pid \d+\)\s+\d+\s+.*\n\d+ \(pid/, 'the workers');
    is $browser->js('return document.querySelectorAll("canvas").length'), 8, 'charts';
    ok wait_until(sub { ($browser->js('return document.querySelector("canvas").getAttribute("aria-label")') // '') =~ /^Subscribers: all 3, EventSource 3, .*; at most 3 in the last 1 minutes$/ }, 20),
        'which say what they show' or diag $browser->js('return document.querySelector("canvas").getAttribute("aria-label")');
    $go_to->('order');
    $type->($RIGHT, $RIGHT);
    $shows->('#channels', qr/^news\s+3\s/m, 'the busiest channels');
    ok $browser->js('const { data } = document.querySelector("canvas").getContext("2d").getImageData(0, 0, 300, 80); return data.some((value) => value)'), 'something is drawn';
    is_deeply $browser->js('return performance.getEntriesByType("resource").map(({ name }) => new URL(name).pathname).filter((path) => path !== "/console")'), [],
        'it talks to nothing but its own location';
    $clean->('light');
    $picture->('light');

    subtest 'by keyboard: a channel, its messages, a test message' => sub {
        $type->('/');
        is $focus->(), 'query', '/ goes to the search';
        $type->(split(//, 'news'), $ENTER);
        $shows->('#channel-title', qr/^news$/, 'a channel');
        is $focus->(), 'channel-title', 'has the focus';
        $shows->('#channel-figures', qr/^3 subscribers, 3 messages published, 3 stored\.$/, 'its figures');
        $shows->('#messages', qr/#3 · id id-3 · type note · .*\n\{"number":3,"text":"<b>bold<\/b>"\}\n[^#]*#2/s, 'its messages, as text, the newest first');
        is $browser->js('return document.querySelectorAll("#messages b").length'), 0, 'no markup of theirs';
        $go_to->('tail');
        $type->($SPACE);
        $nginx->post('/pub?id=news', 'live');
        $shows->('#messages', qr/^#4 · .*\nlive\n/, 'it follows');
        $go_to->('text');
        $type->(split(//, 'a test'), $TAB, split(//, 'try'), $ENTER);
        $shows->('#said', qr/^Published to 3 subscribers\.$/, 'published');
        $shows->('#messages', qr/^#5 · type try · .*\na test\n/, 'and there');
        my $event;
        do { $event = $readers[0]->event } until $event->{data} eq 'a test';
        is $event->{event}, 'try', 'a subscriber has it';
        $clean->('with a channel open');
        $picture->('channel');
    };

    subtest 'subscribers are sent away, after a question' => sub {
        $back_to->('away');
        $type->($ENTER);
        is $browser->js('return document.getElementById("confirm").open'), JSON::PP::true, 'a question';
        $type->($ENTER);
        is $browser->js('return document.getElementById("confirm").open'), JSON::PP::false, 'no';
        is $nginx->get('/pub?id=news')->json->{subscribers}, 3, 'they stay';
        is $focus->(), 'away', 'the focus is where it was';
        $type->($ENTER, $TAB, $ENTER);
        $shows->('#said', qr/^3 subscribers sent away\.$/, 'yes');
        ok wait_until(sub { $nginx->get('/pub?id=news')->json->{subscribers} == 0 }, 10), 'they are gone';
        $type->($ESCAPE);
        is $browser->js('return document.getElementById("channel").hidden'), JSON::PP::true, 'Esc closes the channel';
    };

    subtest 'search' => sub {
        $search->('sport-');
        $go_to->('by-prefix');
        $type->($ENTER);
        ok wait_until(sub { $browser->js('return document.querySelectorAll("#channels tr").length') == 8 }, 10), 'those that begin so';
        for (1 .. 20) { last if ($browser->js('return document.activeElement.dataset.channel') // '') eq 'sport-3'; $type->($TAB) }
        $type->($SPACE);
        $shows->('#channel-title', qr/^sport-3$/, 'one of them is opened by a key, too');
        $search->('a b&c');
        $type->($ENTER);
        $shows->('#channel-figures', qr/1 message published/, 'a name with odd letters');
        $shows->('#messages', qr/odd/, 'and its messages');
        $search->('nobody');
        $type->($ENTER);
        $shows->('#channel-figures', qr/^Channel does not exist\.$/, 'none');
        $type->($ESCAPE);
    };

    subtest 'a full zone, in words' => sub {
        my $client = $nginx->connect;
        $client->request(POST => '/pub?id=flood', body => 'x' x 4000) for 1 .. 400;
        my $more = sub { $client->request(POST => '/pub?id=flood', body => 'x' x 4000) for 1 .. 20; $text->('#health') =~ /^Zone (?:9\d|100) % full, evicting [\d.,]+[KM]? messages\/s .*raise push_stream_shared_memory_size/ };
        ok wait_until(sub { $more->() }, 20), 'evictions' or diag $text->('#health');
        $picture->('full');
    };

    subtest 'dark, and a phone' => sub {
        $scheme->('dark');
        $clean->('dark');
        $picture->('dark');
        $browser->devtools('Emulation.setDeviceMetricsOverride', { width => 360, height => 740, deviceScaleFactor => 2, mobile => JSON::PP::true });
        cmp_ok $browser->js('return document.documentElement.scrollWidth'), '<=', 360, 'no wider than the screen';
        $clean->('phone');
        $picture->('phone');
        $browser->devtools('Emulation.clearDeviceMetricsOverride');
        $scheme->('light');
    };

    subtest 'read-only without the admin API' => sub {
        $browser->open_url("$address/look");
        $shows->('#state', qr/^live$/, 'it is live');
        is $browser->js('return document.getElementById("by-prefix").hidden'), JSON::PP::true, 'no list';
        $shows->('#channels-note', qr/push_stream_statistics_channels/, 'says how to see the busiest');
        $browser->type_into('#query', "flood$ENTER");
        $shows->('#channel-figures', qr/messages published/, 'figures of a channel');
        $shows->('#read-only', qr/push_stream_admin_api on;/, 'says what more would need');
        is $browser->js('return document.getElementById("admin").hidden'), JSON::PP::true, 'and offers none of it';
    };

    subtest 'nginx goes' => sub {
        $nginx->stop;
        $shows->('#state', qr/^no answer for \d+ s/, 'it says so');
        $shows->('#health', qr/^nginx does not answer here: .* What is shown is old\.$/, 'in words');
    };
    $browser->open_url('about:blank');
};

done_testing;
