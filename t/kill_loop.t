# Workers are killed and the configuration is replaced while thousands listen and publishers publish: every subscriber that
# comes back with Last-Event-ID has the log of its channel, whole, once, in order, and nothing else.
#
# They listen in all modes that can go on where they were: EventSource, WebSocket, streaming and long polling.
#
# push-stream-bench keeps the books: one publisher for each channel, which sends a message only after the answer to the one
# before, and checks every byte that a subscriber gets. A publish without its 2xx may arrive or not; its id is never used again.
#
# TEST_KILLS: how many workers to kill; default 25. From 200 on, 2,000 subscribers on 50 channels.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;

only_over_plain_http1 'its clients speak nothing else';

use Cwd qw(abs_path);
use File::Copy qw(copy);
use JSON::PP qw(decode_json);
use POSIX qw(WNOHANG);

my $kills = $ENV{TEST_KILLS} || 25;
my $full = $kills >= 200;
my ($subscribers, $channels, $publishers) = $full ? (2000, 50, 8) : (300, 20, 8);
my $reloads = $full ? 20 : 4;
my $kill_every_ms = 120;

my $bench = abs_path($ENV{PUSH_STREAM_BENCH} || "$FindBin::Bin/../target/release/push-stream-bench");
plan skip_all => "there is no $bench: scripts/build makes it" if !-x $bench;

my $conf = <<'CONF';
%%MAIN%%
events { worker_connections 4096; }
http {
    %%HTTP%%
    push_stream_shared_memory_size 64m;
    push_stream_store_messages on;
    push_stream_message_ttl 10m;
    push_stream_max_messages_stored_per_channel 100000;
    push_stream_ping_message_interval 1s;
    keepalive_requests 1000000;
    access_log off;
    # Nothing tells a long poll that it has come in time for the first message: without a position it begins with what is stored.
    map $http_if_modified_since $since { "" "Thu, 01 Jan 1970 00:00:00 GMT"; default $http_if_modified_since; }

    server {
        listen 127.0.0.1:%%PORT%% reuseport backlog=4096;

        location = /pub { push_stream_publisher admin; push_stream_channels_path $arg_id; }
        location ~ ^/ev/(.+)$ { push_stream_subscriber eventsource; push_stream_channels_path $1; }
        location ~ ^/(?:gz|zs)/(.+)$ { push_stream_subscriber eventsource; push_stream_channels_path $1; push_stream_compress zstd gzip; }
        location ~ ^/ws/(.+)$ { push_stream_subscriber websocket; push_stream_channels_path $1; }
        location ~ ^/st/(.+)$ { push_stream_subscriber; push_stream_channels_path $1; }
        location ~ ^/lp/(.+)$ {
            push_stream_subscriber long-polling; push_stream_channels_path $1; push_stream_last_received_message_time $since; }
        location = /status { push_stream_channels_statistics; push_stream_channels_path $arg_id; }
        # more locations
    }
}
CONF

# Reloads that change what messages are kept by, and what they are written with.
my @changes = (
    'the same' => sub ($text) { $text },
    'another template' => sub ($text) {
        $text =~ s{# more locations}{location ~ ^/raw/(.+)\$ {
            push_stream_subscriber; push_stream_channels_path \$1; push_stream_message_template "[~id~:~text~]"; }
        # more locations}r;
    },
    'more locations' => sub ($text) {
        my $more = join '', map { <<"END" } 1 .. 20;
        location ~ ^/more$_/(.+)\$ {
            push_stream_subscriber; push_stream_channels_path \$1; push_stream_message_template "<$_>~text~</$_>";
            push_stream_header_template "header $_"; push_stream_footer_template "footer $_"; }
END
        $text =~ s/# more locations/$more/r;
    },
    'another ttl' => sub ($text) { $text =~ s/message_ttl 10m/message_ttl 7m/r },
    'another size of the zone' => sub ($text) { $text =~ s/memory_size 64m/memory_size 32m/r },
    'another limit' => sub ($text) { $text =~ s/per_channel 100000/per_channel 90000/r },
);

local $ENV{TEST_WORKERS} = 4;
with_nginx $conf, sub ($nginx) {
    $nginx->expect_in_log(qr/exited on signal 9/);
    my $port = $nginx->port;

    # Starts the bench; returns a function that waits for it and returns (its exit status, its report).
    my $verify = sub ($name, $uri, $subscribers, @options) {
        my $output = $nginx->dir . '/verify.' . $name =~ s/\W/-/gr;
        my $pid = fork // die;
        if (!$pid) {
            open STDOUT, '>', $output;
            open STDERR, '>', "$output.err";
            exec $bench, 'verify', '--json', '--label', $name,
                '--pub-url', "http://127.0.0.1:$port/pub?id={channel}", '--sub-url', "http://127.0.0.1:$port/$uri/{channel}",
                '--subscribers', $subscribers, '--patience', 15 * PushStream::Nginx::slowness(), '--reconnect', @options
                or POSIX::_exit(127);
        }
        my $status;
        return {
            runs => sub {
                return 0 if defined $status;
                return 1 if waitpid($pid, WNOHANG) == 0;
                $status = $?;
                return 0;
            },
            result => sub {
                if (!defined $status) { waitpid $pid, 0; $status = $? }
                open my $file, '<', $output;
                my $json = do { local $/; <$file> };
                open my $errors, '<', "$output.err";
                my @errors = <$errors>;
                return ($status, eval { decode_json($json) } // {}, join '', grep { !/^published/ } @errors);
            },
        };
    };
    # Readers of a mode, or of an EventSource in a coding.
    my $as = sub ($mode) { $mode =~ /^(?:gzip|zstd)$/ ? "--compressed=$mode" : ('--transport', $mode) };
    # The report's facts by key.
    my $judge = sub ($name, $run) {
        my ($status, $report, $errors) = $run->{result}->();
        is $status, 0, "$name: nothing lost, doubled, out of order or foreign" or diag $errors;
        my %fact = map { $_ => $report->{facts}{$_}{value} } keys %{ $report->{facts} // {} };
        note join ', ', map { "$_ $fact{$_}" } sort grep { defined $fact{$_} } qw(published unanswered deliveries killed reconnects);
        return %fact;
    };
    # Everybody has left: counts are true within a second.
    my $nobody = sub ($when) {
        my $start = time;
        ok wait_until(sub { $nginx->figures->{subscribers} == 0 }, 5), "$when: nobody is counted";
        within time - $start, 1.2, "$when: within a second";
        my $sum = 0;
        $sum += $_->{subscribers} for @{ $nginx->figures->{by_worker} };
        is $sum, 0, "$when: nor by worker";
        my @counted = map { $_->{pid} } @{ $nginx->figures->{by_worker} };
        is_deeply [ sort @counted ], [ sort $nginx->worker_pids ], "$when: exactly the living workers are listed";
    };

    {
        my $seconds = $kills * $kill_every_ms / 1000;
        my $rate = 400;
        # Readers in the other modes, of other channels, listen until all kills are over.
        my %mode = (ws => 'websocket', st => 'streaming', lp => 'long-polling', gz => 'gzip', zs => 'zstd');
        my %run;
        $run{$_} = $verify->("kills, $mode{$_}", $_, $subscribers / 10, $as->($mode{$_}), '--channels', 10, '--publishers', 2,
            '--rate', 50, '--messages', int 50 * (2 * $seconds + 12)) for sort keys %mode;
        # Each of them first waits until everybody has had one message of every channel.
        ok wait_until(sub {
            my @channels = @{ $nginx->figures('ALL')->{infos} };
            return @channels == 10 * keys %mode && !grep { $_->{published_messages} < 2 } @channels;
        }, 15), 'readers in all modes are served';
        my $run = $verify->('kills', 'ev', $subscribers, '--channels', $channels, '--publishers', $publishers,
            '--master-pid', $nginx->master, '--kill-worker', $kill_every_ms, '--kill-count', $kills,
            '--rate', $rate, '--messages', int $rate * ($seconds + 2));
        my %fact = $judge->('kills', $run);
        cmp_ok $fact{killed} // 0, '>=', $kills, 'workers were killed';
        cmp_ok $fact{reconnects} // 0, '>', $kills, 'and subscribers came back';
        for my $uri (sort keys %mode) {
            my %fact = $judge->("kills, $mode{$uri}", $run{$uri});
            cmp_ok $fact{reconnects} // 0, '>', $kills, "kills, $mode{$uri}: and they came back";
        }
        ok wait_until { $nginx->worker_pids == $nginx->worker_count }, 'all workers are there';
        $nobody->('after the kills');
    }

    # Readers who come back after each reload, then readers who are handed over and notice none.
    for my $handover ('off', 'on') {
        my $base = $conf =~ s/(?=push_stream_store_messages on)/push_stream_handover $handover; /r;
        $nginx->reload($base);
        # As many messages as the reloads take time: the bench is told to end by what it has published.
        my $rate = 400;
        my $per_reload = PushStream::Nginx::slowness() > 4 ? 4 : 1.5;
        my $run = $verify->("reloads, handover $handover", 'ev', $subscribers, '--channels', $channels, '--publishers', $publishers, '--rate', $rate,
            '--messages', int $rate * $per_reload * ($reloads + @changes / 2 + 4));
        ok wait_until(sub { $nginx->figures->{subscribers} == $subscribers }, 15), 'everybody is here';
        my %also = $handover eq 'on' ? (ws => 'websocket', st => 'streaming', gz => 'gzip', zs => 'zstd') : ();
        my %run = map { $_ => $verify->("reloads, $also{$_}", $_, $subscribers / 10, $as->($also{$_}), '--channels', 10, '--publishers', 2,
            '--rate', 50, '--messages', int 50 * $per_reload * ($reloads + @changes / 2 + 4)) } sort keys %also;
        # Who is still on his way at a reload may come to a worker that leaves, and is sent back.
        ok wait_until(sub { $nginx->figures->{subscribers} == $subscribers + keys(%also) * $subscribers / 10 }, 15), 'and so are those in other modes';
        my $done = 0;
        my $reload = sub ($name, $text) {
            my $ended = eval { $nginx->reload($text); 1 };
            ok $ended, "reload: $name" or diag $@;
            $done += $run->{runs}->();
        };
        $reload->("number $_", undef) for 1 .. $reloads;
        my $text = $base;
        for (my $i = 0; $i < @changes; $i += 2) {
            $text = $changes[ $i + 1 ]->($text);
            $reload->($changes[$i], $text);
        }

        # The code itself, from another file, twice: the first goes away while the second runs.
        my $own = $text =~ s/%%MAIN%%/load_module %%DIR%%\/module.so;\n%%MAIN_WITHOUT_MODULE%%/r;
        for my $number (1, 2) {
            my $file = $nginx->dir . '/module.so';
            copy(PushStream::Nginx::module(), "$file.new") or die "cannot copy the module: $!";
            rename "$file.new", $file or die "cannot rename the module: $!";
            $reload->("the module replaced, $number", $own);
        }

        # Reloads that fail: early, in the configuration, and late, when the zone was already handed over.
        my $fails = sub ($name, $broken, $says) {
            $nginx->expect_in_log($says);
            my %old = map { $_ => 1 } $nginx->worker_pids;
            $nginx->write_conf($broken);
            $nginx->signal('HUP');
            ok $nginx->wait_for_log($says, 10), "a reload fails: $name";
            is_deeply [ sort $nginx->worker_pids ], [ sort keys %old ], 'and the old workers stay';
            $done += $run->{runs}->();
        };
        $fails->('an unknown directive', $own =~ s/# more|push_stream_message_ttl/push_stream_no_such $&/r,
            qr/unknown directive "push_stream_no_such"/);
        my $taken = IO::Socket::INET->new(LocalAddr => '127.0.0.1', Listen => 1) or die;
        $fails->('an address in use', $own =~ s/(?=listen )/listen 127.0.0.1:@{[ $taken->sockport ]}; /r,
            qr/bind\(\) to 127\.0\.0\.1:\d+ failed|still could not bind/);
        is $done, $reloads + @changes / 2 + 4, 'messages flowed all the while';
        wait_until { $nginx->log =~ /still could not bind/ };

        my %fact = $judge->("reloads, handover $handover", $run);
        if ($handover eq 'off') {
            cmp_ok $fact{reconnects} // 0, '>', $subscribers * $reloads / 2, 'everybody came back again and again';
        } else {
            is $fact{reconnects} // 0, 0, 'no reader noticed any of the reloads';
        }
        for my $uri (sort keys %run) {
            my %fact = $judge->("reloads, $also{$uri}", $run{$uri});
            is $fact{reconnects} // 0, 0, "reloads, $also{$uri}: no reader noticed any";
        }
        $nobody->("after the reloads, handover $handover");
    }

    # Workers die while they hand readers over, the leaving ones and those that take them.
    {
        my $count = int $kills / 2;
        my $rate = 400;
        my $run = $verify->('kills and reloads', 'ev', $subscribers, '--channels', $channels, '--publishers', $publishers,
            '--master-pid', $nginx->master, '--kill-worker', 2 * $kill_every_ms, '--kill-count', $count,
            '--rate', $rate, '--messages', int $rate * ($count * 2 * $kill_every_ms / 1000 + 4));
        my $signals = 0;
        while ($run->{runs}->()) {
            $nginx->signal('HUP');
            $signals++;
            # A worker that starts is not told twice to leave.
            wait_until(sub { $nginx->worker_pids >= $nginx->worker_count || !$run->{runs}->() }, 2);
            select undef, undef, undef, 0.3;
        }
        my %fact = $judge->('kills and reloads', $run);
        cmp_ok $fact{killed} // 0, '>=', $count, 'workers were killed';
        cmp_ok $signals, '>', $count / 3, "among $signals reloads";
        ok wait_until { $nginx->worker_pids == $nginx->worker_count }, 'all workers are there';
        $nobody->('after kills and reloads');
    }
};

done_testing;
