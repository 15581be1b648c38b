# Thousands of readers whose tokens end in the same second: each ends in time, and no turn of the event loop takes long.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;
use PushStream::Token;
use PushStream::Turns;

use IO::Socket::INET;
use POSIX ();
use Time::HiRes qw(time sleep);

only_over_plain_http1 'it is about many connections';
plan skip_all => 'sanitizers want to be loaded first' if $ENV{TEST_SANITIZER};

# The same with more: READERS=50000 TEST_WORKERS=4. A process of clients has as many as it may open files.
my $readers = $ENV{READERS} || 5000;
use constant READERS_EACH => 10_000;
my $slowness = PushStream::Nginx::slowness;

tokens({ claims => {} });    # makes the key
write_file(key_dir . '/keys.json', key_set('secret'));
my $keys = key_dir;

# A client has no more ports to one address than the system gives out.
my $crowds = POSIX::ceil($readers / READERS_EACH);
my $listeners = join "\n", map { "        listen 127.0.0.$_:%%PORT%% backlog=4096;" } 1 .. $crowds;
my $connections = $readers + 1000;
$connections = 19_000 if $connections > 19_000;
my $conf = <<"CONF";
%%MAIN%%
worker_rlimit_nofile 20000;
events { worker_connections $connections; }
http {
    %%HTTP%%
    access_log off;
    push_stream_shared_memory_size 16m;
    push_stream_channels_path \$arg_id;
    push_stream_token_keys $keys/keys.json;
    push_stream_token_leeway 0;
    push_stream_log_disconnect %%DIR%%/ends.log;

    server {
$listeners
        location /ev { push_stream_subscriber eventsource; push_stream_token required; }
        location /open { push_stream_subscriber eventsource; }
        location /pub { push_stream_publisher admin; }
        location /metrics { push_stream_channels_statistics; push_stream_statistics_format prometheus; }
        location /status { push_stream_channels_statistics; }
    }
}
CONF

sub slurp ($path) { open my $file, '<', $path or return ''; local $/; return scalar <$file> }

# The clients of one address: they come in until it is time, and read to their ends. The report has a line for all that came, then
# one for each end, with its time and whether it was told why.
sub crowd ($number, $nginx, $ends, $token, $path) {
    my $request = "GET /ev?id=a HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer $token\r\n\r\n";
    my $wanted = $number < $crowds ? READERS_EACH : $readers - ($crowds - 1) * READERS_EACH;
    my (%open, %texts);
    my $waiting = '';
    while (keys %open < $wanted && time < $ends - 4) {
        my $socket = IO::Socket::INET->new(PeerAddr => "127.0.0.$number", PeerPort => $nginx->port) or last;
        syswrite $socket, $request;
        $open{ fileno $socket } = $socket;
        vec($waiting, fileno $socket, 1) = 1;
    }
    open my $report, '>', $path or die "$path: $!";
    $report->autoflush;
    print $report 'came ' . keys(%open) . "\n";
    while (%open && time < $ends + 10 * $slowness) {
        select(my $ready = $waiting, undef, undef, 0.1) > 0 or next;
        for my $fd (grep { vec $ready, $_, 1 } keys %open) {
            next if sysread $open{$fd}, $texts{$fd}, 4096, length($texts{$fd} // '');
            my $told = $texts{$fd} =~ /event: expired\n.*\r\n0\r\n\r\n\z/s ? 1 : 0;
            print $report sprintf "end %.3f %d\n", time, $told;
            vec($waiting, $fd, 1) = 0;
            delete $open{$fd};
        }
        # nginx needs the processor, too.
        sleep 0.01;
    }
    print $report "done\n";
    return;
}

my $turns = PushStream::Turns->new;
for my $workers (split ' ', $ENV{TEST_WORKERS} // '1 4') {
    local $ENV{TEST_WORKERS} = $workers;
    local %ENV = (%ENV, $turns->environment);
    with_nginx $conf, sub ($nginx) {
        # Time to come in: those that did not are not of this test.
        my $ends = int(time) + 8 + int($readers / 1500) + 2 * $slowness;
        delete local @ENV{qw(LD_PRELOAD TURNS_DIR)};
        my ($token) = tokens({ claims => { exp => $ends, push => { subscribe => ['a'] } } });
        my @reports = map { $nginx->dir . "/crowd$_" } 1 .. $crowds;
        my @children;
        for my $number (1 .. $crowds) {
            my $pid = fork // die "fork: $!";
            if (!$pid) { crowd($number, $nginx, $ends, $token, $reports[ $number - 1 ]); POSIX::_exit(0) }
            push @children, $pid;
        }
        my $count = 0;
        my @came;
        wait_until { @came = map { -e && slurp($_) =~ /^came (\d+)\n/ ? $1 : () } @reports; @came == @reports } $ends - time;
        $count += $_ for @came;
        cmp_ok $count, '>=', $readers / 10, "$count readers came";
        ok wait_until { $nginx->figures->{subscribers} == $count }, 'all are in' or diag $nginx->figures->{subscribers};
        waitpid $_, 0 for @children;
        my (@late, $told);
        for my $report (@reports) {
            my $text = slurp($report);
            push @late, map { $_ - $ends } $text =~ /^end (\S+)/mg;
            $told += () = $text =~ /^end \S+ 1$/mg;
        }
        is scalar @late, $count, 'all have ended';
        is $told, $count, '... and were told why, with a proper end';
        my $log = sub { return scalar(() = slurp($nginx->dir . '/ends.log') =~ /reason=token_expired$/mg) };
        ok wait_until { $log->() == $count }, '... as the log of disconnects says' or diag $log->();
        @late = sort { $a <=> $b } @late;
        my $note = sprintf 'from %.2f s to %.2f s after their time', @late[ 0, -1 ];
        note $note;
        cmp_ok $late[0], '>=', -0.2, "not before: $note";
        # A loaded machine delays clients as much as nginx.
        cmp_ok $late[-1], '<=', 1 + 2 * $slowness, 'and soon after, on a quiet machine within a second';
        cmp_ok $late[ 0.9 * @late ] - $late[ 0.1 * @late ], '>', 0.3, 'spread, not in one turn';
        my @turns = $turns->since($ends - 0.1);
        cmp_ok scalar @turns, '>', 0, 'turns of the event loop are seen';
        $note = sprintf 'the longest took %.1f ms of a processor', 1000 * $turns[-1];
        cmp_ok $turns[-1], '<', 0.010, "none is long: $note";
        note $note;
    };
}

done_testing;
