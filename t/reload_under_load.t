# Browsers that reconnect with Last-Event-Id lose nothing while nginx is reloaded again and again.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;

with_nginx <<'CONF', sub ($nginx) {
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_shared_memory_size 8m;
    push_stream_channels_path $arg_id;
    push_stream_store_messages on;

    server {
        listen 127.0.0.1:%%PORT%%;

        location /pub { push_stream_publisher; }
        location /ev { push_stream_subscriber eventsource; }
    }
}
CONF
    my ($sent, @read, $events) = (0);
    my $publish = sub {
        my $next = $sent + 1;
        # nginx may close a connection that it was just about to be asked on; nothing was published then.
        my $status = eval { $nginx->post('/pub?id=a', "m$next", 'Event-Id' => $next)->status } // 0;
        $sent = $next if $status == 200;
    };
    my $read_on = sub ($seconds) {
        # Nor may it answer who has just come.
        $events //= eval { $nginx->subscribe('/ev?id=a', @read ? ('Last-Event-Id' => $read[-1]) : ()) } // return;
        while (1) {
            my $event = eval { $events->event($seconds) };
            if (!$event) {
                $events = undef if $@ =~ /ended/;
                return;
            }
            push @read, $event->{id};
        }
    };

    $publish->();
    $events = $nginx->subscribe('/ev?id=a.b1');
    for my $round (1 .. 5) {
        $publish->() for 1 .. 20;
        my %old = map { $_ => 1 } $nginx->worker_pids;
        $nginx->signal('HUP');
        my $gone = 0;
        for (1 .. 500) {
            $publish->();
            $read_on->(0.01);
            my @pids = $nginx->worker_pids(leaving => 1);
            $gone = @pids == $nginx->worker_count && !grep { $old{$_} } @pids;
            last if $gone;
        }
        ok $gone, "reload $round is done";
    }
    wait_until { $read_on->(0.05); ($read[-1] // 0) == $sent };
    is "@read", "@{[ 1 .. $sent ]}", "all $sent messages, each once, in order";
};

done_testing;
