# Figures for monitoring systems.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;

only_over_plain_http1 'the figures are those of detached streams';

use File::Temp ();
use JSON::PP ();

# What promtool has to say of it; nothing, if all is well.
sub promtool ($text) {
    my $file = File::Temp->new;
    print {$file} $text;
    close $file;
    my $said = qx{promtool check metrics < $file 2>&1};
    return $said . ($? == 0 ? '' : "exit status $?");
}

# Samples by name and labels.
sub samples ($text) {
    return { map { /^([^#].*) (\S+)$/ ? ($1 => $2) : () } split /\n/, $text };
}

with_nginx <<'CONF', sub ($nginx) {
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_shared_memory_size 64m;
    push_stream_store_messages on;
    push_stream_max_number_of_channels 20;
    push_stream_wildcard_channel_prefix wild_;
    push_stream_events_channel_id events;

    server {
        listen 127.0.0.1:%%PORT%%;

        location = /pub { push_stream_publisher admin; push_stream_batch_publish on; push_stream_channels_path $arg_id; }
        location = /unstored { push_stream_publisher; push_stream_store_messages off; push_stream_channels_path $arg_id; }
        location ~ ^/sub/(.*)$ { push_stream_subscriber; push_stream_channels_path $1; }
        location ~ ^/ev/(.*)$ { push_stream_subscriber eventsource; push_stream_detach off; push_stream_channels_path $1; }
        location ~ ^/ws/(.*)$ { push_stream_subscriber websocket; push_stream_channels_path $1; }
        location ~ ^/wait/(.*)$ { push_stream_subscriber long-polling; push_stream_channels_path $1; }
        location = /poll { push_stream_subscriber polling; push_stream_channels_path $arg_id; }
        location ~ ^/skip/(.*)$ {
            push_stream_subscriber;
            push_stream_channels_path $1;
            push_stream_subscriber_queue 64k;
            push_stream_slow_reader skip;
        }
        location = /status { push_stream_channels_statistics; push_stream_channels_path $arg_id; }
        location = /metrics { push_stream_channels_statistics; push_stream_statistics_format prometheus; }
        location = /json { push_stream_channels_statistics; push_stream_channels_path $arg_id; push_stream_statistics_format json; }
        location = /yaml { push_stream_channels_statistics; push_stream_channels_path $arg_id; push_stream_statistics_format yaml; }
        location = /xml { push_stream_channels_statistics; push_stream_channels_path $arg_id; push_stream_statistics_format xml; }
        location = /plain { push_stream_channels_statistics; push_stream_channels_path $arg_id; push_stream_statistics_format plain; }
    }
}
CONF
    my $openmetrics = 'application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1';
    my $metrics = sub { samples($nginx->get('/metrics')->body) };
    my $is = sub ($name, $value, $what) {
        my $got = wait_until { ($metrics->()->{"push_stream_$name"} // 'nothing') eq $value };
        ok $got, $what or diag "$name is " . ($metrics->()->{"push_stream_$name"} // 'nothing') . ", not $value";
    };

    # The forms.
    my $text = $nginx->get('/metrics');
    is $text->status, 200, 'it needs no channels';
    is $text->header('Content-Type'), 'text/plain; version=0.0.4; charset=utf-8', 'the text format of Prometheus';
    is promtool($text->body), '', 'promtool has nothing to say';
    unlike $text->body, qr/^# EOF/m, 'without an end mark';
    my $open = $nginx->get('/metrics', Accept => $openmetrics);
    is $open->header('Content-Type'), 'application/openmetrics-text; version=1.0.0; charset=utf-8', 'OpenMetrics for those who ask for it';
    like $open->body, qr/\n# EOF\n\z/, 'with its end mark';
    like $open->body, qr/^# TYPE push_stream_messages_published counter$/m, 'and its names of counters';
    is $nginx->get('/status', Accept => $openmetrics)->header('Content-Type'), $open->header('Content-Type'),
        'also where the form is negotiated';
    is $nginx->get('/status', Accept => "text/plain, $openmetrics")->header('Content-Type'), 'text/plain', 'if nothing known is before it';
    is $nginx->get('/pub?id=events', Accept => $openmetrics)->header('Content-Type'), 'text/plain', 'a publisher answers as ever';
    is $nginx->request(POST => '/metrics', body => 'x')->status, 405, 'it is only for reading';
    my %type = (json => 'application/json', yaml => 'application/yaml', xml => 'application/xml', plain => 'text/plain');
    for my $format (sort keys %type) {
        is $nginx->get("/$format", Accept => 'application/xml, text/plain, application/json')->header('Content-Type'), $type{$format},
            "fixed to $format";
        like $nginx->get("/$format?id=events", Accept => $openmetrics)->body, qr/\bevents\b/, 'also for one channel';
    }

    # Messages.
    $is->('messages_published_total', 0, 'what the events channel tells is not counted');
    my $stream = $nginx->subscribe('/sub/a');
    my $other = $nginx->subscribe('/sub/a/b');
    $nginx->post('/pub?id=a/b', 'x');
    $nginx->post('/pub?id=a', 'y');
    $nginx->post('/pub?id=wild_1', 'z');
    $stream->text_until(qr/xy/);
    $other->text_until(qr/x.*x.*y|x.*y.*x/);
    $is->('messages_published_total', 4, 'messages are counted once for each channel');
    $is->('messages_delivered_total', 5, 'and once for each subscriber that gets them');
    $is->('messages_stored', 4, 'stored');
    $is->('channels{kind="ordinary"}', 3, 'channels');
    $is->('channels{kind="wildcard"}', 1, 'wildcard channels');
    $nginx->get('/poll?id=a.b2');
    $is->('messages_delivered_total', 7, 'a poll gets some, too');
    $nginx->delete('/pub?id=wild_1');
    $is->('channels{kind="in_delete"}', 1, 'a deleted one');

    my $fanout = sub { $metrics->()->{push_stream_fanout_seconds_count} };
    ok wait_until { $fanout->() >= 3 }, 'each message was observed';
    my $observed = $fanout->();
    my @many = map { $nginx->subscribe('/sub/many') } 1 .. 20;
    $nginx->post('/pub?id=many', "m$_") for 1 .. 10;
    $_->text_until(qr/m10/) for @many;
    ok wait_until { $fanout->() > $observed }, 'further ones are';
    my $told = $fanout->() - $observed;
    cmp_ok $told, '>=', 10, 'each by a worker that has subscribers of it';
    cmp_ok $told, '<=', 10 * $nginx->worker_count, 'once, not for each subscriber';
    my @buckets = map { /^push_stream_fanout_seconds_bucket\{le="(.+)"\} (\d+)$/ ? [ $1, $2 ] : () } split /\n/, $nginx->get('/metrics')->body;
    is $buckets[-1][0], '+Inf', 'the last bucket has no bound';
    is_deeply [ map { $_->[1] } @buckets ], [ sort { $a <=> $b } map { $_->[1] } @buckets ], 'each bucket holds the ones before it';

    # A slow reader.
    my $slow = $nginx->connect(receive_buffer => 4096);
    $slow->send("GET /skip/slow HTTP/1.1\r\nHost: x\r\n\r\n");
    is $slow->head->status, 200, 'a reader that does not read';
    my $queued = sub { my $all = $metrics->(); my $sum = 0; $sum += $all->{$_} for grep { /^push_stream_worker_queue_bytes/ } keys %$all; $sum };
    my $publisher = $nginx->connect;
    ok wait_until {
        $publisher->request(POST => '/unstored?id=slow', body => 'x' x 60_000);
        $metrics->()->{'push_stream_slow_readers_total{action="skip"}'} > 0
    }, 'a slow reader is counted';
    ok wait_until { $queued->() > 10_000 }, 'and what waits for it';
    $slow->reset;
    ok wait_until { $queued->() == 0 }, 'until it is gone';

    # Refusals.
    $nginx->post('/pub?id=a', '');
    $nginx->post('/pub?id=ALL', 'x');
    $nginx->post('/pub?id=events', 'x');
    $nginx->post("/pub?id=new$_", 'x') for 1 .. 20;
    $nginx->post('/pub', qq(nonsense\n{"channels": ["events"], "text": "x"}\n), 'Content-Type' => 'application/x-ndjson');
    $is->('messages_refused_total{reason="invalid"}', 3, 'refused: what is no message');
    $is->('messages_refused_total{reason="forbidden"}', 2, 'refused: to the events channel');
    $is->('messages_refused_total{reason="limit"}', 20 - (20 - 5), 'refused: too many channels');

    # Zone and workers.
    my $all = $metrics->();
    is $all->{'push_stream_zone_bytes{state="used"}'} + $all->{'push_stream_zone_bytes{state="free"}'} >= 60 << 20, 1, 'the zone is as large as it is';
    cmp_ok $all->{'push_stream_zone_bytes{state="high_water"}'}, '>=', $all->{'push_stream_zone_bytes{state="used"}'}, 'more was never used';
    cmp_ok $all->{'push_stream_wakeups_total{kind="own"}'}, '>', 0, 'a worker that publishes to itself';
    cmp_ok $all->{'push_stream_wakeups_total{kind="signal"}'}, '>', 0, 'a worker woken by another' if $nginx->worker_count > 1;
    is scalar(grep { /^push_stream_worker_start_time_seconds\{worker="\d+"\}$/ } keys %$all), $nginx->worker_count, 'each worker by its slot';
    my $connected = sub { my $all = $metrics->(); my $sum = 0; $sum += $all->{$_} for grep { /^push_stream_worker_subscribers/ } keys %$all; $sum };
    is $connected->(), 22, 'the subscribers of all workers';
    $is->('worker_restarts_total', 0, 'no worker has died yet');

    my $subscribers = sub ($mode, $state, $count) {
        $is->(qq(subscribers{mode="$mode",state="$state"}), $count, "$count of $mode are $state");
    };
    my @others = map { $nginx->subscribe('/ev/a') } 1 .. 3;
    push @others, map { $nginx->open(GET => '/wait/a') } 1 .. 2;
    push @others, $nginx->open(GET => '/ws/a', headers => {
        Connection => 'Upgrade', Upgrade => 'websocket', 'Sec-WebSocket-Version' => 13, 'Sec-WebSocket-Key' => 'dGhlIHNhbXBsZSBub25jZQ==',
    });
    $subscribers->('streaming', 'detached', 22);
    $subscribers->('streaming', 'attached', 0);
    $subscribers->('eventsource', 'attached', 3);
    $subscribers->('long-polling', 'attached', 2);
    $subscribers->('websocket', 'detached', 1);
    is $connected->(), 28, 'all together';
    $_->close for @others;
    $subscribers->('eventsource', 'attached', 0);

    # Counters outlive workers and reloads.
    my $kept = sub ($all) { return { map { $_ => $all->{$_} } grep { /(?:published|delivered|refused).*_total/ } keys %$all } };
    ok wait_until { $metrics->()->{push_stream_messages_delivered_total} >= 207 }, 'every delivery was counted';
    my $before = $kept->($metrics->());
    my ($victim) = $nginx->worker_pids;
    $nginx->kill_worker($victim);
    $is->('worker_restarts_total', 1, 'a worker that was killed');
    is_deeply $kept->($metrics->()), $before, 'it takes no count with it';
    $nginx->reload;
    $is->('worker_restarts_total', 1, 'a reload is no death');
    is_deeply $kept->($metrics->()), $before, 'and forgets nothing';
    is promtool($nginx->get('/metrics')->body), '', 'promtool has still nothing to say';
};

sub conf ($location) {
    return "%%MAIN%%\nevents {}\nhttp { %%HTTP%% push_stream_shared_memory_size 1m;"
        . " server { listen 127.0.0.1:%%PORT%%; $location } }";
}
accepts conf('location /m { push_stream_channels_statistics; push_stream_statistics_format prometheus; }'), 'metrics need no channels path';
accepts conf('location /m { push_stream_channels_statistics; push_stream_statistics_format prometheus; push_stream_channels_path ""; }'),
    'and may have one';
refuses conf('location /m { push_stream_channels_statistics; push_stream_statistics_format json; }'),
    'push_stream_channels_path must be set.', 'other forms need one';
refuses conf('location /m { push_stream_channels_statistics; push_stream_statistics_format csv; }'), 'invalid value "csv"', 'an unknown form';
refuses conf('location /m { push_stream_subscriber; push_stream_statistics_format json; push_stream_channels_path x; }'),
    'push_stream_statistics_format needs push_stream_channels_statistics in the same location.', 'a form in another location';
refuses conf('location /m { push_stream_statistics_format json; }'),
    'push_stream_statistics_format needs push_stream_channels_statistics in the same location.', 'a form without a role';

done_testing;
