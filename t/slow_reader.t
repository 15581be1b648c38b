# A subscriber that does not read harms nobody: not the others, not the memory, and it never gets wrong bytes.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;

with_nginx <<'CONF', sub ($nginx) {
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_shared_memory_size 4m;
    push_stream_on_full evict;
    push_stream_channels_path $arg_id;
    push_stream_store_messages on;
    push_stream_max_messages_stored_per_channel 5;
    keepalive_requests 100000;

    server {
        listen 127.0.0.1:%%PORT%% sndbuf=64k;
        client_max_body_size 1m;

        location /pub { push_stream_publisher; }
        location /sub { push_stream_subscriber; }
        location /status { push_stream_channels_statistics; }
    }
}
CONF
    my $message = sub ($n) { sprintf('%06d:', $n) . chr(97 + $n % 26) x 4000 . ";\n" };
    my $slow = $nginx->connect(receive_buffer => 4096);
    $slow->send_request(GET => '/sub?id=a');
    $slow->head;
    my $other_slow = $nginx->connect(receive_buffer => 4096);
    $other_slow->send_request(GET => '/sub?id=b');
    $other_slow->head;
    my $quick = $nginx->subscribe('/sub?id=a');

    my $memory = sub {
        my $most = 0;
        for my $pid ($nginx->worker_pids) {
            open my $file, '<', "/proc/$pid/smaps_rollup" or next;
            my ($kib) = map { /^Private_Dirty:\s+(\d+)/ } <$file>;
            $most = $kib if $kib > $most;
        }
        return $most;
    };

    my $before = $memory->();
    my ($count, $wrong) = (4000, 0);
    my $publisher = $nginx->connect;
    for my $n (1 .. $count) {
        $publisher->request(POST => '/pub?id=a', body => $message->($n))->status == 200 or $wrong++;
        # Traffic elsewhere: bytes that must not end up here.
        $publisher->request(POST => '/pub?id=b', body => 'B' x 4000) if $n % 4 == 0;
        # Nothing more is published before it has come: what waits for the slow one would never come.
        $wrong++ if $quick->chunk ne $message->($n);
    }
    is $wrong, 0, "a subscriber that reads gets all $count messages";
    my $grown = $memory->() - $before;
    # A sanitizer keeps what was freed.
    cmp_ok $grown, '<', $ENV{TEST_SANITIZER} ? 1 << 20 : 8192, "16 MB for somebody who does not read: the memory of a worker grew by $grown KiB";

    # Now it reads, byte for byte what was sent, until it is cut off or has everything.
    my ($last, @unexpected) = (0);
    my $ended = eval {
        while (1) {
            my $chunk = $slow->chunk;
            last if !length $chunk;
            my ($n) = $chunk =~ /^(\d{6}):/;
            if (!$n || $n <= $last || $chunk ne $message->($n)) {
                push @unexpected, substr $chunk, 0, 40;
                last;
            }
            $last = $n;
            last if $n == $count;
        }
        1;
    };
    is "@unexpected", '', 'the slow reader never gets a byte of anything else';
    cmp_ok $last, '>', 0, "it got messages up to number $last";
    like $@, qr/ended/, 'and was cut off then' if !$ended;
    $other_slow->close;
    $slow->close;

    is $nginx->post('/pub?id=a', 'on')->status, 200, 'publishing goes on';
    is $quick->chunk, 'on', 'and so does delivery';
    ok wait_until { $nginx->figures->{subscribers} == 1 }, 'only the quick one is left';
    ok $nginx->wait_for_log(qr/push stream: [1-9]\d* slow subscribers? closed/), 'the log says who was cut';
};

done_testing;
