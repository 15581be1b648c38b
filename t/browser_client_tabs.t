# The client for browsers (clients/js): one connection for all tabs, and what it does when it is refused, or held back.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib", "$FindBin::Bin/browser";
use PushStream::Test;

use ClientPage;
use WebDriver;

only_over_plain_http1 'the browser would have to be told of the certificate';
$ENV{TEST_WORKERS} //= '2';
my $TABS = 20;
my $browser = WebDriver->new(flags => ['--disable-features=BackForwardCache']);
my $texts = sub { ClientPage::texts($browser) };
my $log = sub ($name) { $browser->js('return log[arguments[0]]', $name) };
# The page that is in front.
my $start = sub ($url, %options) { ClientPage::start($browser, $url, %options) };

with_nginx $ClientPage::conf, sub ($nginx) {
    ClientPage::write_to($nginx);
    my $listening = sub ($channel) { ClientPage::listening($nginx, $channel) };
    my $publish = sub ($channel, $text) { $nginx->post("/pub?id=$channel", $text) };
    my $opens = sub { ClientPage::open_in($browser, $nginx->port) };
    my $shows = sub ($what, @expected) {
        wait_until { @{ $texts->() } >= @expected } 20;
        is_deeply $texts->(), \@expected, $what;
    };
    $opens->();

    subtest "$TABS tabs, one connection" => sub {
        my @windows = ($browser->window, map { $browser->new_window } 2 .. $TABS);
        my $in = sub ($window, $code) { $browser->switch_to($window); $code->() };
        for my $window (@windows) {
            $in->($window, sub {
                $opens->();
                $start->('/sub', channels => ['shared'], share => \1);
                ok wait_until(sub { $browser->js('return stream.state') eq 'open' }, 20), 'open';
            });
        }
        is $listening->('shared'), 1, 'one connection';
        my @expected;
        my $say = sub ($count) {
            for (1 .. $count) {
                push @expected, 'shared:' . @expected;
                $publish->('shared', $#expected);
            }
        };
        my $all_have_it = sub ($what) {
            my @wrong = grep {
                my $window = $_;
                $in->($window, sub {
                    wait_until { @{ $texts->() } >= @expected } 20;
                    "@{ $texts->() }" ne "@expected" && diag "got @{ $texts->() }";
                });
            } @windows;
            is @wrong, 0, "$what: every tab has each of " . @expected . ' messages once';
        };
        $say->(20);
        $all_have_it->('at first');

        for my $round (1 .. 2) {
            my ($leader) = grep { $in->($_, sub { $browser->js('return !!stream.transport') }) } @windows;
            $in->($leader, sub { $browser->close_window });
            my $closed = time;
            @windows = grep { $_ ne $leader } @windows;
            $say->(10);
            ok wait_until(sub { $listening->('shared') == 1 }, 10), 'another one leads';
            within time - $closed, 1, 'within a second';
            $say->(10);
            $all_have_it->("leader $round closed");
        }

        # A tab that knows where its page begins gets what the others had, and they do not get it again.
        my $window = $windows[0];
        my $from = $in->($window, sub { $browser->js('return log.message[4].id') });
        $in->($windows[-1], sub {
            $browser->js('stream.close()');
            $start->('/sub', channels => ['shared'], share => \1, position => $from);
            wait_until { @{ $texts->() } >= @expected - 5 } 20;
            is_deeply $texts->(), [ @expected[ 5 .. $#expected ] ], 'a tab that is behind catches up';
        });
        my $behind = pop @windows;
        $all_have_it->('while one caught up');
        is $listening->('shared'), 1, 'one connection';

        # The leader takes other channels; the others go on.
        my ($leader) = grep { $in->($_, sub { $browser->js('return !!stream.transport') }) } @windows;
        $in->($leader, sub { $browser->js('stream.subscribe("more")') });
        ok wait_until(sub { $listening->('shared') == 2 && $listening->('more') == 1 }, 20), 'it has one of its own';
        $publish->('more', 'for one');
        $in->($leader, sub { $shows->('the new channel', @expected, 'more:for one') });
        @windows = grep { $_ ne $leader } @windows;
        $say->(1);
        $all_have_it->('the others');
        for my $window (@windows, $behind) { $in->($window, sub { $browser->close_window }) }
        $browser->switch_to($leader);
        $browser->js('stream.close()');
        ok wait_until(sub { $listening->('shared') == 0 }, 10), 'nobody is left';
    };

    subtest 'the process of the leading tab is killed' => sub {
        my $first = $browser->window;
        my @windows = map { $browser->new_window } 1 .. 4;
        my $in = sub ($window, $code) { $browser->switch_to($window); $code->() };
        for my $window (@windows) {
            $in->($window, sub {
                $opens->();
                $start->('/sub', channels => ['killed'], share => \1);
                $browser->js('window.opened = []; stream.on("state", (state) => state === "open" && opened.push(Date.now() / 1000))');
                ok wait_until(sub { $browser->js('return stream.state') eq 'open' }, 20), 'open';
            });
        }
        is $listening->('killed'), 1, 'one connection';
        my @expected;
        my $say = sub ($count) {
            for (1 .. $count) {
                push @expected, 'killed:' . @expected;
                $publish->('killed', $#expected);
            }
        };
        for my $round (1 .. 2) {
            my ($leader) = grep { $in->($_, sub { $browser->js('return !!stream.transport') }) } @windows;
            $say->(10);
            # What comes while it is busy dies with it, and has been seen by nobody.
            $in->($leader, sub { $browser->js('new BroadcastChannel("work").onmessage = () => { for (const end = Date.now() + 60_000; Date.now() < end; ); }') });
            @windows = grep { $_ ne $leader } @windows;
            $browser->switch_to($windows[0]);
            my $killed = $browser->kill_page(sub { $browser->js('new BroadcastChannel("work").postMessage("")') }, sub { $say->(10) });
            $say->(10);
            my $next;
            ok wait_until(sub {
                ($next) = grep { $in->($_, sub { $browser->js('return !!stream.transport && stream.state === "open"') }) } @windows;
                return $next;
            }, 20), 'another one leads';
            my $took = $in->($next, sub { $browser->js('return opened.at(-1)') }) - $killed;
            cmp_ok $took, '>', 0, 'since then';
            within $took, 1, sprintf 'within a second: %.0f ms', $took * 1000;
            $say->(10);
            for my $window (@windows) {
                $in->($window, sub { $shows->("a tab has each of " . @expected . ' messages once', @expected) });
            }
            ok wait_until(sub { $listening->('killed') == 1 }, 10), 'one connection';
            ok !eval { $in->($leader, sub { $browser->js('return 1') }) }, 'and the one that led is dead';
        }
        for my $window (@windows) { $in->($window, sub { $browser->close_window }) }
        $browser->switch_to($first);
    };

    subtest 'channels come and go' => sub {
        $start->('/sub/', channels => ['one/1']);
        ok wait_until(sub { $listening->('one%2F1') == 1 || $listening->('1') == 1 }, 20), 'connected';
        $browser->js('stream.close()');
        $start->('/sub', channels => ['one']);
        ok wait_until(sub { $listening->('one') == 1 }, 20), 'connected';
        $publish->('one', 'a');
        $shows->('a message', 'one:a');
        $browser->js('stream.subscribe("two"); stream.unsubscribe("one")');
        $publish->('two', 'b');
        $shows->('what was published meanwhile', 'one:a', 'two:b');
        ok wait_until(sub { $listening->('one') == 0 }, 20), 'and not the other any more';
        $nginx->delete('/pub?id=two');
        ok wait_until(sub { @{ $log->('deleted') } }, 10), 'told of a deleted channel';
    };

    subtest 'a token that has ended' => sub {
        $browser->js('const tokens = ["bad", "good"]; start("/guarded", { channels: ["g"], token: async () => tokens.shift() })');
        ok wait_until(sub { $listening->('g') == 1 }, 20), 'the next one is taken';
        is $log->('error')->[0]{status}, 401, 'it was refused';
        is scalar @{ $log->('expired') }, 1, 'and that is an event';
        is $browser->js('return stream.transport'), 'fetch', 'an EventSource cannot send headers';
        # One that ends soon is renewed before, and the stream goes on.
        $browser->js('const jwt = (seconds) => `x.${btoa(JSON.stringify({ exp: Math.floor(Date.now() / 1000) + seconds }))}.y`; window.asked = 0;
            start("/sub", { channels: ["g"], tokenArgument: "token", token: () => { asked++; return jwt(asked < 3 ? 2 : 3600) } })');
        $publish->('g', 'early');
        ok wait_until(sub { $browser->js('return asked') == 3 }, 30), 'asked before it ends';
        $publish->('g', 'late');
        ok wait_until(sub { ($texts->()->[-1] // '') eq 'g:late' }, 20), 'and goes on';
        is_deeply $log->('error'), [], 'without an error';
    };

    subtest 'refused for a while' => sub {
        open my $file, '>', $nginx->dir . '/busy' or die $!;
        close $file;
        $start->('/busy', channels => ['b']);
        ok wait_until(sub { grep { ($_->{status} // 0) == 503 } @{ $log->('error') } }, 20), 'it is told why, and by whom';
        my ($error) = grep { $_->{status} } @{ $log->('error') };
        cmp_ok $error->{retryIn}, '>=', 1000, 'not before Retry-After';
        unlink $nginx->dir . '/busy';
        ok wait_until(sub { $listening->('b') == 1 }, 20), 'and comes in when it may';
    };

    subtest 'a proxy that holds everything back' => sub {
        $start->('/held', channels => ['h'], patience => 300);
        ok wait_until(sub { $browser->js('return stream.transport') eq 'poll' && $listening->('h') >= 1 }, 30), 'long polling passes';
        $publish->('h', "held \"$_\"\n") for 1 .. 3;
        ok wait_until(sub { @{ $texts->() } >= 3 }, 20), 'messages come';
        is_deeply $texts->(), [ map { qq(h:held "$_"\n) } 1 .. 3 ], 'each once';
        $start->('/held', channels => ['h'], patience => 300);
        ok wait_until(sub { $browser->js('return stream.state') eq 'open' }, 20), 'once more';
        is $browser->js('return stream.transport'), 'poll', 'what worked is remembered';
        is_deeply $log->('error'), [], 'so nothing else is tried';
    };

    subtest 'for await, publishing, and a page that is loaded again' => sub {
        $browser->js('start("/sub", { channels: ["p"], publish: "/pub", persist: true });
            window.read = []; (async () => { for await (const message of stream) read.push(message.data); read.push("end") })()');
        ok wait_until(sub { $listening->('p') == 1 }, 20), 'connected';
        $browser->js('stream.publish("from the page")');
        ok wait_until(sub { @{ $browser->js('return read') } == 1 }, 20), 'published';
        $browser->js('stream.close()');
        ok wait_until(sub { ($browser->js('return read.at(-1)') // '') eq 'end' }, 10), 'closing ends the loop';
        is_deeply $browser->js('return read'), [ 'from the page', 'end' ], 'behind what came';
        $publish->('p', 'while it was away');
        $opens->();
        $browser->js('start("/sub", { channels: ["p"], persist: true })');
        $shows->('where it was', 'p:while it was away');
    };

    subtest 'the examples' => sub {
        my $address = 'http://127.0.0.1:' . $nginx->port . '/examples';
        my $reads = sub ($css, $expected) {
            my $got;
            ok wait_until(sub { ($got = $browser->js('return document.querySelector(arguments[0])?.textContent', $css) // '') eq $expected }, 20),
                "shows $expected" or diag "got $got";
        };
        $browser->open_url("$address/plain.html");
        $reads->('#state', 'open');
        $publish->('news', '<b>news</b>');
        $reads->('#news li', '<b>news</b>');

        $publish->('answer-7', $_) for 'To', ' be';
        $browser->open_url("$address/llm.html?answer=7");
        $reads->('#answer', 'To be');
        $publish->('answer-7', " or\n");
        $publish->('answer-7', 'not');
        $reads->('#answer', "To be or\nnot");
        $nginx->post('/pub?id=answer-7', '.', 'Event-Type' => 'done');
        ok wait_until(sub { $browser->js('return !document.getElementById("end").hidden') }, 20), 'and its end';
        is $browser->js('return document.getElementById("answer").textContent'), "To be or\nnot", 'which is no part of it';
        ok wait_until(sub { $listening->('answer-7') == 0 }, 10), 'nothing stays open';

        SKIP: {
            skip 'the React example is not built (scripts/test --only client)', 2 if !-e "$FindBin::Bin/../clients/js/dist/examples/react.js";
            $browser->open_url("http://127.0.0.1:" . $nginx->port . '/react');
            ok wait_until(sub { ($browser->js('return document.querySelector("p")?.dataset.state') // '') eq 'open' }, 20), 'the hook connects';
            $publish->('match-7', '2:1');
            $reads->('p', '2:1');
        }
    };

    subtest 'a page that is left' => sub {
        $browser->open_url('about:blank');
        ok wait_until(sub { $listening->('p') == 0 }, 10), 'is gone';
    };
};

done_testing;
