# `push-stream-bench reload` on a real nginx: readers over plain HTTP and TLS while it is reloaded and workers are killed.

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
my $encrypted = IO::Socket::INET->new(Listen => 1, LocalAddr => '127.0.0.1')->sockport;

my $conf = <<"CONF";
%%MAIN%%
events { worker_connections 1000; }
http {
    %%HTTP%%
    access_log off;
    push_stream_shared_memory_size 32m;
    push_stream_max_messages_stored_per_channel 1000;
    server {
        listen 127.0.0.1:%%PORT%%;
        listen 127.0.0.1:$encrypted ssl http2;
        ssl_certificate     %%CERTIFICATE%%;
        ssl_certificate_key %%KEY%%;
        ssl_protocols       TLSv1.3;
        location = /pub {
            push_stream_publisher      admin;
            push_stream_channels_path  \$arg_id;
            push_stream_store_messages on;
        }
        location ~ ^/ev/(.+)\$ {
            push_stream_subscriber    eventsource;
            push_stream_channels_path \$1;
        }
        location = /stats {
            push_stream_channels_statistics;
            push_stream_channels_path \$arg_id;
        }
    }
}
CONF

# The exit status and the report.
sub reload ($nginx, @options) {
    my $plain = 'http://127.0.0.1:' . $nginx->port;
    my $slow = PushStream::Nginx::slowness();
    open my $out, '-|', $bench, 'reload', '--json', '--master-pid', $nginx->master, '--server-pid', $nginx->master,
        '--pub-url', "$plain/pub?id={channel}", '--sub-url', "$plain/ev/{channel}", '--stats-url', "$plain/stats",
        '--also-url', "https://127.0.0.1:$encrypted/ev/{channel}", '--channels', 5, '--publishers', 2, '--rate', 50,
        '--seconds', 2 + 2 * $slow, '--patience', 5 * $slow, '--old-worker-limit', 2 * $slow, '--count-limit', 2 * $slow, @options
        or die "cannot run $bench: $!";
    my $text = do { local $/; <$out> };
    close $out;
    my $report = eval { decode_json($text) } // { ok => 0, problems => ["no report: $text"] };
    return ($? >> 8, $report, map { $_ => $report->{facts}{$_}{value} } keys %{ $report->{facts} // {} });
}

with_nginx $conf, sub ($nginx) {
    $nginx->expect_in_log(qr/exited on signal 9/);

    my ($status, $report, %found) = reload($nginx, '--subscribers', 40, '--also', 20, '--reloads', 2, '--kills', 1,
        '--tolerate-lost-connections');
    is $status, 0, 'who tolerates lost connections is content' or diag @{ $report->{problems} };
    is $found{reloads}, 2, 'reloaded twice';
    is $found{killed}, 1, 'a worker killed';
    # A message whose publisher got no answer may have been accepted.
    cmp_ok $found{deliveries}, '>=', 12 * $found{published}, 'everybody got everything';
    cmp_ok $found{deliveries}, '<=', 12 * ($found{published} + $found{unanswered}), 'and nothing else';
    is $found{lost} + $found{doubled} + $found{out_of_order} + $found{foreign}, 0, 'once and in order';
    if ($nginx->worker_count == 1) {
        is $found{excused}, 60, 'the only worker had all connections';
    }
    cmp_ok $found{reconnects}, '>=', $found{excused} + $found{lost_connections}, 'who lost his connection came back';
    ok defined $found{old_worker_max_ms} && defined $found{count_max_ms}, 'with the times of old workers and statistics';

    # Nothing but kills: no connection is lost otherwise.
    ($status, $report, %found) = reload($nginx, '--subscribers', 30, '--also', 30, '--reloads', 0, '--kills', 2);
    is $status, 0, 'connections of killed workers are no failure' or diag @{ $report->{problems} };
    is $found{killed}, 2, 'workers killed';
    is $found{lost_connections}, 0, 'no other connection was lost';

    # Detached readers are handed over.
    ($status, $report, %found) = reload($nginx, '--subscribers', 60, '--also', 0, '--reloads', 3, '--kills', 0);
    is $status, 0, 'reloads lose no connection of a detached reader' or diag @{ $report->{problems} };
    is $found{lost_connections}, 0, 'none at all';
    is $found{reconnects} // 0, 0, 'nobody came back';

    # Streams of HTTP/2 end with their worker.
    ($status, $report, %found) = reload($nginx, '--subscribers', 30, '--reloads', 1, '--http2=subscribers', '--streams', 3,
        '--tls', '--pub-url', "https://127.0.0.1:$encrypted/pub?id={channel}", '--sub-url', "https://127.0.0.1:$encrypted/ev/{channel}");
    is $status, 1, 'lost connections fail the run';
    # Who comes back at once may meet another old worker, and lose his connection again.
    cmp_ok $found{lost_connections}, '>=', 30, 'all are counted';
    like "@{ $report->{problems} }", qr/$found{lost_connections} connections lost whose worker was not killed/, 'and named';
};

done_testing;
