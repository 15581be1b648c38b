# Scrapes and lists do not hold anybody up, however many channels there are.
#
# TEST_CHANNELS: how many; with it the times are judged, which wants a quiet machine. 1000000 is a good number.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;

use POSIX ();
use Time::HiRes qw(time sleep);

only_over_plain_http1 'it measures nginx alone';
my $judges = $ENV{TEST_CHANNELS};
my $count = $judges || 20_000;
my $seconds = $judges ? 20 : 0.3;
$ENV{TEST_WORKERS} = '1';

# In milliseconds.
sub percentile ($share, @times) {
    my @sorted = sort { $a <=> $b } @times;
    return 1000 * $sorted[ POSIX::ceil($share * @sorted) - 1 ];
}

with_nginx <<'CONF', sub ($nginx) {
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_shared_memory_size 2g;
    push_stream_channels_path $arg_id;
    push_stream_store_messages on;
    push_stream_message_ttl 1h;
    client_max_body_size 8m;
    client_body_buffer_size 1m;
    keepalive_requests 100000000;

    server {
        listen 127.0.0.1:%%PORT%%;

        location /pub {
            push_stream_publisher;
            push_stream_channel_info_on_publish off;
            push_stream_batch_publish on;
            push_stream_batch_max_lines 10000;
        }
        location /status { push_stream_channels_statistics; }
        location /metrics { push_stream_channels_statistics; push_stream_statistics_format prometheus; push_stream_statistics_channels 10; }
    }
}
CONF
    my $publisher = $nginx->connect;
    for (my $first = 1; $first <= $count; $first += 10_000) {
        my $last = $first + 9999 > $count ? $count : $first + 9999;
        my $body = join '', map { qq({"channels": ["channel-$_"], "text": "x"}\n) } $first .. $last;
        $publisher->request(POST => '/pub', headers => { 'Content-Type' => 'application/x-ndjson', Prefer => 'return=minimal' }, body => $body);
    }
    is $nginx->figures->{channels}, $count, "there are $count channels";

    for my $case (
        [ 'OpenMetrics', '/metrics', 'application/openmetrics-text; version=1.0.0', qr/# EOF\n\z/ ],
        [ 'the summary', '/status', 'application/json', qr/"channels": $count,/ ],
    ) {
        my ($name, $uri, $accept, $pattern) = @$case;
        my ($client, @times) = ($nginx->connect);
        for (1 .. 200) {
            my $start = time;
            my $answer = $client->request(GET => $uri, headers => { Accept => $accept });
            push @times, time - $start;
            $answer->body =~ $pattern or die $answer->body;
            sleep 0.005;
        }
        my $p99 = percentile(0.99, @times);
        pass "$name was asked for 200 times";
        next if !$judges;
        diag sprintf '%s: 99 %% of 200 scrapes within %.2f ms', $name, $p99;
        cmp_ok $p99, '<', 5, "$name: within 5 ms";
    }

    # Two publishers at a steady rate; the times that their answers took.
    my $publish_for = sub ($seconds) {
        my @children = map {
            my $pid = open(my $from, '-|') // die $!;
            if (!$pid) {
                my $client = $nginx->connect;
                my ($end, $n, @times) = (time + $seconds, 0);
                while (time < $end) {
                    my $start = time;
                    $client->request(POST => '/pub?id=channel-' . (1 + $n++ % 1000), body => 'y');
                    push @times, time - $start;
                    sleep 0.002;
                }
                say for @times;
                close STDOUT;
                POSIX::_exit(0);
            }
            $from;
        } 1, 2;
        return map { chomp(my @lines = <$_>); close $_; @lines } @children;
    };
    my @without = $publish_for->($seconds);
    my $lists = sub {
        my $uri = 'http://127.0.0.1:' . $nginx->port . '/status?id=ALL';
        my ($end, $length, $number) = (time + $seconds, 0, 0);
        while (time < $end) {
            # Server and publishers are measured, not who reads.
            $length = qx{nice -n 19 curl -s -o /dev/null -w '%{size_download}' '$uri'};
            $number++;
        }
        return ($number, $length);
    };
    my $pid = open(my $from, '-|') // die $!;
    if (!$pid) {
        printf "%d %d\n", $lists->();
        close STDOUT;
        POSIX::_exit(0);
    }
    my @beside = $publish_for->($seconds);
    my ($number, $length) = split ' ', <$from>;
    close $from;
    cmp_ok $length, '>', $count * 80, "$number lists were read, each of all channels";
    cmp_ok scalar(@beside), '>', 0, scalar(@beside) . ' messages were published meanwhile';
    if ($judges) {
        my ($before, $after) = map { percentile(0.999, @$_) } \@without, \@beside;
        diag sprintf '99.9 %% of %d publishes within %.2f ms, of %d beside %d lists within %.2f ms',
            scalar(@without), $before, scalar(@beside), $number, $after;
        cmp_ok $after, '<', $before + 10, 'publishers wait no more than 10 ms longer';
    }
};

done_testing;
