# Why subscriptions are refused, and why streams end: counted by reason, refusals also told in the error log.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;

only_over_plain_http1 'some ends are those of sockets';
use PushStream::WebSocket;

my $conf = <<'CONF';
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_handover off;
    push_stream_shared_memory_size 32m;
    push_stream_channels_path $arg_id;
    push_stream_store_messages on;
    push_stream_max_subscribers_per_channel 20;
    push_stream_max_number_of_channels 20;
    push_stream_events_channel_id events;
    client_max_body_size 1m;
    client_body_buffer_size 1m;

    server {
        listen 127.0.0.1:%%PORT%% sndbuf=16k;
        send_timeout 500ms;

        location /pub { push_stream_publisher admin; push_stream_admin_api on; }
        location /ev { push_stream_subscriber eventsource; }
        location /attached { push_stream_subscriber; push_stream_detach off; }
        location /poll { push_stream_subscriber polling; }
        location /wait { push_stream_subscriber long-polling; }
        location /ws { push_stream_subscriber websocket; push_stream_ping_message_interval 200ms; }
        location /authorized { push_stream_subscriber; push_stream_authorized_channels_only on; }
        location /ttl { push_stream_subscriber; push_stream_subscriber_connection_ttl 200ms; }
        location /queue { push_stream_subscriber; push_stream_subscriber_queue 100k; }
        location /stuck { push_stream_subscriber; push_stream_subscriber_queue 100m; }
        location = /metrics { push_stream_channels_statistics; push_stream_statistics_format prometheus; }
    }
}
CONF

# Counts of a family by reason, without those that are zero.
sub counts ($nginx, $family) {
    my %counts = $nginx->get('/metrics')->body =~ /^push_stream_subscribers_${family}_total\{reason="(\w+)"\} (\d+)$/mg;
    return join ' ', map { "$_=$counts{$_}" } grep { $counts{$_} } sort keys %counts;
}

sub counts_become ($nginx, $family, $expected, $name) {
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    wait_until { counts($nginx, $family) eq $expected };
    is counts($nginx, $family), $expected, $name;
}

with_nginx $conf, sub ($nginx) {
    my @readers = map { $nginx->subscribe('/ev?id=full') } 1 .. 20;
    is counts($nginx, 'refused'), '', 'nobody was refused';
    is $nginx->get('/ev?id=full')->status, 403, 'one too many' for 1 .. 10;
    counts_become $nginx, 'refused', 'limit=10', 'ten of thirty are over the limit';
    my $told = sub {
        my ($log, $sum) = ($nginx->log, 0);
        $sum += $1 while $log =~ /push stream: \d+ subscribers refused: (\d+) over a limit/g;
        return $sum;
    };
    ok wait_until { $told->() == 10 }, 'which the error log tells' or diag $told->();
    cmp_ok scalar(() = $nginx->log =~ /subscribers refused/g), '<=', 3 * $nginx->worker_count, 'in few lines';

    is $nginx->get("$_?id=full")->status, 403, "$_ is no different" for qw(/wait);
    my $socket = PushStream::WebSocket->new($nginx, '/ws?id=full');
    like $socket->client->rest, qr/403/, 'nor a WebSocket, which is told after its handshake';
    counts_become $nginx, 'refused', 'limit=12', 'they are counted';
    is $nginx->get('/poll?id=events')->status, 403, 'the events channel';
    is $nginx->get('/authorized?id=new')->status, 403, 'a channel that it may not create';
    is $nginx->get('/ev')->status, 400, 'no channel';
    is $nginx->get('/ws?id=a')->status, 400, 'no handshake';
    is $nginx->get('/poll?id=a&callback=%20')->status, 400, 'no callback';
    is $nginx->request(POST => '/ev?id=a', body => 'x')->status, 405, 'no subscription at all';
    counts_become $nginx, 'refused', 'forbidden=2 invalid=3 limit=12', 'each has its reason';
    ok wait_until { $nginx->log =~ /subscribers refused: \d+ over a limit, [12] forbidden/ }, 'also in the error log';

    is counts($nginx, 'closed'), '', 'no stream has ended';
    $_->close for @readers[0 .. 4];
    my $attached = $nginx->subscribe('/attached?id=x');
    $attached->close;
    counts_become $nginx, 'closed', 'client_closed=6', 'clients that leave';
    my $wait = $nginx->open(GET => '/wait?id=poll');
    ok wait_until { ($nginx->get('/pub?id=poll')->status == 200 && $nginx->get('/pub?id=poll')->json->{subscribers}) }, 'a long poll';
    $nginx->post('/pub?id=poll', 'x');
    $wait->response;
    $nginx->get('/poll?id=poll.b1');
    my $ended = $nginx->subscribe('/ev?id=gone');
    my $dismissed = $nginx->subscribe('/ev?id=sent');
    $nginx->delete('/pub?id=gone');
    $nginx->delete('/pub?id=sent&only=subscribers');
    $_->rest for $ended, $dismissed, $nginx->subscribe('/ttl?id=short');
    my $polite = PushStream::WebSocket->new($nginx, '/ws?id=polite');
    $polite->send(PushStream::WebSocket::CLOSE, pack 'n', 1000);
    $polite->client->rest;
    PushStream::WebSocket->new($nginx, '/ws?id=rude')->send(PushStream::WebSocket::TEXT, 'x', rsv => 0x40)->client->rest;
    counts_become $nginx, 'closed', 'channel_deleted=1 client_close_frame=1 client_closed=6 dismissed=1 protocol_error=1 ttl=1',
        'each has its reason; an answered poll is no stream';

    my @slow = map {
        my $client = $nginx->connect(receive_buffer => 4096);
        $client->send_request(GET => "/$_?id=x");
        $client->head;
        $client;
    } qw(queue stuck);
    my $silent = PushStream::WebSocket->new($nginx, '/ws?id=silent');
    $nginx->post('/pub?id=x', 'x' x 90_000) for 1 .. 50;
    counts_become $nginx, 'closed',
        'channel_deleted=1 client_close_frame=1 client_closed=6 dead_peer=1 dismissed=1 protocol_error=1 timed_out=1 too_slow=1 ttl=1',
        'slow ones, stuck ones and dead ones';

    # Those who are left end with their workers: those of the full channel.
    $nginx->reload;
    $_->rest for @readers[5 .. 19];
    counts_become $nginx, 'closed',
        'channel_deleted=1 client_close_frame=1 client_closed=6 dead_peer=1 dismissed=1 protocol_error=1 timed_out=1 too_slow=1 ttl=1 '
        . 'worker_exit=15', 'a reload';
    is counts($nginx, 'refused'), 'forbidden=2 invalid=3 limit=12', 'forgets nothing';
};

# No room for a subscriber.
with_nginx <<'CONF', sub ($nginx) {
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_shared_memory_size 256k;
    push_stream_channels_path $arg_id;
    push_stream_store_messages on;
    server {
        listen 127.0.0.1:%%PORT%%;
        location /pub { push_stream_publisher; }
        location /poll { push_stream_subscriber polling; }
        location = /metrics { push_stream_channels_statistics; push_stream_statistics_format prometheus; }
    }
}
CONF
    my $fill = 0;
    ok wait_until(sub { $nginx->post('/pub?id=a', 'x' x 2000)->status == 500 }, 20), 'a zone is filled';
    ok wait_until(sub { $nginx->get('/poll?id=new' . $fill++)->status == 500 }, 20), 'until there is no room for a channel';
    counts_become $nginx, 'refused', 'full=1', 'is a reason';
    ok wait_until(sub { $nginx->log =~ /1 subscribers refused: .*1 for want of room/ }), 'that the error log tells';
};

done_testing;
