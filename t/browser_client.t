# The client for browsers (clients/js), in Chromium and in Firefox: each transport on a bad network, and with tokens that end.
#
# TEST_BROWSER_CUTS: how many connections are cut in each browser; default 48 in Chromium, 12 in Firefox.
# TEST_BROWSER_EXPIRIES: how many tokens end in each browser; default 4.
# TEST_BROWSER: one of the two.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib", "$FindBin::Bin/browser";
use PushStream::Test;
use PushStream::Token;

use ClientPage;
use Firefox;
use Relay;
use WebDriver;

only_over_plain_http1 'the browser would have to be told of the certificate';
$ENV{TEST_WORKERS} //= '2';
my @TRANSPORTS = qw(eventsource fetch websocket poll);
my %LOCATION = (eventsource => 'sub', fetch => 'sub', websocket => 'ws', poll => 'poll');
my $expiries = ($ENV{TEST_BROWSER_EXPIRIES} || 4) / @TRANSPORTS;

my @claims = (push => { subscribe => [ 'token.*' ] });
token(@claims);
write_file(key_dir . '/keys.json', key_set('secret'));
my $keys = key_dir . '/keys.json';
my $guarded = join '', map {
    my ($name, $mode) = @$_;
    "location ~ ^/token/$name/(.+)\$ { push_stream_subscriber $mode; push_stream_channels_path \$1; push_stream_token required;
        push_stream_token_keys $keys; push_stream_token_from bearer query=token; push_stream_token_leeway 0s; }\n";
} [ sub => 'eventsource' ], [ ws => 'websocket' ], [ poll => 'long-polling' ];
my $conf = $ClientPage::conf =~ s/(?=location = \/pub )/$guarded/r;

for (
    [ Chromium => 48, sub { WebDriver->new(flags => ['--disable-features=BackForwardCache']) } ],
    [ Firefox => 12, sub { Firefox->new } ],
) {
    my ($name, $default, $opens) = @$_;
    next if ($ENV{TEST_BROWSER} || $name) ne $name;
    SKIP: {
        skip 'scripts/setup browser installs Firefox', 1 if $name eq 'Firefox' && !Firefox->program;
        my $browser = $opens->();
        my $cuts = ($ENV{TEST_BROWSER_CUTS} || $default) / @TRANSPORTS;
        subtest $name => sub {
            with_nginx $conf, sub ($nginx) {
                ClientPage::write_to($nginx);
                for my $transport (@TRANSPORTS) {
                    subtest "$transport, connections cut anywhere" => sub { cut_connections($nginx, $browser, $transport, $cuts) };
                    subtest "$transport, tokens that end" => sub { end_tokens($nginx, $browser, $transport, $expiries) };
                }
            };
        };
    }
}

# Publishes to two channels; knows what is to come, and looks whether it did.
sub publisher ($nginx, $browser, $a, $b) {
    my @expected;
    my $publish = sub ($count = 1) {
        for (1 .. $count) {
            my $channel = @expected % 3 ? $a : $b;
            my $text = qq(text "$#expected"\n\\\xc3\xbc</script>);
            push @expected, "$channel:$text";
            $nginx->post("/pub?id=$channel", $text);
        }
    };
    my $behind = sub { @expected - $browser->js('return log.message.length') };
    my $each_once = sub {
        wait_until { $behind->() <= 0 } 30;
        is_deeply [ map { utf8::encode($_); $_ } @{ ClientPage::texts($browser) } ], \@expected, @expected . ' messages, each once and in order';
        is_deeply $browser->js('return log.gap'), [], 'no gap';
    };
    return ($publish, $behind, $each_once);
}

sub cut_connections ($nginx, $browser, $transport, $cuts) {
    my $relay = Relay->new($nginx->port);
    ClientPage::open_in($browser, $relay->port);
    my ($a, $b) = map { "$_-$transport" } 'a', 'b';
    my ($publish, $behind, $each_once) = publisher($nginx, $browser, $a, $b);
    ClientPage::start($browser, "/$LOCATION{$transport}", channels => [ $a, $b ], transport => $transport);
    my $listening = sub ($channel) { ClientPage::listening($nginx, $channel) };
    ok wait_until(sub { $listening->($a) == 1 && $listening->($b) == 1 }, 20), 'connected';
    $publish->();
    ok wait_until(sub { $behind->() == 0 }, 20), 'the first message, on a good network';
    $relay->cut(300, 3000);
    my $end = time + (30 + 2 * $cuts) * PushStream::Nginx::slowness();
    while ($relay->cuts < $cuts && time < $end) {
        $publish->(5);
        wait_until { $behind->() <= 20 } 20;
    }
    $nginx->reload;
    $publish->(5);
    $relay->pass;
    $publish->();
    $each_once->();
    cmp_ok $relay->cuts, '>=', $cuts, $relay->cuts . ' cuts';
    $browser->js('stream.close()');
    ok wait_until(sub { $listening->($a) == 0 }, 10), 'closed';
    is $browser->js('return log.state.at(-1)'), 'closed', 'and says so';
}

# Every other token is used until the page is told that it has ended, or, by an EventSource, which is not told of a refusal, for a while
# behind its end; the others are renewed in time.
sub end_tokens ($nginx, $browser, $transport, $expiries) {
    ClientPage::open_in($browser, $nginx->port);
    my ($a, $b) = map { "token.$_-$transport" } 'a', 'b';
    my ($publish, $behind, $each_once) = publisher($nginx, $browser, $a, $b);
    my $now = int time;
    my $patience = (30 + 10 * $expiries) * PushStream::Nginx::slowness();
    my @tokens = tokens(map { { claims => { @claims, exp => $now + $_ } } } 0 .. $patience + 60);
    $browser->js('
        const [tokens, now, options, url] = arguments;
        window.asked = 0;
        window.begin = (token) => start(url, { ...options, token, tokenArgument: /eventsource|websocket/.test(options.transport) ? "token" : undefined });
        let expires = 0;
        let told = 0;
        begin(() => {
            const seconds = Date.now() / 1000;
            const surprise = asked % 2;
            if (!surprise || log.expired.length > told || (options.transport === "eventsource" && seconds > expires + 1)) {
                asked++;
                told = log.expired.length;
                // Good for one to two seconds.
                expires = Math.floor(seconds) + 2;
            }
            const token = tokens[expires - now];
            return asked % 2 ? { token, expires: Infinity } : token;
        });',
        \@tokens, $now, { channels => [ $a, $b ], transport => $transport }, "/token/$LOCATION{$transport}");
    ok wait_until(sub { ClientPage::listening($nginx, $a) == 1 }, 20), 'connected';
    $publish->();
    ok wait_until(sub { $behind->() == 0 }, 20), 'the first message';
    my $end = time + $patience;
    my $asked;
    while (($asked = $browser->js('return asked')) <= $expiries && time < $end) {
        $publish->(3);
        sleep 0.05;
    }
    $publish->(3);
    $each_once->();
    cmp_ok $asked, '>', $expiries, $asked - 1 . ' tokens have ended';
    cmp_ok scalar @{ $browser->js('return log.expired') }, '>=', int(($expiries + 1) / 2), 'and the page was told of those that ended by surprise'
        if $transport ne 'eventsource';
    return $browser->js('stream.close()') if $transport !~ /eventsource|fetch/;
    # One that ends soon, so that the server warns at once, and is given again and again: that is no reason to ask for it all the time.
    my ($short) = tokens({ claims => { @claims, exp => int(time) + 25 } });
    $browser->js('window.asked = 0; const [token] = arguments; begin(() => (asked++, { token, expires: Infinity }))', $short);
    sleep 1;
    cmp_ok $browser->js('return asked'), '<=', 2, 'it is not asked for without a pause';
    $browser->js('stream.close()');
}

done_testing;
