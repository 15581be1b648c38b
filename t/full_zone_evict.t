# With push_stream_on_full evict a full zone makes room: the oldest goes, the newest is always there.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;

with_nginx <<'CONF', sub ($nginx) {
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_shared_memory_size 128k;
    push_stream_on_full evict;
    push_stream_channels_path $arg_id;
    push_stream_store_messages on;
    keepalive_requests 100000;

    server {
        listen 127.0.0.1:%%PORT%%;

        location /pub { push_stream_publisher; client_max_body_size 2m; }
        location /sub { push_stream_subscriber; }
        location /poll { push_stream_subscriber polling; }
        location /status { push_stream_channels_statistics; }
    }
}
CONF
    my %all = ('If-Modified-Since' => 'Thu, 01 Jan 1970 00:00:00 GMT');
    my $stream = $nginx->subscribe('/sub?id=a');
    my $publisher = $nginx->connect;
    my $publish = sub ($uri, $body) { $publisher->request(POST => $uri, body => $body)->status };

    my ($read, $total) = ('', 3000);
    my @refused;
    for my $n (1 .. $total) {
        push @refused, $n if $publish->('/pub?id=a', "<$n>") != 200;
        # A reader that keeps up.
        $read .= $stream->text_until(qr/<$n>/) if $n % 50 == 0;
    }
    is "@refused", '', "$total messages are accepted, far more than fit";
    is $read, join('', map { "<$_>" } 1 .. $total), 'a subscriber that keeps up gets all of them';

    my $stored = $nginx->get('/poll?id=a', %all)->body;
    my $count = () = $stored =~ /</g;
    is $stored, join('', map { "<$_>" } $total - $count + 1 .. $total), "the newest $count are stored";
    cmp_ok $count, '>', 100, 'as many as fit';

    is scalar(grep { $publish->("/pub?id=idle$_", 'x') != 200 } 1 .. 2000), 0, '2000 channels are accepted too';
    is $publish->('/pub?id=a', 'after all'), 200, 'a channel with subscribers is still there';
    is $stream->chunk, 'after all', 'and delivers';
    is $nginx->figures('a')->{published_messages}, $total + 1, 'it was never lost';
    is $publish->('/pub?id=b', 'y' x 60_000), 200, 'a message of half the zone';
    is length $nginx->get('/poll?id=b.b1')->body, 60_000, 'is stored';

    my $impossible = $nginx->post('/pub?id=a', 'z' x 1_000_000);
    is $impossible->status, 507, 'what is larger than the zone cannot be stored';
    ok $impossible->header('Retry-After'), 'try again later';
    is $impossible->header('Content-Length'), 0, 'nothing else is said';
    is $publish->('/pub?id=a', 'small'), 200, 'what fits is accepted again';
    is $stream->chunk, 'small', 'and delivered';
    ok $nginx->wait_for_log(qr/push stream: shared zone is full, [1-9]\d* messages evicted \(0 of them undelivered\)/), 'the log says so';
};

# Whatever is asked of a zone that is full of old messages is done, for one channel or for hundreds.
with_nginx <<'CONF', sub ($nginx) {
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_shared_memory_size 1m;
    push_stream_on_full evict;
    push_stream_channels_path $arg_id;
    push_stream_store_messages on;
    push_stream_max_messages_stored_per_channel 3;
    push_stream_events_channel_id events;
    push_stream_max_channel_id_length 16;
    keepalive_requests 100000;
    large_client_header_buffers 4 16k;

    server {
        listen 127.0.0.1:%%PORT%%;

        location /pub { push_stream_publisher admin; push_stream_idempotent_publish on; push_stream_batch_publish on; client_max_body_size 2m; }
        location /sub { push_stream_subscriber; push_stream_allow_connections_to_events_channel on; }
        location /poll { push_stream_subscriber long-polling; push_stream_longpolling_connection_ttl 100ms; }
        location /status { push_stream_channels_statistics; }
    }
}
CONF
    my $follower = $nginx->subscribe('/sub?id=events');
    my $publisher = $nginx->connect;
    my $fill = sub {
        $publisher->request(POST => "/pub?id=full$_", body => 'y' x 60_000) for 1 .. 20;
        $publisher->request(POST => "/pub?id=full$_", body => 'y' x 500) for 1 .. 20;
    };
    my ($id, @refused) = 0;
    my $try = sub ($what, $status) { push @refused, "$what: $status" if $status != 200 };
    for my $count (1 .. 16, 32, 64, 128, 200, 255) {
        my $path = join '/', map { "$count.$_" } 1 .. $count;
        $fill->();
        $id++;
        $try->("publish to $count", $publisher->request(POST => "/pub?id=$path", body => 'x' x 200, headers => { 'Event-Id' => $id })->status);
        $fill->();
        my $stream = $nginx->open(GET => "/sub?id=$path");
        $try->("subscribe to $count", $stream->status);
        $fill->();
        my $batch = JSON::PP::encode_json({ channels => [ split m{/}, $path ], text => 'z' });
        my $verdict = $publisher->request(POST => '/pub', body => "$batch\n", headers => { 'Content-Type' => 'application/x-ndjson' });
        $try->("batch to $count", $verdict->status == 200 ? $verdict->json->{status} : $verdict->status);
        $fill->();
        $try->("delete $count", $publisher->request(DELETE => "/pub?id=$path")->status);
        $stream->close;
    }
    is "@refused", '', 'nothing is refused';
    my $metrics = $nginx->get('/status', Accept => 'application/openmetrics-text')->body;
    my ($evicted) = $metrics =~ /^push_stream_messages_evicted_total\{reason="stored"\} (\d+)/m;
    cmp_ok $evicted // 0, '>', 100, 'though the zone was full all the time';
    like $metrics, qr/^push_stream_messages_refused_total\{reason="full"\} 0$/m, 'none is counted';
    my @worst = map { /(\d+) requests refused/ } grep { /shared zone is full/ } split /\n/, $nginx->log;
    is "@{[grep { $_ > 0 } @worst]}", '', 'and the log speaks of none';

    my $more = join '/', map { "more$_" } 1 .. 1500;
    my $impossible = $publisher->request(POST => "/pub?id=$more", body => 'x');
    is $impossible->status, 507, 'what cannot fit is';
    ok $impossible->header('Retry-After'), 'with a time to try again';
    ok $nginx->wait_for_log(qr/push stream: shared zone is full, .* [1-9]\d* requests refused/), 'and the log says so';
};

done_testing;
