# The bench against this module: every scenario at a tiny size, with nginx-conf/bench.conf as it stands. That its checks
# find what they should is tested in src/bench, with a server that does it wrong.

use v5.36;
use Cwd qw(abs_path);
use File::Basename qw(dirname);
use FindBin;
use JSON::PP qw(decode_json);
use lib "$FindBin::Bin/lib";
use PushStream::Test;

only_over_plain_http1 'its clients speak nothing else';

my $root = dirname(dirname(abs_path(__FILE__)));
my $bench = $ENV{PUSH_STREAM_BENCH} // "$root/target/release/push-stream-bench";

# As scripts/bench does it: the address and the number of workers are the test's, everything else is the file's.
open my $in, '<', "$root/nginx-conf/bench.conf" or die $!;
my $conf = do { local $/; <$in> };
$conf =~ s/^load_module .*\n/%%MAIN%%/m;
$conf =~ s/^(?:worker_processes|error_log|pid) .*\n//mg;
$conf =~ s/worker_connections .*/worker_connections 1000;/;
$conf =~ s/127\.0\.0\.1:8080/127.0.0.1:%%PORT%%/;
$conf =~ s/access_log off;|\w+_temp_path .*\n//g;
$conf =~ s/^http \{\n/http {\n%%HTTP%%\n/m;

my %path = (eventsource => 'ev', streaming => 'stream', websocket => 'ws', 'long-polling' => 'poll', plain => 'ok?');

# The report of a run: what was found, or what was wrong.
sub run_bench ($nginx, $scenario, %options) {
    my $transport = delete $options{transport} // 'eventsource';
    my $publish = delete $options{publish} // 'pub';
    my $url = 'http://127.0.0.1:' . $nginx->port;
    my @options = map { ("--$_", $options{$_} // ()) } sort keys %options;
    open my $out, '-|', $bench, $scenario, '--json', '--transport', $transport, '--server-pid', $nginx->master,
        '--pub-url', "$url/$publish?id={channel}", '--sub-url', "$url/$path{$transport}/{channel}",
        '--stats-url', "$url/stats", '--patience', 5 * PushStream::Nginx::slowness(), @options
        or die "cannot run $bench: $!";
    my $text = do { local $/; <$out> };
    close $out;
    return eval { decode_json($text) } // { ok => 0, problems => ["no report: $text"] };
}

sub passes ($nginx, $name, $scenario, %options) {
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    my $report = run_bench($nginx, $scenario, %options);
    ok $report->{ok}, $name or diag @{ $report->{problems} };
    return { map { $_ => $report->{facts}{$_}{value} } keys %{ $report->{facts} // {} } };
}

with_nginx $conf, sub ($nginx) {
    for my $transport ('eventsource', 'streaming', 'websocket', 'long-polling') {
        my $found = passes $nginx, "verify over $transport", 'verify', transport => $transport,
            subscribers => 40, channels => 4, messages => 200, publishers => 4;
        is $found->{deliveries}, 2000, "$transport: everybody got everything";
    }
    my %crowd = (subscribers => 50, channels => 10, seconds => 1, rest => 0.1);
    for my $transport ('eventsource', 'streaming', 'websocket') {
        my $found = passes $nginx, "disqus over $transport", 'disqus', transport => $transport, publish => 'live',
            %crowd, arrivals => 50, messages => 100;
        ok $found->{latency_p50_ms} > 0 && $found->{opening_p50_ms} > 0, "$transport: with latencies";
    }

    my $idle = passes $nginx, 'idle', 'idle', subscribers => 200, rest => 0.1, messages => 3, 'warm-up' => undef;
    ok $idle->{full_bytes} > 100_000, 'the server takes memory';
    ok defined $idle->{kept_percent}, 'what it keeps of a second round is compared with the first';
    is passes($nginx, 'fanout', 'fanout', subscribers => 50, messages => 20)->{deliveries}, 1000, 'all delivered';
    is passes($nginx, 'many', 'many', subscribers => 100, channels => 50, messages => 100)->{deliveries}, 200,
        'all delivered';
    ok passes($nginx, 'publish', 'publish', seconds => 0.3)->{cpu_us} > 0, 'a publish takes time';
    my $all = passes $nginx, 'million, in small', 'million', subscribers => 300, steps => 3, 'max-kept' => 1_000_000;
    is $all->{deliveries}, 300, 'a broadcast reaches everybody';
    ok passes($nginx, 'publish in batches', 'publish', publish => 'batch', batch => 50, seconds => 0.3)->{published} > 50,
        'of several messages';
    my $refused = run_bench($nginx, 'publish', batch => 50, seconds => 0.3);
    like "@{ $refused->{problems} }", qr/no report/, 'no batches where the server offers none';
    my $filled = passes $nginx, 'publish to many channels', 'publish', channels => 2000, seconds => 0.3, fill => undef;
    ok $filled->{channel_bytes} > 0 && $filled->{message_bytes} > 0, 'channels and messages take memory';
    is passes($nginx, 'storm', 'storm', subscribers => 100, rate => 1000)->{subscribers}, 100, 'all came';
    is passes($nginx, 'storm of plain requests', 'storm', transport => 'plain', subscribers => 100,
        rate => 1000)->{subscribers}, 100, 'all came';
    my $churn = passes $nginx, 'churn', 'churn', %crowd, arrivals => 100, messages => 50, publish => 'live';
    ok $churn->{visits} > 90, 'many came and went';
    ok passes($nginx, 'soak', 'soak', %crowd, arrivals => 20, messages => 50, publish => 'live')->{deliveries} > 100,
        'messages flowed';
};

subtest 'scripts/bench refuses what it cannot do' => sub {
    for (
        ['--rounds 0', qr/--rounds wants a number below 100/],
        ['--also baseline=t/bench.t', qr/"baseline" is a column already/],
        ['--also other', qr/--also wants NAME=CONF/],
        ['--reports', qr/--reports wants a file/],
        ['--fast', qr/unknown option "--fast"/],
    ) {
        my ($options, $reason) = @$_;
        my $said = `$root/scripts/bench $options 2>&1`;
        is $? >> 8, 2, "$options: refused";
        like $said, $reason, "$options: says why";
    }
};

done_testing;
