# The whole way with kill -9 anywhere, at any time: a queue on Redis and one on RabbitMQ, the worker, nginx, a page in a real browser.
# Killed are the worker, an nginx worker, Redis and RabbitMQ. Nothing is lost, the page sees nothing twice, and what belongs together comes
# in order. Each queue has an nginx of its own, for a zone is to have one kind of ordered ids.
#
# WORKER_KILLS: how many; default 9. WORKER_KILLS_SEED repeats a run, as far as processes can be repeated.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib", "$FindBin::Bin/browser";
use PushStream::Test;

use File::Temp ();
use PushStream::Program;
use PushStream::RabbitMq;
use PushStream::Redis;
use WebDriver;

my $program = "$FindBin::Bin/../target/release/push-stream-worker";
plan skip_all => 'scripts/build makes the worker' if !-x $program;
plan skip_all => 'scripts/setup brokers installs RabbitMQ' if !PushStream::RabbitMq->script;

my $kills = $ENV{WORKER_KILLS} // 9;
my $seed = $ENV{WORKER_KILLS_SEED} // time;
srand $seed;
diag "seed $seed" if $kills > 20;
use constant { BURST => 25, THREADS => 7 };
$ENV{TEST_WORKERS} //= '2';

my $page = <<'HTML';
<!doctype html><title>page</title><script>
const seen = { redis: [], rabbit: [] }, gaps = [], opened = { redis: 0, rabbit: 0 };
const follow = (way, port) => {
    const source = new EventSource(`http://127.0.0.1:${port}/sub?id=all`);
    source.onopen = () => opened[way]++;
    source.onmessage = (event) => seen[way].push(JSON.parse(event.data).n);
    source.addEventListener("gap", (event) => gaps.push(way + event.data));
};
</script>
HTML

sub write_file ($path, $text) {
    open my $file, '>', $path or die "$path: $!";
    print {$file} $text;
    close $file;
}

sub count_lines ($path) {
    open my $file, '<', $path or return 0;
    my @lines = <$file>;
    return scalar @lines;
}

sub body ($n) { return sprintf '{"n":%d,"thread":%d}', $n, $n % THREADS }

# An append without an answer may have happened: it is looked up, as the producer must do that wants to be sure.
sub append ($redis, $n) {
    while (1) {
        my $answer = $redis->command('XADD', 'posts', '*', 'body', body($n));
        return if defined $answer && $answer =~ /^\d+-\d+$/;
        wait_until { $redis->answers } 60 or die 'Redis is gone';
        return if ($redis->command(qw(XREVRANGE posts + - COUNT 1)) // '') =~ /"n":$n,/;
    }
}

# Each number once, and those of a thread in order; says what is not so.
sub judge ($way, $sent, @numbers) {
    my (%times, %newest);
    my @inverted = grep { my $before = $newest{ $_ % THREADS } // 0; $newest{ $_ % THREADS } = $_; $before > $_ } @numbers;
    $times{$_}++ for @numbers;
    is join(' ', grep { !$times{$_} } 1 .. $sent), '', "$way: nothing is lost";
    is join(' ', grep { $times{$_} > 1 } keys %times), '', "$way: nothing is seen twice";
    is join(' ', @inverted), '', "$way: nothing overtakes what it belongs to";
}

my $conf = <<'CONF';
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_shared_memory_size 64m;
    push_stream_channels_path $arg_id;
    push_stream_store_messages on;
    push_stream_eventsource_retry 1ms 20ms;
    push_stream_allowed_origins "*";

    server {
        listen 127.0.0.1:%%PORT%%;
        listen unix:%%DIR%%/publish.sock;

        location = /page { default_type text/html; root %%DIR%%; try_files /page.html =404; }
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

my $browser = WebDriver->new;

for my $workers (split ' ', $ENV{TEST_WORKERS}) {
    my %nginx = map { $_ => PushStream::Nginx->start($conf, workers => $workers) } qw(redis rabbit);
    my $dir = File::Temp->newdir('push-stream-test-XXXXXX', TMPDIR => 1);
    my $rabbit = PushStream::RabbitMq->start;
    my $redis = PushStream::Redis->start;
    my %publish = map { $_ => 'unix:' . $nginx{$_}->dir . '/publish.sock' } keys %nginx;
    write_file "$dir/worker.toml", <<"END";
state_dir = "$dir/state"
[source]
posts = { type = "redis_streams", url = "${\$redis->url}", stream = "posts", group = "push", lease = "500ms", max_in_flight = 64 }
tasks = { type = "amqp", url = "${\$rabbit->url}", queue = "tasks", max_in_flight = 64 }
[stage]
parse = { type = "parse_json" }
route = { type = "route", channels = ["all", "thread.{thread}"], order_by = "thread" }
[sink]
redis = { type = "http_push", nodes = ["$publish{redis}"], retry = { initial = "10ms", max = "200ms" } }
rabbit = { type = "http_push", nodes = ["$publish{rabbit}"], retry = { initial = "10ms", max = "200ms" } }
[pipeline]
posts = { from = "posts", stages = ["parse", "route"], to = ["redis"] }
tasks = { from = "tasks", stages = ["parse", "route"], to = ["rabbit"] }
END
    my $start_worker = sub { PushStream::Program->start("$dir/worker.log", $program, 'run', "$dir/worker.toml") };
    my $worker = $start_worker->();
    # The worker declares the queue; the publisher waits for it.
    my $confirmed = "$dir/confirmed";
    open my $tasks, '|-', "exec setpriv --pdeathsig KILL /usr/bin/python3 '$FindBin::Bin/peers/confirmed_publisher.py' '@{[ $rabbit->url ]}' tasks > '$confirmed' 2> '$dir/publisher.log'" or die $!;
    $tasks->autoflush(1);

    write_file $nginx{redis}->dir . '/page.html', $page;
    $browser->open_url('http://127.0.0.1:' . $nginx{redis}->port . '/page');
    $browser->js('follow(arguments[0], arguments[1])', $_, $nginx{$_}->port) for keys %nginx;
    my $seen = sub ($way) { @{ $browser->js('return seen[arguments[0]]', $way) } };
    ok wait_until(sub { !grep { ($_->figures->{subscribers} // 0) != 1 } values %nginx }, 20), 'the page is there';

    # RabbitMQ 3.10 forgets a quorum queue that it was told of just before it is killed. One that it has once come back with is safe.
    print {$tasks} "0 " . body(0) . "\n";
    ok wait_until(sub { count_lines($confirmed) == 1 }, 60), 'the queue is there' or diag qx{cat '$dir/publisher.log'};
    $rabbit->end('TERM');
    $rabbit->launch;

    my $sent = 0;
    # What a broker that dies had confirmed, to see that it works again.
    my $confirmed_before = 1;
    my $works = sub { count_lines($confirmed) > $confirmed_before };
    my $send = sub {
        print {$tasks} map { "$_ " . body($_) . "\n" } $sent + 1 .. $sent + BURST;
        append $redis, ++$sent for 1 .. BURST;
    };
    my %kill = (
        worker => sub { $worker->end('KILL'); $worker = $start_worker->() },
        # One that has readers, if there is one: that some are broken is sure then.
        nginx => sub {
            my $nginx = $nginx{ (sort keys %nginx)[ rand 2 ] };
            my @workers = @{ $nginx->figures->{by_worker} };
            my @with_readers = grep { $_->{subscribers} } @workers;
            @workers = @with_readers if @with_readers;
            $nginx->kill_worker($workers[ rand @workers ]{pid});
        },
        redis => sub { $redis->kill_and_restart },
        # It takes seconds to come back, and everything else goes on meanwhile.
        rabbit => sub {
            wait_until { $works->() } 120 or die 'RabbitMQ confirms nothing';
            $rabbit->end;
            $confirmed_before = count_lines($confirmed);
            $rabbit->launch;
        },
    );
    my @each = qw(rabbit worker nginx redis);
    my %count;
    for my $round (1 .. $kills) {
        $send->();
        # Somewhere in the middle of what comes of it.
        sleep rand 0.05;
        my $victim = $round <= @each ? $each[ $round - 1 ] : !int rand 8 ? 'rabbit' : $each[ 1 + rand 3 ];
        $kill{$victim}->();
        $count{$victim}++;
    }
    $send->();
    my $deaths = join ', ', map { "$count{$_} x $_" } sort keys %count;
    diag "$sent messages on each way, $deaths" if $kills > 20;
    ok wait_until(sub { count_lines($confirmed) == 1 + $sent }, 120), "RabbitMQ has confirmed $sent messages, over kills of $deaths"
        or diag qx{cat '$dir/publisher.log'};
    for my $way (qw(redis rabbit)) {
        ok wait_until(sub { my %seen = map { $_ => 1 } grep { $_ } $seen->($way); keys %seen >= $sent }, 60 + $kills), "$way: all of them come";
        judge $way, $sent, grep { $_ } $seen->($way);
    }
    is_deeply $browser->js('return gaps'), [], 'and there is no gap';
    cmp_ok $browser->js('return opened.redis + opened.rabbit'), '>', 2, 'though streams were broken on the way';
    ok wait_until(sub { ($redis->command('XPENDING', 'posts', 'push') // '') =~ /^:0/ }, 30), 'everything is acknowledged';
    is $redis->command('XLEN', 'posts.parked'), ':0', 'nothing is parked';
    my $list = qx{$program park list '$dir/worker.toml' 2>&1};
    unlike $list, qr/task/, 'nor with RabbitMQ' or diag $list;
    is $worker->end('TERM'), 0, 'the worker ends well';
    close $tasks;
    for my $nginx (values %nginx) {
        is $nginx->stop, 0, 'so does nginx';
        is join('', $nginx->complaints), '', 'with nothing alarming in its log';
    }
    diag qx{tail -n 40 '$dir/worker.log' '$dir/publisher.log'} unless Test::More->builder->is_passing;
    $browser->open_url('about:blank');
}

done_testing;
