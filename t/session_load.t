# Changes of live subscriptions under load: eight clients change the channels of their streams as fast as they are answered, at
# whatever workers their requests land, while publishers publish and workers are killed.
#
# Each client resumes in order: when its stream is cut it comes back with the last id, and subscribes again to what it had, above
# that id. At the end every stream has exactly the channels that its last answer has said; from each interval in which a client
# had a channel it has that channel's messages without a hole, once, and in their order; no answer took longer than 2 s and the
# time that a worker's death takes to be noticed.
#
# TEST_CHANGES: how many changes are made; default 12000.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;

use IO::Select;
use JSON::PP;
use POSIX qw(_exit);

only_over_plain_http1 'its clients speak nothing else';

my $changes = $ENV{TEST_CHANGES} || 12_000;
my ($clients, $channels) = (8, 12);
my $kill_every = 0.7;

my $conf = <<'CONF';
%%MAIN%%
events { worker_connections 1024; }
http {
    %%HTTP%%
    push_stream_shared_memory_size 64m;
    push_stream_channels_path $arg_id;
    push_stream_store_messages on;
    push_stream_message_ttl 1h;
    push_stream_auto_event_id on;
    push_stream_resume ordered;
    push_stream_ping_message_interval 1s;
    keepalive_requests 1000000;
    access_log off;

    server {
        listen 127.0.0.1:%%PORT%% reuseport backlog=1024;

        location /pub { push_stream_publisher admin; }
        location /ev { push_stream_subscriber eventsource; push_stream_control on; }
        location /poll { push_stream_subscriber polling; push_stream_message_template ~text~; }
        location /control { push_stream_session_control; }
        location /status { push_stream_channels_statistics; }
    }
}
CONF

# Publishes numbered messages to random channels until it is told to stop; a number is not used again.
sub publisher ($nginx, $name, $until) {
    my ($client, $number) = (undef, 0);
    srand $$;
    until (-e $until) {
        my $channel = 'c' . int rand $channels;
        eval {
            $client //= $nginx->connect;
            $client->request(POST => "/pub?id=$channel", body => "$name-" . ++$number);
            1;
        } or undef $client;
        sleep 0.004;
    }
}

# A client: its stream, what it has got, and what it was told.
package Reader {
    use v5.36;
    use Time::HiRes qw(time sleep);
    use JSON::PP;

    sub new ($class, $nginx, $name) {
        return bless { nginx => $nginx, name => $name, base => "base-$name", had => {}, intervals => {}, last => undef, slowest => 0, cuts => 0, trouble => [], done => 0 }, $class;
    }

    sub trouble ($self, $text) { push @{ $self->{trouble} }, $text if @{ $self->{trouble} } < 5 }

    # Opens the stream; with it all channels that it had.
    sub come_back ($self) {
        delete @$self{qw(stream control session confirmed)};
        my $deadline = time + 20 * PushStream::Nginx::slowness;
        while (1) {
            die "$self->{name} does not come back\n" if time > $deadline;
            my $before = @{ $self->{got} };
            last if eval {
                # What was got before the cut counts, until all channels are confirmed again.
                my $last = $self->{safe} // $self->{last};
                $self->{safe} = $last;
                my $stream = $self->{nginx}->open(GET => "/ev?id=$self->{base}", headers => { defined $last ? ('Last-Event-ID' => $last) : () });
                $self->{stream} = $stream;
                $stream->status == 200 or die 'refused';
                delete $self->{session};
                $self->take_one until $self->{session};
                my @again = sort keys %{ $self->{had} };
                if (@again) {
                    my $answer = $self->ask({ session => $self->{session}, subscribe => \@again, defined $last ? (last_event_id => $last) : () });
                    $answer->status == 200 or die 'not again';
                    $self->await_confirmation(\@again);
                }
                delete $self->{safe};
                1;
            };
            # Half a history: it comes again.
            splice @{ $self->{got} }, $before;
            delete @$self{qw(stream control confirmed)};
            sleep 0.02;
        }
        $self->{cuts}++;
    }

    # Takes one event off the stream.
    sub take_one ($self) {
        my $event = $self->{stream}->event(10 * PushStream::Nginx::slowness);
        if (($event->{event} // '') eq 'session') {
            my $data = decode_json($event->{data});
            $self->{session} = $data->{session};
            $self->{confirmed} = [ sort grep { $_ ne $self->{base} } @{ $data->{channels} } ] if $data->{channels};
        } else {
            push @{ $self->{got} }, $event->{data};
        }
        $self->{last} = $event->{id} if defined $event->{id};
    }

    # Takes what is there.
    sub take ($self, $seconds = 0) {
        $self->take_one while $self->{stream}{text} =~ /\n\n/ || length($self->{stream}{buffer} // '') || IO::Select->new($self->{stream}->socket)->can_read($seconds);
    }

    sub await_confirmation ($self, $wanted) {
        my $deadline = time + 10 * PushStream::Nginx::slowness;
        until ($self->{confirmed} && "@{ $self->{confirmed} }" eq "@$wanted") {
            die "not confirmed\n" if time > $deadline;
            $self->take_one;
        }
        delete $self->{confirmed};
    }

    # A request for a change, often on another connection and so at another worker.
    sub ask ($self, $body) {
        delete $self->{control} if rand() < 0.2;
        $self->{control} //= $self->{nginx}->connect;
        my $begun = time;
        my $answer = $self->{control}->request(POST => '/control', body => encode_json($body));
        my $took = time - $begun;
        $self->{slowest} = $took if $took > $self->{slowest};
        return $answer;
    }
}

package main;

# Makes changes; writes a report for the parent.
sub client ($nginx, $name, $count, $report, $finish) {
    srand $$;
    my $reader = Reader->new($nginx, $name);
    # Got in this order: markers say when a channel begins and ends for this client.
    $reader->{got} = [];
    $reader->come_back;
    $reader->{cuts} = 0;
    my $made = 0;
    my %statuses;
    while ($made < $count) {
        my $had = $reader->{had};
        my %next = %$had;
        my (@subscribe, @unsubscribe);
        for (1 .. 1 + int rand 3) {
            my $channel = 'c' . int rand $channels;
            next if grep { $_ eq $channel } @subscribe, @unsubscribe;
            if ($next{$channel}) { push @unsubscribe, $channel; delete $next{$channel} }
            else { push @subscribe, $channel; $next{$channel} = 1 }
        }
        my $answer = eval { $reader->ask({ session => $reader->{session}, subscribe => \@subscribe, unsubscribe => \@unsubscribe }) };
        $statuses{ $answer ? $answer->status : 'cut' }++;
        if ($answer && $answer->status == 200) {
            my @said = sort grep { $_ ne $reader->{base} } @{ $answer->json->{channels} };
            my @wanted = sort keys %next;
            $reader->trouble("it has @said, not @wanted") if "@said" ne "@wanted";
            $made++;
            my $fine = eval { $reader->await_confirmation(\@wanted); 1 };
            push @{ $reader->{got} }, map({ "-$_" } @unsubscribe), map({ "+$_" } @subscribe);
            $reader->{had} = \%next;
            $reader->come_back if !$fine;
            next;
        }
        if ($answer && $answer->status == 503) {
            select undef, undef, undef, 0.01;
            next;
        }
        # It may have been made, or not: what the stream was told before the cut counts no more.
        my $held = eval {
            my $now = $reader->ask({ session => $reader->{session} });
            $now->status == 200 or die;
            my @said = sort grep { $_ ne $reader->{base} } @{ $now->json->{channels} };
            $reader->await_confirmation(\@said);
            \@said;
        };
        if ($held) {
            my %held = map { $_ => 1 } @$held;
            push @{ $reader->{got} }, map({ "-$_" } grep { !$held{$_} } keys %$had), map({ "+$_" } grep { !$had->{$_} } @$held);
            $reader->{had} = \%held;
        } else {
            # The stream is gone, too. What was to go may have ended already; it begins anew.
            push @{ $reader->{got} }, map { "-$_" } @subscribe, @unsubscribe;
            $reader->come_back;
        }
    }
    # All that is published is there when the last message of each channel is.
    open my $ready, '>', "$report.ready" or die;
    close $ready;
    my %open = map { $_ => 1 } keys %{ $reader->{had} };
    my $deadline = time + 30 * PushStream::Nginx::slowness;
    while (time < $deadline) {
        eval { $reader->take(0.05); 1 } or $reader->come_back;
        last if -e $finish && !grep { my $channel = $_; !grep { $_ eq "end-$channel" } @{ $reader->{got} } } keys %open;
    }
    open my $file, '>', $report or die;
    print $file encode_json({ map { $_ => $reader->{$_} } qw(name got had slowest cuts trouble) , statuses => 0 });
    print $file "\n", encode_json(\%statuses);
    close $file;
    rename $report, "$report.done";
}

sub start ($work) {
    my $pid = fork // die "fork: $!";
    return $pid if $pid;
    eval { $work->(); 1 } or print STDERR "a client: $@";
    _exit(0);
}

with_nginx $conf, sub ($nginx) {
    my $dir = $nginx->dir;
    my $stop = "$dir/stop-publishing";
    my @publishers = map { my $name = "p$_"; start(sub { publisher($nginx, $name, $stop) }) } 1, 2;
    my $each = int($changes / $clients);
    my $begun = time;
    my @readers = map { my $name = $_; start(sub { client($nginx, $name, $each, "$dir/report-$name", "$dir/finish") }) } 1 .. $clients;
    my $kills = 0;
    my $limit = (60 + $changes / 50) * PushStream::Nginx::slowness;
    my $next_kill = time + $kill_every;
    while (time - $begun < $limit && (grep { !-e "$dir/report-$_.ready" } 1 .. $clients)) {
        if (time >= $next_kill) {
            my @workers = $nginx->worker_pids;
            $nginx->kill_worker($workers[ rand @workers ]);
            $kills++;
            $next_kill = time + $kill_every;
        }
        sleep 0.05;
    }
    my $took = time - $begun;
    open my $file, '>', $stop or die;
    close $file;
    waitpid $_, 0 for @publishers;
    for my $channel (map { "c$_" } 0 .. $channels - 1) {
        wait_until { $nginx->post("/pub?id=$channel", "end-$channel")->status == 200 };
    }
    open $file, '>', "$dir/finish" or die;
    close $file;
    waitpid $_, 0 for @readers;
    $nginx->expect_in_log(qr/exited on signal 9/);
    cmp_ok $kills, '>', 1, 'workers were killed meanwhile';
    note sprintf '%d changes in %.1f s, %d workers killed', $changes, $took, $kills;

    my %log;
    for my $channel (map { "c$_" } 0 .. $channels - 1) {
        my $place = 0;
        my $text = $nginx->get("/poll?id=$channel", 'Last-Event-Id' => '0')->body;
        $log{$channel} = { map { $_ => $place++ } $text =~ /((?:p\d-\d+)|(?:end-$channel))/g };
    }
    my (%channel_of, @reports);
    for my $channel (keys %log) { $channel_of{$_} = $channel for keys %{ $log{$channel} } }

    for my $name (1 .. $clients) {
        my ($report, $statuses);
        if (open my $in, '<', "$dir/report-$name.done") { ($report, $statuses) = map { decode_json($_) } <$in> }
        ok $report, "client $name has come to its end" or next;
        note "client $name: " . join ', ', "$report->{cuts} cuts", sprintf('slowest answer %.2f s', $report->{slowest}), map { "$_ $statuses->{$_}" } sort keys %$statuses;
        my %at;
        my @trouble = @{ $report->{trouble} };
        for my $item (@{ $report->{got} }) {
            if (my ($channel) = $item =~ /^[-+](c\d+)$/) {
                # Messages up to the answer came before.
                delete $at{$channel} if $item =~ /^-/;
                next;
            }
            my $channel = $channel_of{$item};
            if (!defined $channel) { push @trouble, "a message of nobody: $item"; next }
            my $place = $log{$channel}{$item};
            push @trouble, "$channel: message $place after $at{$channel}" if defined $at{$channel} && $place != $at{$channel} + 1;
            $at{$channel} = $place;
        }
        for my $channel (keys %{ $report->{had} }) {
            push @trouble, "$channel: the end is missing" if !grep { $_ eq "end-$channel" } @{ $report->{got} };
        }
        for my $channel (grep { !$report->{had}{$_} } keys %log) {
            push @trouble, "$channel: its end came, and it was not held" if grep { $_ eq "end-$channel" } @{ $report->{got} };
        }
        splice @trouble, 8;
        is "@trouble", '', "client $name: exactly what it held, whole, once, in order";
        within $report->{slowest}, 3.2, "client $name: nobody waited long";
    }
    ok wait_until { ($nginx->figures->{subscribers} // 0) == 0 }, 'and all is gone when they have left';
};

done_testing;
