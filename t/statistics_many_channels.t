# A list of very many channels comes in pieces, and nobody waits for it.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;

use JSON::PP ();

my $COUNT = $ENV{TEST_CHANNELS} // 20_000;

# Somebody takes nothing while all the others are served.
my $TIMEOUT = $COUNT > 100_000 ? '120s' : '5s';

with_nginx <<'CONF' =~ s/%%TIMEOUT%%/$TIMEOUT/r, sub ($nginx) {
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_shared_memory_size 1g;
    push_stream_channels_path $arg_id;
    push_stream_channel_inactivity_time 1h;
    client_max_body_size 8m;
    client_body_buffer_size 1m;
    send_timeout %%TIMEOUT%%;

    server {
        listen 127.0.0.1:%%PORT%%;
        listen unix:%%DIR%%/h2.sock http2;

        location /pub { push_stream_publisher; push_stream_batch_publish on; push_stream_batch_max_lines 10000; }
        location /status { push_stream_channels_statistics; }
        location /slow { push_stream_channels_statistics; limit_rate 4m; }
        location /ping { return 200; }
    }
}
CONF
    my $publisher = $nginx->connect;
    for (my $first = 1; $first <= $COUNT; $first += 10_000) {
        my $body = join '', map { qq({"channels": ["channel-$_"], "text": "x"}\n) } $first .. ($first + 9999 > $COUNT ? $COUNT : $first + 9999);
        $publisher->request(POST => '/pub', headers => { 'Content-Type' => 'application/x-ndjson', Prefer => 'return=minimal' }, body => $body);
    }
    is $nginx->figures->{channels}, $COUNT, "there are $COUNT channels";

    # A list is long: decoding every one would take longer than all the rest.
    my $names = sub ($body) { return [ $body =~ /^\{"channel": "([^"]+)"/mg ] };
    my $all = [ map { "channel-$_" } 1 .. $COUNT ];

    my $answer = $nginx->get('/status?id=ALL');
    is $answer->status, 200, 'all of them are listed';
    is $answer->header('Transfer-Encoding'), over_http2() ? undef : 'chunked', 'in pieces';
    cmp_ok scalar($answer->chunks), '>', $COUNT / 3000, 'many of them';
    is_deeply [ map { $_->{channel} } @{ $answer->json->{infos} } ], $all, 'in the order of their creation';
    is scalar(() = $nginx->get('/status?id=ALL', Accept => 'text/plain')->body =~ /^channel: /mg), $COUNT, 'as plain text';
    is scalar(() = $nginx->get('/status?id=ALL', Accept => 'application/xml')->body =~ /<channel>/g), $COUNT, 'in XML';
    is scalar(() = $nginx->get('/status?id=ALL', Accept => 'application/yaml')->body =~ /^  channel: /mg), $COUNT, 'in YAML';
    ok defined $nginx->get('/status?id=channel-7*')->body, 'some of them';
    my $few = $nginx->get('/status?id=channel-123*');
    is_deeply $names->($few->body), [ grep { /^channel-123/ } @$all ], 'those with a prefix';
    my $one = $nginx->get("/status?id=channel-$COUNT*");
    is $one->header('Content-Length'), length $one->body, 'a short list has a length, however many were looked at';
    is $nginx->get('/status?id=nobody*')->json->{infos}[0], undef, 'also an empty one';

    my $old = $nginx->request(GET => '/status?id=ALL', version => '1.0');
    is scalar @{ $names->($old->body) }, $COUNT, 'over HTTP/1.0';
    my $h2 = qx{curl -s --http2-prior-knowledge --unix-socket @{[ $nginx->dir ]}/h2.sock 'http://x/status?id=ALL'};
    is scalar @{ $names->($h2) }, $COUNT, 'over HTTP/2';

    # What was sent is not kept: a worker that has written most of a list holds a small part of it.
    SKIP: {
        skip 'not over HTTP/2', 1 if over_http2();
        $nginx->reload;
        my $anonymous = sub {
            my $kib = 0;
            for my $pid ($nginx->worker_pids) {
                open my $file, '<', "/proc/$pid/status" or next;
                $kib += $1 if join('', <$file>) =~ /^RssAnon:\s+(\d+) kB/m;
            }
            return $kib * 1024;
        };
        my $length = length $answer->body;
        $nginx->get('/ping') for 1 .. 20;
        my $before = $anonymous->();
        my $reader = $nginx->connect(receive_buffer => 4096);
        $reader->send("GET /slow?id=ALL HTTP/1.1\r\nHost: x\r\n\r\n");
        $reader->bytes(int($length * 0.7));
        my $grown = $anonymous->() - $before;
        cmp_ok $grown, '<', $length / 2, "of $length bytes";
        $reader->close;
    }

    # Several at once, and one after the other on a connection.
    my @clients = map { $nginx->open(GET => '/status?id=ALL') } 1 .. 4;
    is scalar @{ $names->($_->response->body) }, $COUNT, 'several at once' for @clients;
    is $clients[0]->request(GET => '/ping')->status, 200, 'the connection can be used again';

    # Somebody who takes nothing, and one who goes away.
    my $stuck = $nginx->connect(receive_buffer => 4096);
    $stuck->send("GET /status?id=ALL HTTP/1.1\r\nHost: x\r\n\r\n");
    $stuck->head;
    my $slow = $nginx->open(GET => '/slow?id=ALL');
    my $gone = $nginx->open(GET => '/status?id=ALL');
    $gone->head;
    $gone->reset;
    is $nginx->get('/ping')->status, 200, 'others are served meanwhile';
    $nginx->post('/pub?id=channel-1', 'y');
    is $nginx->figures('channel-1')->{published_messages}, 2, 'and publish';
    is scalar @{ $names->($slow->response(30)->body) }, $COUNT, 'who is throttled gets everything, in time';
    my $late = eval { $stuck->response } ? 1 : 0;
    is $late, 1, 'and so does who comes back to it';

    # A reload lets it end.
    my $before = $nginx->connect(receive_buffer => 4096);
    $before->send("GET /status?id=ALL HTTP/1.1\r\nHost: x\r\n\r\n");
    $before->head;
    $nginx->signal('HUP');
    ok $nginx->wait_for_log(qr/gracefully shutting down/), 'the worker is told to leave';
    is scalar @{ $names->($before->response->body) }, $COUNT, 'a list that has begun before a reload comes to its end';
};

done_testing;
