# Everything at once, at random, with workers being killed: no wrong byte, no hang, and nothing left behind.
#
# TEST_CHAOS_SECONDS: how long; default 4.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;

use POSIX ();

only_over_http1 'it reads chunk by chunk';

my $seconds = $ENV{TEST_CHAOS_SECONDS} || 4;
my $seed = $ENV{TEST_CHAOS_SEED} // int rand 1_000_000;
diag "seed $seed" if $ENV{TEST_CHAOS_SECONDS};

my $conf = <<'CONF';
%%MAIN%%
events { worker_connections 1024; }
http {
    %%HTTP%%
    push_stream_shared_memory_size 512k;
    push_stream_on_full refuse;
    push_stream_channels_path $arg_id;
    push_stream_store_messages on;
    push_stream_message_ttl 2s;
    push_stream_channel_inactivity_time 1s;
    push_stream_max_messages_stored_per_channel 20;
    push_stream_ping_message_interval 500ms;
    push_stream_longpolling_connection_ttl 500ms;
    keepalive_requests 100000;

    server {
        listen 127.0.0.1:%%PORT%% reuseport;

        location /pub { push_stream_publisher admin; }
        location /volatile { push_stream_publisher admin; push_stream_store_messages off; }
        location /sub { push_stream_subscriber; }
        location /ttl { push_stream_subscriber; push_stream_subscriber_connection_ttl 200ms; }
        location /ev { push_stream_subscriber eventsource; }
        location /poll { push_stream_subscriber polling; }
        location /wait { push_stream_subscriber long-polling; }
        location /status { push_stream_channels_statistics; }
    }
}
CONF

with_nginx $conf, sub ($nginx) {
    $nginx->expect_in_log(qr/exited on signal 9/);
    # Refusals of a full zone.
    $nginx->expect_in_log(qr/\[(?:error|crit|alert)\].*(?:full|no memory)/);

    my $is_empty = sub {
        my $zone = eval { $nginx->figures } or return 0;
        return !grep { $zone->{$_} } qw(stored_messages messages_in_trash channels_in_delete channels_in_trash channels subscribers);
    };
    my $capacity = sub {
        my $publisher = $nginx->connect;
        my $n = 0;
        $n++ while $n < 20_000 && $publisher->request(POST => '/pub?id=f' . $n % 100, body => 'x' x ($n % 700 + 1))->status == 200;
        return $n;
    };
    my $capacity_once = $capacity->();
    ok wait_until(sub { $is_empty->() }, 30), "an empty zone takes $capacity_once messages";

    # The trash alone fills the zone all the time: without evictions nothing but refusals would happen.
    $nginx->reload($conf =~ s/on_full refuse/on_full evict/r);

    # A message says what it is, and a reader can tell whether it got all of it and nothing else.
    my $message = sub ($channel, $n) { "<$channel.$n:" . chr(97 + $n % 26) x (1 + $n * 7919 % 6000) . ">" };
    my $wrong = sub ($chunk) {
        $chunk =~ s/^(?:id|event):.*\n//gm;
        $chunk =~ s/^data: //gm;
        $chunk =~ s/^:.*\n//gm;
        for my $one (split /(?<=>)\s*/, $chunk) {
            next if $one =~ /^\s*$/ || $one =~ /^\s*(?:Channel deleted)+\s*$/;
            $one =~ s/^\s*(?:Channel deleted\s*)*//;
            my ($channel, $n) = $one =~ /^<(c\d+)\.(\d+):/ or return "unknown: $one";
            return "broken: $one" if $one ne $message->($channel, $n);
        }
        return;
    };

    # Goes on until enough was read, however slow the machine is.
    my ($progress, $enough) = ($nginx->dir . '/chunks_read', $nginx->dir . '/enough');
    my $child = sub ($number, $body) {
        my $pid = fork // die;
        return $pid if $pid;
        srand $seed + $number;
        my $complaint;
        while (!-e $enough && !$complaint) {
            $complaint = eval { $body->() };
        }
        if ($complaint) {
            open my $file, '>', $nginx->dir . "/complaint.$number";
            print {$file} substr $complaint, 0, 300;
            close $file;
        }
        POSIX::_exit(0);
    };
    my $channel = sub { 'c' . int rand 10 };
    my @children;
    for my $number (1 .. 3) {
        my ($client, $n) = (undef, $number);
        push @children, $child->($number, sub {
            my $dice = rand;
            eval {
                $client //= $nginx->connect;
                my $c = $channel->();
                if ($dice < 0.02) { $client->request(DELETE => "/pub?id=$c") }
                else {
                    $n += 3;
                    $client->request(POST => ($dice < 0.3 ? '/volatile' : '/pub') . "?id=$c", body => $message->($c, $n));
                }
                1;
            } or $client = undef;
            return;
        });
    }
    for my $number (4 .. 7) {
        open my $chunks, '>>', $progress or die;
        push @children, $child->($number, sub {
            my $uri = (qw(/sub /ttl /ev /poll /wait))[ rand 5 ] . '?id=' . join '/', map { $channel->() . (rand() < 0.5 ? '.b' . int rand 9 : '') } 0 .. rand 3;
            my $subscriber = $nginx->open(GET => $uri);
            for (1 .. rand 30) {
                my $chunk = eval { $subscriber->chunk(rand 0.3) } // last;
                last if !length $chunk;
                syswrite $chunks, '.';
                my $complaint = $wrong->($chunk);
                return "$uri: $complaint" if $complaint;
            }
            rand() < 0.5 ? $subscriber->close : $subscriber->reset;
            return;
        });
    }
    srand $seed;
    my ($until, $limit) = (time + $seconds, time + 60 * PushStream::Nginx::slowness() + 10 * $seconds);
    while (time < $until || (-s $progress <= 100 * $seconds && time < $limit && !glob $nginx->dir . '/complaint.*')) {
        sleep 0.05 + rand 0.3;
        my @pids = $nginx->worker_pids or next;
        my $dice = rand;
        if ($dice < 0.7) { kill KILL => $pids[ rand @pids ] }
        elsif ($dice < 0.85) { $nginx->signal('HUP') }
    }
    open my $file, '>', $enough;
    waitpid $_, 0 for @children;
    my $read = -s $progress;
    cmp_ok $read, '>', 100 * $seconds, "$read chunks were read";
    my @complaints = map { open my $file, '<', $_; scalar <$file> } glob $nginx->dir . '/complaint.*';
    is "@complaints", '', 'nobody got a wrong byte';

    ok wait_until(sub { my @all = $nginx->worker_pids(leaving => 1); @all == $nginx->worker_count }, 15), 'all workers are there';
    ok wait_until(sub { $is_empty->() }, 30), 'in the end the zone is empty' or diag $nginx->get('/status')->body;
    $nginx->reload($conf);
    is $capacity->(), $capacity_once, 'and takes as many messages as before';
};

done_testing;
