# A message reaches the subscribers of all workers, once and in order, whichever worker took it.

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
        # Each worker with a queue of its own, so that subscribers are spread over all of them.
        listen 127.0.0.1:%%PORT%% reuseport;

        location /pub { push_stream_publisher; }
        location /ev { push_stream_subscriber eventsource; push_stream_message_template "~channel~ ~text~"; }
        location /status { push_stream_channels_statistics; }
    }
}
CONF
    my ($channels, $publishers, $each) = (5, 4, 100);
    my @subscribers = map { [ $_ % $channels, $nginx->subscribe('/ev?id=c' . $_ % $channels) ] } 0 .. 59;
    if ($nginx->worker_count > 1) {
        my @busy = grep { $_->{subscribers} } @{ $nginx->figures->{by_worker} };
        cmp_ok scalar @busy, '>', 1, 'subscribers on ' . @busy . ' workers';
    }

    # Publishers side by side, each of them to all channels.
    my @pids;
    for my $publisher (1 .. $publishers) {
        my $pid = fork // die;
        if (!$pid) {
            my $client = $nginx->connect;
            for my $n (1 .. $each) {
                for my $channel (0 .. $channels - 1) {
                    $client->request(POST => "/pub?id=c$channel", body => "$publisher.$n");
                }
            }
            POSIX::_exit(0);
        }
        push @pids, $pid;
    }

    my (%order, @wrong);
    for my $subscriber (@subscribers) {
        my ($channel, $client) = @$subscriber;
        my (%next, @got);
        for (1 .. $publishers * $each) {
            my $data = eval { $client->event(20)->{data} } // last;
            push @got, $data;
            my ($id, $publisher, $n) = $data =~ /^c(\d+) (\d+)\.(\d+)$/;
            push @wrong, $data if $id != $channel || $n != ++$next{$publisher};
        }
        push @wrong, 'only ' . @got if @got != $publishers * $each;
        $order{$channel}{"@got"}++;
    }
    waitpid $_, 0 for @pids;
    is "@wrong[0 .. ($#wrong < 5 ? $#wrong : 5)]", '', 'every subscriber gets every message of its channel once';
    is scalar(grep { keys %$_ != 1 } values %order), 0, 'all subscribers of a channel in the same order';

    my $worst = 0;
    for (1 .. 100) {
        my $start = time;
        $nginx->post('/pub?id=c0', 'tick');
        $_->[1]->event for grep { $_->[0] == 0 } @subscribers;
        my $took = time - $start;
        $worst = $took if $took > $worst;
    }
    within $worst, 0.5, sprintf 'messages one by one: after %.0f ms at most everybody has it', $worst * 1000;
};

done_testing;
