# A worker that is killed takes its own subscribers with it, and nothing else.

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
    push_stream_channels_path $arg_id;
    push_stream_store_messages on;

    server {
        # Each worker with a queue of its own, so that subscribers are spread over all of them.
        listen 127.0.0.1:%%PORT%% reuseport;

        location /pub { push_stream_publisher admin; }
        location /sub { push_stream_subscriber; push_stream_message_template "~id~;"; }
        location /ev { push_stream_subscriber eventsource; }
        location /status { push_stream_channels_statistics; }
    }
}
CONF
    my $counted = sub { my $zone = $nginx->figures; ($zone->{subscribers}, $nginx->figures('a')->{subscribers}) };
    my $published = 0;

    my @living;
    for my $round (1 .. 3) {
        push @living, $nginx->subscribe('/sub?id=a') while @living < 40;
        my %by_worker = map { $_->{pid} => $_->{subscribers} } @{ $nginx->figures->{by_worker} };
        my ($victim) = sort { $by_worker{$b} <=> $by_worker{$a} } keys %by_worker;
        my $left = 40 - $by_worker{$victim};

        $nginx->kill_worker($victim);
        my $start = time;
        ok wait_until(sub { join(' ', $counted->()) eq "$left $left" }, 2), "round $round: $left of 40 are counted";
        within time - $start, 1.2, 'within a second';
        my @pids = map { $_->{pid} } @{ $nginx->figures->{by_worker} };
        is_deeply [ sort @pids ], [ sort $nginx->worker_pids ], 'the new worker is listed, the dead one is not';

        my @dead = grep { !$_->is_quiet(0) } @living;
        is scalar @dead, $by_worker{$victim}, 'those of the dead worker are cut off';
        @living = grep { $_->is_quiet(0) } @living;

        is $nginx->post('/pub?id=a', 'x')->json->{published_messages}, ++$published, 'publishing goes on';
        my $newcomer = $nginx->subscribe('/sub?id=a.b1');
        is $newcomer->chunk, "$published;", 'what is stored is still there';
        is scalar(grep { $_->chunk ne "$published;" } @living), 0, 'and everybody else gets the message';
        push @living, $newcomer;
    }

    # All at once.
    my @victims = $nginx->worker_pids;
    $nginx->expect_in_log(qr/exited on signal 9/);
    $nginx->signal(KILL => $_) for @victims;
    my %victim = map { $_ => 1 } @victims;
    ok wait_until { my @pids = $nginx->worker_pids; @pids == @victims && !grep { $victim{$_} } @pids }, 'all workers are replaced';
    ok wait_until(sub { join(' ', $counted->()) eq '0 0' }, 3), 'nobody is left';
    is $nginx->post('/pub?id=a', 'x')->json->{published_messages}, ++$published, 'the zone has survived';
    my $stream = $nginx->subscribe("/sub?id=a.b$published");
    is $stream->text_until(qr/\b$published;/), join('', map { "$_;" } 1 .. $published), 'with everything in it';
    $nginx->post('/pub?id=a', 'x');
    is $stream->chunk, $published + 1 . ';', 'and delivers';
};

done_testing;
