# Three equal nodes, as in nginx-conf/cluster. One dies and stays away: the other two go on as if nothing were, its readers go on at another node
# by their last id, and when it comes back it has everything that came meanwhile.
#
# WORKER_NODE_AWAY: for how many seconds; default 2. With it the times are judged, too, which wants a quiet machine: WORKER_NODE_AWAY=60.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;

use File::Temp ();
use IO::Socket::INET;
use POSIX ();
use PushStream::Program;
use PushStream::Redis;

only_over_plain_http1 'the publisher listens on a unix socket';

my $top = "$FindBin::Bin/..";
my $worker = "$top/target/release/push-stream-worker";
plan skip_all => 'scripts/build makes the worker' if !-x $worker;
plan skip_all => 'scripts/setup test installs redis-server' if !PushStream::Program->find('redis-server');

my $judges = $ENV{WORKER_NODE_AWAY};
my $away = $judges || 2;
use constant { NODES => 3, RATE => 100 };

my $conf = <<'CONF';
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_shared_memory_size 32m;
    push_stream_channels_path $arg_id;
    push_stream_store_messages on;

    server {
        listen 127.0.0.1:%%PORT%%;
        listen unix:%%DIR%%/publish.sock;

        location /pub {
            push_stream_publisher admin;
            push_stream_batch_publish on;
            push_stream_idempotent_publish on;
            client_max_body_size 1m;
            client_body_buffer_size 1m;
        }
        location /sub {
            push_stream_subscriber eventsource;
            push_stream_resume ordered;
            push_stream_gap_notice on;
        }
        location /status { push_stream_channels_statistics; }
    }
}
CONF

# A browser that knows all nodes and goes on at the next one when it loses its own. Writes "NUMBER SECONDS" for each event: how late it was.
sub read_events ($log, @ports) {
    open my $out, '>', $log or die $!;
    $out->autoflush(1);
    my $last = '';
    for (my $at = 0;; $at = ($at + 1) % @ports) {
        my $socket = IO::Socket::INET->new(PeerAddr => "127.0.0.1:$ports[$at]") or do { sleep 0.02; next };
        print {$socket} "GET /sub?id=thread.9 HTTP/1.0\r\nHost: x\r\n", ($last ? "Last-Event-ID: $last\r\n" : ''), "\r\n";
        my ($id, $number, $sent);
        while (my $line = <$socket>) {
            # A line that is cut off is none.
            next if $line !~ /\n\z/;
            $id = $1 if $line =~ /^id: (\S+)/;
            print {$out} "gap after $last\n" if $line =~ /^event: gap/;
            ($number, $sent) = ($1, $2) if $line =~ /^data: .*no (\d+) at ([\d.]+)/;
            # The empty line makes it an event.
            if ($line =~ /^\r?\n\z/ && defined $id && defined $number) {
                printf {$out} "%d %.6f\n", $number, time - $sent;
                ($last, $id, $number) = ($id, undef, undef);
            }
        }
    }
}

sub answer ($port, $path) {
    my $socket = IO::Socket::INET->new(PeerAddr => "127.0.0.1:$port") or return '';
    print {$socket} "GET $path HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    return join '', <$socket>;
}
sub is_ready ($port) { return answer($port, '/ready') =~ /200 OK/ }

sub lines ($log) {
    open my $in, '<', $log or return ();
    return grep { /\n\z/ } <$in>;
}

# In milliseconds.
sub percentile ($share, @times) {
    my @sorted = sort { $a <=> $b } @times;
    return 1000 * $sorted[ POSIX::ceil($share * @sorted) - 1 ];
}

# As if its machine had died: with all its processes, and with the socket, which is gone after a boot.
sub cut_down ($nginx) {
    my @pids = ($nginx->master, $nginx->worker_pids);
    kill KILL => @pids;
    wait_until { !$nginx->is_running && !grep { PushStream::Nginx::is_alive($_) } @pids } 20 or die 'it does not die';
    unlink $nginx->dir . '/publish.sock';
}

my $dir = File::Temp->newdir('push-stream-test-XXXXXX', TMPDIR => 1);
my $redis = PushStream::Redis->start;
my @nginx = map { PushStream::Nginx->start($conf, workers => 2) } 1 .. NODES;
my @admin = map { PushStream::Program->free_port } 0 .. NODES;
my $start = sub ($file, $n, %more) {
    local %ENV = (%ENV, REDIS => $redis->url, ADMIN => "127.0.0.1:$admin[$n]", STATE_DIR => "$dir/state$n", %more);
    return PushStream::Program->start("$dir/$file$n.log", $worker, 'run', "$top/nginx-conf/cluster/$file.toml");
};
my @workers = $start->('formatter', NODES);
push @workers, map { $start->('feeder', $_, PUBLISH => 'unix:' . $nginx[$_]->dir . '/publish.sock') } 0 .. $#nginx;
ok wait_until(sub { !grep { !is_ready($_) } @admin }, 20), 'formatter and feeders are ready';

my @ports = map { $_->port } @nginx;
# Each begins at a node of its own.
my @readers = map {
    my ($log, @order) = ("$dir/reader$_", @ports[ $_ .. $#ports ], @ports[ 0 .. $_ - 1 ]);
    PushStream::Program->start("$dir/readers.log", sub { read_events($log, @order) });
} 0 .. $#nginx;
ok wait_until(sub { !grep { ($_->figures('thread.9')->{subscribers} // 0) != 1 } @nginx }, 20), 'each node has a reader';

my $sent = 0;
# At a steady rate; an event is as late as its place in time says, whoever was held up.
my $enqueue = sub ($seconds) {
    my $begin = time;
    for my $n (1 .. $seconds * RATE) {
        my $due = $begin + $n / RATE;
        sleep $due - time if $due > time;
        $sent++;
        my $body = qq({"id":"$sent","forum":"cnn","thread":"9","author":{"name":"Ann"},"message":"no $sent at $due"});
        # As a producer with the Thoonk library does it.
        $redis->commands(
            ['MULTI'],
            [ LPUSH => 'feed.ids:posts', "job$sent" ],
            [ INCR => 'feed.publishes:posts' ],
            [ HSET => 'feed.items:posts', "job$sent", $body ],
            [ ZADD => 'feed.published:posts', int(time * 1000), "job$sent" ],
            ['EXEC'],
        );
    }
};
my $has_all = sub ($reader) { lines("$dir/reader$reader") >= $sent };
my $await_all = sub (@readers) { wait_until { !grep { !$has_all->($_) } @readers } 30 };

$enqueue->($judges ? 10 : 1);
ok $await_all->(0 .. 2), "everybody has the first $sent";
my $before = $sent;

cut_down $nginx[1];
my $died = time;
$enqueue->($away);
cmp_ok time - $died, '>=', $away, "a node is away for $away seconds";
ok $await_all->(0, 2), 'the others have everything meanwhile';
ok $await_all->(1), 'so has the reader of the dead one, from another';
ok wait_until(sub { !is_ready($admin[1]) }, 20), 'whose feeder says that it is not ready';
ok is_ready($_), 'the other two are' for @admin[ 0, 2 ];
my $during = $sent;

$nginx[1]->launch_again;
ok wait_until(sub { is_ready($admin[1]) }, 30), 'it is back, and ready';
is $nginx[1]->figures('thread.9')->{stored_messages}, $sent, 'with everything that came before and meanwhile';
my $newcomer = $nginx[1]->subscribe('/sub?id=thread.9', 'Last-Event-ID' => '0-1');
my @stored = map { $newcomer->event(20)->{data} =~ /no (\d+)/ } 1 .. $sent;
is "@stored", join(' ', 1 .. $sent), 'once, and in order';
$enqueue->(1);
ok $await_all->(0 .. 2), 'all nodes go on';
like $newcomer->event(20)->{data}, qr/no ${\($during + 1)} /, 'also the one that was away';

for my $reader (0 .. 2) {
    my @lines = lines "$dir/reader$reader";
    is join(' ', map { (split)[0] } @lines), join(' ', 1 .. $sent), "reader $reader: each event once and in order, and no gap";
    next if !$judges || $reader == 1;
    my @late = map { (split)[1] } @lines;
    my ($calm, $alone) = (percentile(0.99, @late[ 0 .. $before - 1 ]), percentile(0.99, @late[ $before .. $during - 1 ]));
    diag sprintf 'reader %d: 99 %% within %.2f ms before, %.2f ms while a node was away', $reader, $calm, $alone;
    cmp_ok $alone, '<', 2 * $calm + 5, "reader $reader: no later than before";
}
is $_->end, 0, 'a worker ends well' for reverse @workers;
$_->end('KILL') for @readers;
for my $nginx (@nginx) {
    $nginx->stop;
    is join('', $nginx->complaints), '', 'nothing alarming in the error log';
}

done_testing;
