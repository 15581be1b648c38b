# While publishers run, workers are killed: what was answered with 200 is never lost, and no worker hangs.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;

use POSIX ();

with_nginx <<'CONF', sub ($nginx) {
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_shared_memory_size 16m;
    push_stream_channels_path $arg_id;
    push_stream_store_messages on;
    keepalive_requests 100000;

    server {
        listen 127.0.0.1:%%PORT%% reuseport;

        location /pub { push_stream_publisher; }
        location /sub { push_stream_subscriber; push_stream_message_template "~text~;"; }
        location /poll { push_stream_subscriber polling; push_stream_message_template "~text~;"; }
        location /status { push_stream_channels_statistics; }
    }
}
CONF
    $nginx->expect_in_log(qr/exited on signal 9/);

    # Each publisher writes down what was answered, in a file.
    my @publishers;
    for my $number (1 .. 3) {
        my $pid = fork // die;
        if (!$pid) {
            open my $accepted, '>', $nginx->dir . "/accepted.$number";
            my ($client, $n) = (undef, 0);
            my $end = time + 4;
            while (time < $end) {
                $n++;
                my $status = eval {
                    $client //= $nginx->connect;
                    $client->request(POST => "/pub?id=a$number", body => "$number.$n")->status;
                };
                if (!$status) { $client = undef }
                elsif ($status == 200) { print {$accepted} "$number.$n\n" }
            }
            close $accepted;
            POSIX::_exit(0);
        }
        push @publishers, $pid;
    }

    my $kills = 0;
    my $end = time + 3.5;
    while (time < $end) {
        sleep 0.1 + rand 0.2;
        my @pids = $nginx->worker_pids or next;
        my $victim = $pids[ rand @pids ];
        $kills += kill KILL => $victim;
    }
    waitpid $_, 0 for @publishers;
    cmp_ok $kills, '>', 5, "$kills workers were killed";
    ok wait_until { scalar($nginx->worker_pids) == $nginx->worker_count }, 'all of them are replaced';

    for my $number (1 .. 3) {
        open my $file, '<', $nginx->dir . "/accepted.$number";
        chomp(my @accepted = <$file>);
        my $body = $nginx->get("/poll?id=a$number", 'If-Modified-Since' => 'Thu, 01 Jan 1970 00:00:00 GMT')->body;
        my %stored = map { $_ => 1 } split /;/, $body;
        my @lost = grep { !$stored{$_} } @accepted;
        is scalar @lost, 0, 'of ' . @accepted . " messages that publisher $number was told are accepted none is lost";
        my $in_order = join ';', sort { ($a =~ s/.*\.//r) <=> ($b =~ s/.*\.//r) } split /;/, $body;
        is $in_order . ';', $body, 'and they are in order';
    }

    my $stream = $nginx->subscribe('/sub?id=a1');
    $nginx->post('/pub?id=a1', 'last');
    is $stream->chunk, 'last;', 'delivery works';
    is $nginx->figures->{subscribers}, 1, 'counts are true';
    my $zone = $nginx->figures;
    my $sum = 0;
    $sum += $nginx->figures("a$_")->{stored_messages} for 1 .. 3;
    is $zone->{stored_messages}, $sum, 'also those of messages';
};

done_testing;
