# A key file is replaced while very many subscribers come: no valid token is refused, the new key counts within seconds, and a
# broken file changes nothing.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;
use PushStream::Token;

use IO::Socket::INET;
use Time::HiRes qw(time sleep);

only_over_plain_http1 'it is about many connections';

use constant { CLIENTS => 3, LOOK => 5 };

my $slowness = PushStream::Nginx::slowness;
my %claims = (sub => '42', push => { subscribe => ['a'] });
my ($old, $new) = tokens(
    { key => 'old', algorithm => 'ES256', claims => \%claims, headers => { kid => '1' } },
    { key => 'new', algorithm => 'ES256', claims => \%claims, headers => { kid => '2' } },
);
my $keys = key_dir;
my ($first, $both) = (key_set([ 'old', kid => '1' ]), key_set([ 'old', kid => '1' ], [ 'new', kid => '2' ]));
write_file("$keys/keys.json", $first);

my $conf = <<"CONF";
%%MAIN%%
events { worker_connections 4096; }
http {
    %%HTTP%%
    access_log off;
    push_stream_shared_memory_size 4m;
    push_stream_channels_path \$arg_id;
    push_stream_token required;
    push_stream_token_keys $keys/keys.json;

    server {
        listen 127.0.0.1:%%PORT%% backlog=4096;
        location /ev { push_stream_subscriber eventsource; }
        location /status { push_stream_channels_statistics; push_stream_token off; }
    }
}
CONF

# Subscribes, and leaves; the status.
sub status_of ($port, $token) {
    my $socket = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $port) or return 0;
    print $socket "GET /ev?id=a HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer $token\r\n\r\n";
    my $line = <$socket> // '';
    return $line =~ m{^HTTP/1.1 (\d+)} ? $1 : 0;
}

# Subscribes as fast as it can until it is told to end, by a file; writes a line for each change of the new token's status.
sub come_and_go ($port, $name) {
    open my $report, '>', "$name.report" or die "$name: $!";
    $report->autoflush;
    my ($count, $refused, $before) = (0, 0, 0);
    while (!-e "$keys/end") {
        for (1 .. 20) {
            my $status = status_of($port, $old);
            $refused++ if $status != 200;
            print $report "old $status\n" if $status != 200 && $refused < 10;
        }
        my $status = status_of($port, $new);
        printf $report "new %d %.3f\n", $status, time if $status != $before;
        $before = $status;
        $count += 21;
    }
    print $report "done $count $refused\n";
    close $report;
    return;
}

sub report ($name) { open my $file, '<', "$name.report" or return (); chomp(my @lines = <$file>); return @lines }

{
    local $ENV{TEST_WORKERS} = 4;
    with_nginx $conf, sub ($nginx) {
        my ($port, @children) = $nginx->port;
        my @names = map { "$keys/client$_" } 1 .. CLIENTS;
        my $began = time;
        for my $name (@names) {
            my $pid = fork // die "fork: $!";
            if (!$pid) { come_and_go($port, $name); require POSIX; POSIX::_exit(0) }
            push @children, $pid;
        }
        # Each writes a line when the new key's token is refused for the first time.
        ok wait_until { @names == grep { report($_) } @names }, 'clients come and go';
        my $written = time;
        write_file("$keys/keys.json", $both);
        # So often in a row that every worker was asked.
        my ($seen, $counts) = (0, undef);
        ok((wait_until { $seen = status_of($port, $new) == 200 ? $seen + 1 : 0; $seen > 40 } 4 * LOOK), 'the new key counts');
        $counts = time - $written;
        cmp_ok $counts, '<', LOOK + $slowness, sprintf 'after %.1f s', $counts;

        $nginx->expect_in_log(qr/keys\.json" is no JSON/);
        write_file("$keys/keys.json", substr $both, 0, 50);
        my $told = sub { return scalar(() = $nginx->log =~ /keys\.json" is no JSON/g) };
        ok((wait_until { $told->() == 4 } 4 * LOOK), 'each worker has found the broken file');
        # For one more look of each.
        sleep LOOK + 0.5;
        is $told->(), 4, '... and said so once';
        is status_of($port, $_), 200, 'both keys count' for $old, $new;

        write_file("$keys/end", '');
        waitpid $_, 0 for @children;
        my $seconds = time - $began;
        my ($count, $refused, $late) = (0, 0, 0);
        for my $name (@names) {
            my @lines = report($name);
            my ($done) = grep {/^done/} @lines;
            my ($came, $no) = $done =~ /^done (\d+) (\d+)/;
            $count += $came;
            $refused += $no;
            diag grep {/^old/} @lines if $no;
            # The new token: refused at first, then accepted by some workers and not yet by others, in the end by all.
            my ($last) = grep {/^new/} reverse @lines;
            $late++ if $last !~ /^new 200 ([\d.]+)/ || $1 > $written + LOOK + $slowness;
        }
        note sprintf '%d subscribers came in %.1f s: %d a second', $count, $seconds, $count / $seconds;
        is $refused, 0, "no valid token of $count was refused";
        is $late, 0, 'the new one was not refused any more once it counted, whatever the file';
        ok wait_until { $nginx->figures->{subscribers} == 0 }, 'all are gone';
    };
}

done_testing;
