# Messages get ids that only grow, and everybody is told of them.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;
use PushStream::WebSocket;

with_nginx <<'CONF', sub ($nginx) {
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_shared_memory_size 4m;
    push_stream_channels_path $arg_id;
    push_stream_store_messages on;

    server {
        listen 127.0.0.1:%%PORT%%;

        location /pub { push_stream_publisher admin; push_stream_auto_event_id on; push_stream_allowed_origins *; }
        location /quiet { push_stream_publisher; push_stream_auto_event_id on; push_stream_channel_info_on_publish off; }
        location /batch { push_stream_publisher; push_stream_auto_event_id on; push_stream_batch_publish on; }
        location /plain { push_stream_publisher; push_stream_allowed_origins *; }
        location /ev { push_stream_subscriber eventsource; }
        location /sub { push_stream_subscriber; push_stream_message_template "~event-id~ ~text~;"; }
        location /ws {
            push_stream_subscriber websocket;
            push_stream_websocket_allow_publish on;
            push_stream_auto_event_id on;
            push_stream_message_template "~event-id~ ~text~;";
        }
    }
}
CONF
    my $events = $nginx->subscribe('/ev?id=a/b');
    my $stream = $nginx->subscribe('/sub?id=a');
    my $answer = $nginx->post('/pub?id=a', 'one');
    my $first = $answer->header('X-Nginx-PushStream-Event-Id');
    my ($epoch, $number) = $first =~ /^(\d{13})-([1-9]\d*)$/;
    ok defined $number, "a message gets an id: $first";
    cmp_ok abs($epoch - 1000 * time), '<', 120_000, 'its first half is when the zone was made, in milliseconds';
    is_deeply $events->event, { id => $first, data => 'one', comments => [''] }, 'EventSource has it as its id';
    is $stream->chunk, "$first one;", 'the template, too';

    my $both = $nginx->post('/pub?id=a/b', 'both')->header('X-Nginx-PushStream-Event-Id');
    my @ids = map { $events->event->{id} } 1, 2;
    is $ids[1], $both, 'of several channels the last id is told';
    is_deeply [ map { (split /-/)[1] } @ids ], [ $number + 1, $number + 2 ], 'each copy has its own';

    is $nginx->get('/pub?id=a')->header('X-Nginx-PushStream-Event-Id'), $ids[0], "figures come with the channel's newest id";
    is $nginx->get('/pub?id=a/b/none')->header('X-Nginx-PushStream-Event-Id'), $ids[1], 'of several channels with that of the last';
    like $nginx->post('/quiet?id=a', 'x')->header('X-Nginx-PushStream-Event-Id'), qr/^$epoch-/, 'also without figures';

    is $nginx->post('/pub?id=c', 'x', 'Event-Id' => 'brought')->header('X-Nginx-PushStream-Event-Id'), 'brought', 'a brought id stays';
    is $nginx->get('/pub?id=c')->header('X-Nginx-PushStream-Event-Id'), 'brought', 'and is known later';
    like $nginx->post('/pub?id=c', 'x', 'Event-Id' => '')->header('X-Nginx-PushStream-Event-Id'), qr/^$epoch-/, 'an empty one is none';

    my $socket = PushStream::WebSocket->new($nginx, '/ws?id=w');
    $socket->send(PushStream::WebSocket::TEXT, 'hello');
    like $socket->text, qr/^$epoch-\d+ hello;$/, "what a WebSocket's client publishes gets one, too";

    my $lines = join "\n", '{"channels": ["l"], "text": "1"}', '{"channels": ["l"], "text": "2", "id": "x"}';
    my @verdicts = split /\n/, $nginx->post('/batch', $lines, 'Content-Type' => 'application/x-ndjson')->body;
    like $verdicts[0], qr/"id": "$epoch-\d+"/, 'and each line of a batch';
    unlike $verdicts[1], qr/"id"/, 'unless it brings one';

    my %bad = (
        'a control character' => "a\x01b", 'DEL' => "a\x7f", 'more than 255 bytes' => 'x' x 256,
    );
    for my $name (sort keys %bad) {
        for my $field ('Event-Id', 'Event-Type') {
            my $refused = $nginx->post('/pub?id=bad', 'x', $field => $bad{$name});
            is $refused->status, 400, "$field with $name is refused";
            is $refused->explain, 'Event id and event type must have at most 255 bytes and no control characters.', 'with the reason';
            is $nginx->post('/plain?id=plain', 'x', $field => $bad{$name})->status, 200, 'where nothing is asked for it is not';
        }
    }
    is $nginx->get('/pub?id=bad')->status, 404, 'what was refused left nothing behind';
    is $nginx->post('/pub?id=long', 'x', 'Event-Id' => 'x' x 255)->status, 200, '255 bytes are not too many';

    is $nginx->get('/pub?id=a')->header('Access-Control-Expose-Headers'),
        'Etag, X-Nginx-PushStream-Gap, X-Nginx-PushStream-Event-Id', 'pages may read the headers';
    my $plain = $nginx->post('/plain?id=a', 'x', 'Event-Id' => '1');
    is $plain->header('Access-Control-Expose-Headers'), undef, 'where nothing is asked for there are none';
    is $plain->header('X-Nginx-PushStream-Event-Id'), undef, 'not even of a brought id';

    # A reload begins no new series; nor does a killed worker.
    my $before = (split /-/, $nginx->post('/pub?id=r', 'x')->header('X-Nginx-PushStream-Event-Id'))[1];
    $nginx->reload;
    my ($same, $after) = split /-/, $nginx->post('/pub?id=r', 'x')->header('X-Nginx-PushStream-Event-Id');
    is $same, $epoch, 'after a reload the first half is the same';
    cmp_ok $after, '>', $before, 'and the second goes on';
};

done_testing;
