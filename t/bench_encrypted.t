# The bench over TLS and HTTP/2 against this module: every scenario at a tiny size, with nginx-conf/bench-encrypted.conf
# as it stands.

use v5.36;
use Cwd qw(abs_path);
use File::Basename qw(dirname);
use FindBin;
use IO::Socket::INET;
use JSON::PP qw(decode_json);
use lib "$FindBin::Bin/lib";
use PushStream::Test;

only_over_plain_http1 'it chooses by itself what its clients speak';

my $root = dirname(dirname(abs_path(__FILE__)));
my $bench = $ENV{PUSH_STREAM_BENCH} // "$root/target/release/push-stream-bench";

sub free_port { return IO::Socket::INET->new(Listen => 1, LocalAddr => '127.0.0.1')->sockport }

open my $in, '<', "$root/nginx-conf/bench-encrypted.conf" or die $!;
my $conf = do { local $/; <$in> };
my ($encrypted, $known) = (free_port(), free_port());
$conf =~ s/^load_module .*\n/%%MAIN%%/m;
$conf =~ s/^(?:worker_processes|error_log|pid) .*\n//mg;
$conf =~ s/worker_connections .*/worker_connections 1000;/;
$conf =~ s/127\.0\.0\.1:8080/127.0.0.1:%%PORT%%/;
$conf =~ s/127\.0\.0\.1:8443/127.0.0.1:$encrypted/;
$conf =~ s/127\.0\.0\.1:8081/127.0.0.1:$known/;
$conf =~ s{/etc/nginx/tls/fullchain\.pem}{%%CERTIFICATE%%};
$conf =~ s{/etc/nginx/tls/privkey\.pem}{%%KEY%%};
$conf =~ s/access_log off;|\w+_temp_path .*\n//g;
$conf =~ s/^http \{\n/http {\n%%HTTP%%\n/m;

my %path = (eventsource => 'ev', streaming => 'stream', websocket => 'ws', 'long-polling' => 'poll', plain => 'ok?');

# How clients reach nginx: where, and the options.
my %way = (
    TLS => ["https://127.0.0.1:$encrypted"],
    'HTTP/2' => ["https://127.0.0.1:$encrypted", '--http2'],
    'HTTP/2, six streams' => ["https://127.0.0.1:$encrypted", '--http2', '--streams', 6],
    'HTTP/2 without TLS' => ["http://127.0.0.1:$known", '--http2', '--streams', 2],
);

# The report of a run: what was found, or what was wrong.
sub run_bench ($nginx, $way, $scenario, %options) {
    my $transport = delete $options{transport} // 'eventsource';
    my $publish = delete $options{publish} // 'pub';
    my ($url, @how) = @{ $way{$way} };
    my @options = map { ("--$_", $options{$_} // ()) } sort keys %options;
    open my $out, '-|', $bench, $scenario, '--json', '--transport', $transport, '--server-pid', $nginx->master,
        '--pub-url', "$url/$publish?id={channel}", '--sub-url', "$url/$path{$transport}/{channel}",
        '--stats-url', "https://127.0.0.1:$encrypted/stats", '--patience', 5 * PushStream::Nginx::slowness(), @how, @options
        or die "cannot run $bench: $!";
    my $text = do { local $/; <$out> };
    close $out;
    return eval { decode_json($text) } // { ok => 0, problems => ["no report: $text"] };
}

sub passes ($nginx, $way, $scenario, %options) {
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    my $report = run_bench($nginx, $way, $scenario, %options);
    my $name = "$scenario over $way" . ($options{transport} ? ", $options{transport}" : '');
    ok $report->{ok}, $name or diag @{ $report->{problems} };
    return { map { $_ => $report->{facts}{$_}{value} } keys %{ $report->{facts} // {} } };
}

# Each with an nginx that has just started: later subscribers would get the memory that earlier ones have left.
for my $way (sort keys %way) {
    with_nginx $conf, sub ($nginx) {
        # Enough connections that what a worker allocates once does not count.
        my $many = $way eq 'HTTP/2, six streams' ? 1800 : 300;
        my $idle = passes $nginx, $way, 'idle', subscribers => $many, rest => 0.1, messages => 3;
        cmp_ok $idle->{private_bytes}, '>', 100, 'a subscriber takes memory';
        if ($way eq 'HTTP/2, six streams') {
            ok $idle->{connection_bytes} > $idle->{stream_bytes}, 'a further stream takes less than the first one'
                or diag explain $idle;
            ok $idle->{stream_bytes} > 100, 'but some';
        }
        for my $transport ('eventsource', 'streaming', 'websocket', 'long-polling') {
            next if $transport eq 'websocket' && $way =~ m{HTTP/2};
            my $found = passes $nginx, $way, 'verify', transport => $transport,
                subscribers => 40, channels => 4, messages => 200, publishers => 4;
            is $found->{deliveries}, 2000, 'everybody got everything';
        }
        my %crowd = (subscribers => 50, channels => 10, seconds => 1, rest => 0.1);
        my $found = passes $nginx, $way, 'disqus', publish => 'live', %crowd, arrivals => 50, messages => 100;
        ok $found->{latency_p50_ms} > 0 && $found->{opening_p50_ms} > 0, 'with latencies';
        my $churn = passes $nginx, $way, 'churn', %crowd, arrivals => 100, messages => 50, publish => 'live',
            'max-growth' => 60_000;
        ok $churn->{visits} > 90, 'many came and went';
        is passes($nginx, $way, 'fanout', subscribers => 50, messages => 20)->{deliveries}, 1000, 'all delivered';
        is passes($nginx, $way, 'many', subscribers => 100, channels => 50, messages => 100)->{deliveries}, 200,
            'all delivered';
        ok passes($nginx, $way, 'publish', seconds => 0.3)->{cpu_us} > 0, 'a publish takes time';
        ok passes($nginx, $way, 'publish', publish => 'ok', seconds => 0.3)->{cpu_us} > 0, 'also if nobody reads the body';
        is passes($nginx, $way, 'storm', subscribers => 60, rate => 300)->{subscribers}, 60, 'all came';
        is passes($nginx, $way, 'storm', transport => 'plain', subscribers => 60, rate => 300)->{subscribers}, 60,
            'all came';
        is passes($nginx, $way, 'million', subscribers => 60, steps => 3, 'max-kept' => 1_000_000)->{deliveries}, 60,
            'a broadcast reaches everybody';
        my $large = passes $nginx, $way, 'verify', subscribers => 6, channels => 1, messages => 10, rate => 20,
            bytes => 300_000;
        is $large->{deliveries}, 60, 'large messages arrive whole';
    };
}

# The status and what is said on stderr.
sub refuses_to_run ($url, @options) {
    my $said = qx{$bench fanout --patience 2 --subscribers 200 --messages 1 --sub-url '$url/ev/{channel}' --pub-url '$url/live?id={channel}' @options 2>&1};
    return ($? >> 8, $said);
}

with_nginx $conf, sub ($nginx) {
    my $report = run_bench($nginx, 'HTTP/2', 'verify', transport => 'websocket');
    like "@{ $report->{problems} }", qr/no report/, 'no WebSocket over HTTP/2';
    my ($status, $said) = refuses_to_run("https://127.0.0.1:$encrypted", '--http2 --streams 200');
    is $status, 2, 'more streams than the server allows';
    like $said, qr/allows 128 streams on a connection, not 200/, 'which says how many it allows';
    ($status, $said) = refuses_to_run("https://127.0.0.1:$known");
    is $status, 2, 'no TLS where there is none';
    like $said, qr/bytes that are no TLS record|corrupt|InvalidContentType/i, 'and says so';
    ($status, $said) = refuses_to_run('http://127.0.0.1:' . $nginx->port, '--http2');
    is $status, 2, 'no HTTP/2 where there is none';
};

done_testing;
