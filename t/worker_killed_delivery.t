# While workers are killed, the subscribers of the others miss nothing, and those who reconnect miss nothing either.

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
    # Subscribers read only when all is over.
    push_stream_subscriber_queue 64m;
    keepalive_requests 100000;

    server {
        listen 127.0.0.1:%%PORT%% reuseport;

        location /pub { push_stream_publisher; }
        location /ev { push_stream_subscriber eventsource; }
        location /status { push_stream_channels_statistics; }
    }
}
CONF
    $nginx->expect_in_log(qr/exited on signal 9/);

    # Subscribers of one worker, which will be spared; with a single worker there is nobody to spare.
    my ($spared, @spared);
    if ($nginx->worker_count > 1) {
        my $on = sub { +{ map { $_->{pid} => $_->{subscribers} } @{ $nginx->figures->{by_worker} } } };
        for (1 .. 200) {
            my $before = $on->();
            my $client = $nginx->subscribe('/ev?id=a');
            my $after = $on->();
            my ($pid) = grep { $after->{$_} > ($before->{$_} // 0) } keys %$after;
            $spared //= $pid;
            if ($pid == $spared) { push @spared, $client }
            else {
                $client->close;
                wait_until { $nginx->figures->{subscribers} == @spared };
            }
            last if @spared == 5;
        }
        is scalar @spared, 5, 'five subscribers on one worker';
    }

    my $until = time + 4;
    my $publisher = fork // die;
    if (!$publisher) {
        open my $accepted, '>', $nginx->dir . '/accepted';
        my ($client, $n) = (undef, 0);
        while (time < $until) {
            $n++;
            my $status = eval {
                $client //= $nginx->connect;
                $client->request(POST => '/pub?id=a', headers => { 'Event-Id' => $n }, body => $n)->status;
            };
            if (!$status) { $client = undef }
            elsif ($status == 200) { print {$accepted} "$n\n" }
        }
        close $accepted;
        POSIX::_exit(0);
    }

    # A browser that is cut off again and again.
    my ($browser, @browser);
    my $browse = sub ($seconds) {
        my $event = eval {
            $browser //= $nginx->subscribe('/ev?id=a' . (@browser ? '' : '.b999999'), @browser ? ('Last-Event-Id' => $browser[-1]) : ());
            $browser->event($seconds);
        };
        push @browser, $event->{id} if $event;
        $browser = undef if !$event && $@ !~ /in time/;
        return $event;
    };
    my ($kills, $next_kill) = (0, time + 0.3);
    while (time < $until) {
        $browse->(0.05);
        next if time < $next_kill;
        $next_kill = time + 0.1 + rand 0.3;
        my @victims = grep { $_ != ($spared // 0) } $nginx->worker_pids or next;
        $kills += kill KILL => $victims[ rand @victims ];
    }
    waitpid $publisher, 0;
    cmp_ok $kills, '>', 3, "$kills workers were killed";

    open my $file, '<', $nginx->dir . '/accepted' or die;
    chomp(my @accepted = <$file>);
    cmp_ok scalar @accepted, '>', 100, @accepted . ' messages were accepted';
    my $judge = sub ($name, @read) {
        my %read = map { $_ => 1 } @read;
        my @missing = grep { !$read{$_} } @accepted;
        is "@missing[0 .. ($#missing < 9 ? $#missing : 9)]", '', "$name got all of them";
        is scalar(grep { $read[$_] <= $read[ $_ - 1 ] } 1 .. $#read), 0, "$name: each once, in order";
    };
    1 while ($browser[-1] // 0) < $accepted[-1] && ($browse->(PushStream::Client::SECONDS) || !$browser);
    $judge->('the browser', @browser);
    for my $number (1 .. @spared) {
        my ($client, @read) = $spared[ $number - 1 ];
        while (($read[-1] // 0) < $accepted[-1]) {
            push @read, (eval { $client->event } // last)->{id};
        }
        $judge->("spared subscriber $number", @read);
    }
};

done_testing;
