# The client for browsers (clients/js): each transport on a bad network.
#
# TEST_BROWSER_CUTS: how many connections are cut for each transport; default 12.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib", "$FindBin::Bin/browser";
use PushStream::Test;

use ClientPage;
use Relay;
use WebDriver;

only_over_plain_http1 'the browser would have to be told of the certificate';
$ENV{TEST_WORKERS} //= '2';
my $cuts = $ENV{TEST_BROWSER_CUTS} || 12;
my $browser = WebDriver->new(flags => ['--disable-features=BackForwardCache']);
my $texts = sub { ClientPage::texts($browser) };

with_nginx $ClientPage::conf, sub ($nginx) {
    ClientPage::write_to($nginx);
    my $listening = sub ($channel) { ClientPage::listening($nginx, $channel) };
    for my $transport (qw(eventsource fetch websocket poll)) {
        subtest "$transport, connections cut anywhere" => sub {
            my $relay = Relay->new($nginx->port);
            ClientPage::open_in($browser, $relay->port);
            my ($a, $b) = ("a-$transport", "b-$transport");
            my $url = { websocket => '/ws', poll => '/poll' }->{$transport} // '/sub';
            ClientPage::start($browser, $url, channels => [ $a, $b ], transport => $transport);
            ok wait_until(sub { $listening->($a) == 1 && $listening->($b) == 1 }, 20), 'connected';
            my @expected;
            my $publish = sub {
                my $channel = @expected % 3 ? $a : $b;
                my $text = qq(text "$#expected"\n\\\xc3\xbc</script>);
                push @expected, "$channel:$text";
                $nginx->post("/pub?id=$channel", $text);
            };
            $publish->();
            ok wait_until(sub { @{ $texts->() } == 1 }, 20), 'the first message, on a good network';
            $relay->cut(300, 3000);
            my $begun = time;
            while ($relay->cuts < $cuts && time - $begun < 30 + $cuts / 5) {
                $publish->() for 1 .. 5;
                my $sent = @expected;
                wait_until { @{ $texts->() } >= $sent - 20 } 20;
            }
            $nginx->reload;
            $publish->() for 1 .. 5;
            $relay->pass;
            $publish->();
            wait_until { @{ $texts->() } >= @expected } 30;
            is_deeply [ map { utf8::encode($_); $_ } @{ $texts->() } ], \@expected, @expected . ' messages, each once and in order';
            cmp_ok $relay->cuts, '>=', $cuts, $relay->cuts . ' cuts';
            is_deeply $browser->js('return log.gap'), [], 'no gap';
            $browser->js('stream.close()');
            ok wait_until(sub { $listening->($a) == 0 }, 10), 'closed';
            is $browser->js('return log.state.at(-1)'), 'closed', 'and says so';
        };
    }
};

done_testing;
