# The whole way with kill -9 anywhere, at any time: the worker, an nginx worker, Redis. Nothing is lost, a browser sees nothing twice, and what
# belongs together comes in order. WORKER_KILLS=200 for the long run.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;

use File::Temp ();
use IO::Socket::INET;

only_over_plain_http1 'the publisher listens on a unix socket';

my $top = "$FindBin::Bin/..";
my $program = "$top/target/release/push-stream-worker";
plan skip_all => 'scripts/build makes the worker' unless -x $program;
plan skip_all => 'scripts/setup test installs redis-server' unless grep { -x "$_/redis-server" } split /:/, $ENV{PATH};

my $kills = $ENV{WORKER_KILLS} // 9;
my $seed = $ENV{WORKER_KILLS_SEED} // time;
srand $seed;
diag "seed $seed" if $kills > 20;
use constant { BURST => 25, THREADS => 7 };

# Programs of this test; they go with it.
my %running;
sub spawn ($log, @command) {
    my $pid = fork // die "fork: $!";
    if (!$pid) {
        open STDOUT, '>>', $log or die $!;
        open STDERR, '>&', \*STDOUT or die $!;
        exec @command or die "$command[0]: $!";
    }
    $running{$pid} = 1;
    return $pid;
}
sub end ($signal, $pid) { kill $signal => $pid; waitpid $pid, 0; delete $running{$pid}; return $? }
END { kill KILL => keys %running; waitpid $_, 0 for keys %running }

sub free_port { return IO::Socket::INET->new(LocalAddr => '127.0.0.1', Listen => 1)->sockport }

# One command to Redis; its answer, or undef if there was none.
sub redis ($port, @words) {
    local $SIG{PIPE} = 'IGNORE';
    my $socket = IO::Socket::INET->new(PeerAddr => "127.0.0.1:$port") or return;
    print {$socket} '*' . @words . "\r\n", map { '$' . length($_) . "\r\n$_\r\n" } @words;
    $socket->flush;
    return _answer($socket);
}

sub _answer ($socket) {
    my $line = <$socket> // return;
    $line =~ s/\r\n\z// or return;
    my ($kind, $rest) = $line =~ /^(.)(.*)/;
    return $line if $kind =~ /[-+:]/;
    return '' if $rest < 0;
    if ($kind eq '$') {
        read($socket, my $text, $rest + 2) // return;
        return substr $text, 0, $rest;
    }
    my @all = map { _answer($socket) // return } 1 .. $rest;
    return "@all";
}

# A browser: one EventSource that comes back with the last id it saw. Writes "id number" for each event.
sub browser ($port, $log) {
    my $pid = fork // die "fork: $!";
    if ($pid) { $running{$pid} = 1; return $pid }
    open my $out, '>>', $log or die $!;
    $out->autoflush(1);
    my $last = '';
    while (1) {
        my $socket = IO::Socket::INET->new(PeerAddr => "127.0.0.1:$port") or do { sleep 0.02; next };
        print {$socket} "GET /sub?id=all HTTP/1.0\r\nHost: x\r\n", ($last ? "Last-Event-ID: $last\r\n" : ''), "\r\n";
        my ($id, $number);
        while (my $line = <$socket>) {
            # A line that is cut off is none.
            next if $line !~ /\n\z/;
            $id = $1 if $line =~ /^id: (\S+)/;
            print {$out} "gap $last\n" if $line =~ /^event: gap/;
            $number = $1 if $line =~ /^data: .*"n":(\d+)/;
            # The empty line makes it an event.
            if ($line =~ /^\r?\n\z/ && defined $id && defined $number) {
                print {$out} "$id $number\n";
                ($last, $id, $number) = ($id, undef, undef);
            }
        }
        sleep 0.02;
    }
}

sub lines ($log) {
    open my $in, '<', $log or return;
    return grep { /\n\z/ } <$in>;
}

with_nginx <<'CONF', sub ($nginx) {
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
        location /sub { push_stream_subscriber eventsource; push_stream_resume ordered; push_stream_gap_notice on; }
        location /status { push_stream_channels_statistics; }
    }
}
CONF
    my $dir = File::Temp->newdir('push-stream-test-XXXXXX', TMPDIR => 1);
    my $port = free_port;
    my $start_redis = sub {
        my $pid = spawn "$dir/redis.log", 'redis-server', '--bind', '127.0.0.1', '--port', $port, '--save', '', '--appendonly', 'yes',
            '--appendfsync', 'always', '--dir', "$dir";
        wait_until(sub { (redis($port, 'PING') // '') eq '+PONG' }, 60) or die 'Redis does not start';
        return $pid;
    };
    my $redis = $start_redis->();
    my $publish = $nginx->dir . '/publish.sock';
    open my $conf, '>', "$dir/worker.toml" or die $!;
    print {$conf} <<"END";
state_dir = "$dir/state"
[source]
posts = { type = "redis_streams", url = "redis://127.0.0.1:$port/0", stream = "posts", group = "push", lease = "500ms", max_in_flight = 64 }
[stage]
parse = { type = "parse_json" }
route = { type = "route", channels = ["all", "thread.{thread}"], order_by = "thread" }
[sink]
nginx = { type = "http_push", nodes = ["unix:$publish"], retry = { initial = "10ms", max = "200ms" } }
[pipeline]
live = { from = "posts", stages = ["parse", "route"], to = ["nginx"] }
END
    close $conf;
    my $start_worker = sub { return spawn "$dir/worker.log", $program, 'run', "$dir/worker.toml" };
    my $worker = $start_worker->();
    browser $nginx->port, "$dir/seen";
    ok wait_until(sub { ($nginx->figures->{subscribers} // 0) == 1 }, 20), 'the browser is there';

    # An append without an answer may have happened: it is looked up, as the producer must do that wants to be sure.
    my $newest = sub { return (redis($port, 'XREVRANGE', 'posts', '+', '-', 'COUNT', 1) // return) =~ /"n":(\d+)/ ? $1 : 0 };
    my $sent = 0;
    my $append = sub ($n) {
        while (1) {
            my $answer = redis $port, 'XADD', 'posts', '*', 'body', sprintf '{"n":%d,"thread":%d}', $n, $n % THREADS;
            return if defined $answer && $answer =~ /^\d+-\d+$/;
            wait_until(sub { (redis($port, 'PING') // '') eq '+PONG' }, 60) or die 'Redis is gone';
            return if ($newest->() // -1) == $n;
        }
    };
    my @victims = ('worker', 'nginx', 'redis');
    my %count;
    for my $round (1 .. $kills) {
        $append->(++$sent) for 1 .. BURST;
        # Somewhere in the middle of what comes of it.
        sleep rand 0.05;
        my $victim = $victims[ $round <= @victims ? $round - 1 : rand @victims ];
        $count{$victim}++;
        if ($victim eq 'worker') {
            end KILL => $worker;
            $worker = $start_worker->();
        } elsif ($victim eq 'redis') {
            end KILL => $redis;
            $redis = $start_redis->();
        } else {
            my @workers = $nginx->worker_pids;
            $nginx->kill_worker($workers[ rand @workers ]);
        }
    }
    $append->(++$sent) for 1 .. BURST;
    my $all = sub { my %seen = map { (split)[1] => 1 } lines "$dir/seen"; return keys(%seen) >= $sent };
    ok wait_until(sub { $all->() }, 60 + $kills), "all of $sent events come, over kills of " . join(', ', map { "$count{$_} x $_" } sort keys %count);

    my (%times, %newest, @inverted, @gaps);
    for my $line (lines "$dir/seen") {
        my ($id, $n) = split ' ', $line;
        if ($id eq 'gap') { push @gaps, $line; next }
        $times{$n}++;
        push @inverted, $line if ($newest{ $n % THREADS } // 0) > $n;
        $newest{ $n % THREADS } = $n;
    }
    is join(' ', grep { !$times{$_} } 1 .. $sent), '', 'nothing is lost';
    is join(' ', grep { $times{$_} > 1 } keys %times), '', 'nothing is seen twice';
    is join(' ', @inverted), '', 'nothing overtakes what it belongs to';
    is join(' ', @gaps), '', 'and there is no gap';
    ok wait_until(sub { (redis($port, 'XPENDING', 'posts', 'push') // '') =~ /^:0/ }, 30), 'everything is acknowledged';
    is redis($port, 'XLEN', 'posts.parked'), ':0', 'nothing is parked';
    is end(TERM => $worker), 0, 'the worker ends well';
    end KILL => $_ for keys %running;
};

done_testing;
