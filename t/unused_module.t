# Loaded but not configured, the module costs nothing: no memory, no descriptor, no timer.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;

my $conf = <<'CONF';
%%MAIN%%
events {}
http {
    %%HTTP%%
    server {
        listen 127.0.0.1:%%PORT%%;
        location / { return 204; }
    }
}
CONF

# What a worker has: descriptors by kind, and shared memory.
my $belongings = sub ($nginx) {
    my ($pid) = $nginx->worker_pids;
    my %kinds;
    for my $fd (glob "/proc/$pid/fd/*") {
        my $target = readlink $fd // next;
        $kinds{ $target =~ s/\d+/N/gr =~ s/push-stream-test-\w+/DIR/r }++;
    }
    open my $maps, '<', "/proc/$pid/maps" or die;
    my $shared = 0;
    while (<$maps>) {
        no warnings 'portable';
        my ($from, $to) = m{^([0-9a-f]+)-([0-9a-f]+) rw-s} or next;
        $shared += hex($to) - hex $from;
    }
    return join ', ', "$shared bytes shared", map { "$_ $kinds{$_}" } sort keys %kinds;
};

with_nginx $conf, sub ($nginx) {
    is $nginx->get('/')->status, 204, 'nginx works';
    ok $nginx->wait_for_log(qr/\[notice\].*ngx_http_push_stream_module will not be used with this configuration/),
        'it says that it is not used';

    my $without = PushStream::Nginx->start($conf =~ s/%%MAIN%%/%%MAIN_WITHOUT_MODULE%%/r, workers => $nginx->worker_count);
    # The connections of both starts close a moment later.
    wait_until { $belongings->($nginx) eq $belongings->($without) };
    is $belongings->($nginx), $belongings->($without), 'a worker has what it has without the module';

    # An idle worker without timers sleeps.
    my ($pid) = $nginx->worker_pids;
    my $switches = sub { open my $file, '<', "/proc/$pid/status"; my ($n) = map { /^voluntary_ctxt_switches:\s+(\d+)/ } <$file>; $n };
    my $before = $switches->();
    sleep 2.5;
    is $switches->(), $before, 'and sleeps when there is nothing to do';
    is $without->stop, 0, 'the other one ends';
};

done_testing;
