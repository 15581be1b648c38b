# Memory of the zone that nothing was put into is not touched: a large zone costs what is in it.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;

use POSIX ();

my $conf = <<'CONF';
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_shared_memory_size 4g;
    push_stream_channels_path $arg_id;
    push_stream_store_messages on;

    server {
        listen 127.0.0.1:%%PORT%%;

        location /pub { push_stream_publisher; }
        location /sub { push_stream_subscriber; }
    }
}
CONF

# The largest resident size that any process waited for has had, in KiB: Perl has no getrusage of its own.
my $largest_child = sub {
    my %number = (x86_64 => 98, aarch64 => 165);
    my $call = $number{ (POSIX::uname())[4] } or return undef;
    my $usage = "\0" x 144;
    my $children = -1;
    syscall($call, $children, $usage) == 0 or return undef;
    return (unpack 'q18', $usage)[4];
};

SKIP: {
    # In a process of its own: nothing but `nginx -t` counts.
    my $child = open(my $answer, '-|') // die "cannot fork: $!\n";
    if (!$child) {
        my ($content, $output) = configuration_output($conf);
        print $content ? $largest_child->() // 'unknown' : $output;
        close STDOUT;
        POSIX::_exit(0);
    }
    my $kib = <$answer>;
    close $answer;
    skip 'the size of a process that has ended cannot be asked for here', 2 if $kib eq 'unknown';
    like $kib, qr/^\d+$/, '`nginx -t` is content with 4 GiB';
    cmp_ok $kib, '<', 64 * 1024, "and takes $kib KiB of memory for it";
}

with_nginx $conf, sub ($nginx) {
    my $resident = sub ($pid) {
        open my $file, '<', "/proc/$pid/status" or die;
        my ($kib) = map { /^RssShmem:\s+(\d+)/ } <$file>;
        return $kib;
    };
    cmp_ok $resident->($nginx->master), '<', 64 * 1024, 'a running nginx touches no more either';
    my $untouched = $resident->($nginx->master);
    my $publisher = $nginx->connect;
    $publisher->request(POST => "/pub?id=$_", body => 'x' x 1000) for 1 .. 100;
    my $most = 0;
    for my $pid ($nginx->worker_pids) {
        my $kib = $resident->($pid);
        $most = $kib if $kib > $most;
    }
    cmp_ok $most, '<', $untouched + 2048, "with a hundred messages: $most KiB";
    my ($content, $output) = configuration_output($conf);
    ok $content, 'a second configuration is checked beside it' or diag $output;
};

done_testing;
