# What an idle reader costs a worker, what messages leave behind, and what comes back when readers leave.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;

only_over_plain_http1 'TLS takes memory of its own';

use constant READERS => 2000;

with_nginx <<'CONF', sub ($nginx) {
%%MAIN%%
events { worker_connections 4096; }
http {
    %%HTTP%%
    access_log off;
    push_stream_shared_memory_size 8m;
    push_stream_channels_path $arg_id;
    push_stream_channel_info_on_publish off;
    keepalive_requests 100000;

    server {
        listen 127.0.0.1:%%PORT%% reuseport backlog=4096;

        location /pub { push_stream_publisher admin; }
        location /status { push_stream_channels_statistics; }
        location /ev { push_stream_subscriber eventsource; push_stream_ping_message_interval 1h; }
        location /attached { push_stream_detach off; push_stream_subscriber eventsource; }
    }
}
CONF
    # Bytes of its own; the zone is not among them.
    my $private = sub {
        my $sum = 0;
        for my $pid ($nginx->worker_pids) {
            open my $file, '<', "/proc/$pid/smaps_rollup" or next;
            my ($kib) = map { /^Anonymous:\s+(\d+)/ } <$file>;
            $sum += $kib * 1024;
        }
        return $sum;
    };
    my $join = sub ($uri, $count) {
        my @readers = map { $nginx->open(GET => "$uri?id=a") } 1 .. $count;
        $_->text_until(qr/: \n/) for @readers;
        return @readers;
    };

    # What is needed only once is there after this.
    my @first = $join->('/ev', 200);
    $nginx->post('/pub?id=a', 'first');
    $_->text_until(qr/first/) for @first;
    my $before = $private->();
    my @readers = $join->('/ev', READERS);
    my $each = ($private->() - $before) / READERS;
    cmp_ok $each, '<', 450, sprintf '%d idle readers take %d bytes each', READERS, $each;

    my $publisher = $nginx->connect;
    my $publish = sub ($from, $to) {
        for my $n ($from .. $to) {
            $publisher->request(POST => '/pub?id=a', body => "message $n.");
            next if $n % 100;
            $_->raw_until(qr/message $n\.\n/) for @first, @readers;
        }
    };
    $publish->(1, 100);
    my $loaded = $private->();
    $publish->(101, 1100);
    my $grown = $private->() - $loaded;
    cmp_ok $grown, '<', 65536, "a thousand messages leave $grown bytes with all of them";

    # The measure would show it.
    $before = $private->();
    my @attached = $join->('/attached', 300);
    $each = ($private->() - $before) / @attached;
    cmp_ok $each, '>', 4000, sprintf 'with their requests they take %d bytes each', $each;
    my $most = $private->();
    undef $_ for @first, @readers, @attached;
    ok wait_until { $nginx->figures->{subscribers} == 0 }, 'all leave';
    my $back = sub { ($most - $private->()) / (@readers + @attached * 40) };
    ok wait_until { $back->() > 180 }, 'and their memory goes back to the system' or diag "$most bytes, now " . $private->();
};

done_testing;
