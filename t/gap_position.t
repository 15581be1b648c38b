# Whoever is told of a gap is told a position without one: a page that reloads when it has missed something does so once.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;
use PushStream::WebSocket;

my $conf = <<'CONF';
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_shared_memory_size 4m;
    push_stream_channels_path $arg_id;
    push_stream_store_messages on;
    push_stream_max_messages_stored_per_channel 3;
    push_stream_longpolling_connection_ttl 1s;
    push_stream_message_template "~id~|~channel~|~event-id~|~text~;";
    push_stream_resume ordered;
    push_stream_last_event_id $arg_eventid;

    server {
        listen 127.0.0.1:%%PORT%%;

        location /pub { push_stream_publisher admin; }
        location /ev { push_stream_subscriber eventsource; push_stream_message_template ~text~; push_stream_gap_notice on; }
        location /sub { push_stream_subscriber; push_stream_gap_notice on; }
        location /poll { push_stream_subscriber polling; push_stream_gap_notice on; }
        location /wait { push_stream_subscriber long-polling; push_stream_gap_notice on; }
        location /long { push_stream_subscriber long-polling; push_stream_gap_notice on; push_stream_longpolling_connection_ttl 30s; }
        location /ws { push_stream_subscriber websocket; push_stream_gap_notice on; }
        location /silent/ev { push_stream_subscriber eventsource; push_stream_message_template ~text~; }
        location /silent/poll { push_stream_subscriber polling; }
        location /silent/long { push_stream_subscriber long-polling; push_stream_longpolling_connection_ttl 30s; }
        location /exact { push_stream_subscriber polling; push_stream_resume exact; }
    }
}
CONF

my $id = 'X-Nginx-PushStream-Event-Id';

with_nginx $conf, sub ($nginx) {
    my $publish = sub ($channels, $event_id, $text = "m$event_id") {
        $nginx->post("/pub?id=$channels", $text, 'Event-Id' => $event_id)->status == 200 or die 'not published';
    };
    my $told = sub ($answer) { join ' ', $answer->status, $answer->header('X-Nginx-PushStream-Gap') // '-', $answer->header($id) // '-' };
    # Asks, and again with what it was told.
    my $twice = sub ($uri, $position) {
        my $first = $nginx->get("$uri?id=a/b", 'Last-Event-Id' => $position);
        my $second = $nginx->get("$uri?id=a/b", 'Last-Event-Id' => $first->header($id) // $position);
        return $told->($first) . ', ' . $told->($second);
    };
    my $socket = sub ($position) {
        return PushStream::WebSocket->new($nginx, '/ws?id=a/b', headers => { 'Last-Event-Id' => $position });
    };
    my $events = sub ($position) { $nginx->subscribe('/ev?id=a/b', 'Last-Event-Id' => $position) };
    my $after_head = sub ($stream, $count) { $stream->chunk; join '', map { $stream->chunk } 1 .. $count };

    # From before a restart: nothing is there.
    is $twice->($_, '100-0'), '304 a, b 0, 304 - 0', "$_: an empty zone says so once" for qw(/poll /wait);
    my $ws = $socket->('100-0');
    is $ws->text . $ws->text, '-4|a|0|Messages lost;-4|b|0|Messages lost;', 'WebSocket: the position is in the notice';
    my $fresh = $socket->('0');
    my $stream = $nginx->subscribe('/sub?id=a/b', 'Last-Event-Id' => '100-0');
    is $stream->text_until(qr/b\|.*;/), '-4|a|0|Messages lost;-4|b|0|Messages lost;', 'streaming: the same';
    my $ev = $events->('100-0');
    like $after_head->($ev, 3), qr/^event: gap\n.*event: gap\n.*^id: 0\n\n\z/ms, 'EventSource: behind the notices';
    my $calm = $events->('0');
    is $after_head->($calm, 1), "id: 0\n\n", 'with which it is told nothing';
    my $jsonp = $nginx->get('/poll?id=a/b&eventid=100-0&callback=f');
    is $jsonp->status . $jsonp->body, '200f([-4|a|0|Messages lost;,-4|b|0|Messages lost;]);', 'JSONP sees no headers: messages';
    is $nginx->get('/wait?id=a/b&eventid=100-0&callback=f')->body, 'f([-4|a|0|Messages lost;,-4|b|0|Messages lost;]);',
        'long polling with JSONP: when the time is up';
    is $nginx->get('/poll?id=a/b&eventid=0&callback=f')->status, 304, 'once';

    my $long = $nginx->open(GET => '/long?id=a/b', headers => { 'Last-Event-Id' => '100-0' });
    my $script = $nginx->open(GET => '/long?id=a/b&eventid=100-0&callback=f');
    ok wait_until { ($nginx->get('/pub?id=b')->json->{subscribers} // 0) == 7 }, 'long polls wait';
    $publish->(a => '5-0');
    is $told->($long->response), '200 a, b 5-0', 'a long poll is told with the message that it gets';
    is $script->response->body, 'f([-4|a||Messages lost;,-4|b||Messages lost;,1|a|5-0|m5-0;]);', 'which brings the position for a script';
    # Who was told begins anew: lower ids than before are positions.
    is $_->event->{id}, '5-0', 'EventSource: the messages that come are positions' for $ev, $calm;
    is $_->text, '1|a|5-0|m5-0;', 'WebSocket: so they are, and without a notice' for $ws, $fresh;

    # Lost, with some left and with none.
    $publish->(a => "$_-0") for 6 .. 9;
    is $twice->('/poll', '5-0'), '200 a 9-0, 304 - 9-0', 'lost: with what is left';
    is $twice->('/poll', '100-0'), '200 a, b 9-0, 304 - 9-0', 'a position that never was';
    $ws = $socket->('5-0');
    is join('', map { $ws->text } 1 .. 4), '-4|a||Messages lost;3|a|7-0|m7-0;4|a|8-0|m8-0;5|a|9-0|m9-0;',
        'WebSocket: the messages that follow bring the position';
    is $nginx->get('/poll?id=a/b&eventid=5-0&callback=f')->body, 'f([-4|a||Messages lost;,3|a|7-0|m7-0;,4|a|8-0|m8-0;,5|a|9-0|m9-0;]);',
        'JSONP: the same';
    $nginx->delete('/pub?id=a');
    ok wait_until { $nginx->get('/pub?id=a')->status == 404 }, 'deleted';
    is $twice->($_, '8-0'), '304 a 9-0, 304 - 9-0', "$_: all is gone" for qw(/poll /wait);
    $ws = $socket->('8-0');
    is $ws->text, '-4|a|9-0|Messages lost;', 'WebSocket: a position that brings no notice';
    $ws = $socket->('9-0');
    $publish->(b => '10-0');
    is $ws->text, '1|b|10-0|m10-0;', 'as can be seen';

    # Answers without a gap have a position, too: the next request loses nothing.
    is $told->($nginx->get('/poll?id=c')), '304 - 10-0', 'nothing there: where the zone is';
    $publish->(c => '11-0');
    is $told->($nginx->get('/poll?id=c', 'Last-Event-Id' => '10-0')), '200 - 11-0', 'messages: the last of them';
    is $told->($nginx->get('/silent/poll?id=c', 'Last-Event-Id' => '10-0')), '200 - 11-0', 'also where gaps are not told';
    $long = $nginx->open(GET => '/silent/long?id=c/d', headers => { 'Last-Event-Id' => '11-0' });
    ok wait_until { ($nginx->get('/pub?id=d')->status == 200 && $nginx->get('/pub?id=d')->json->{subscribers}) }, 'a long poll waits';
    $publish->('d/c' => '12-0');
    is $told->($long->response), '200 - 12-0', 'it is told, too';
    is $told->($nginx->get('/silent/poll?id=c', 'Last-Event-Id' => 'x1')), '304 - -', 'a client with ids of another form is not led astray';
    is $told->($nginx->get('/exact?id=c.b1')), '200 - -', 'nor are those who do not resume in order';
};

# Where gaps are not told, nothing at or below what a reader has seen becomes its position.
with_nginx $conf, sub ($nginx) {
    my $reader = $nginx->subscribe('/silent/ev?id=a', 'Last-Event-Id' => '100-0');
    my $long = $nginx->open(GET => '/silent/long?id=a', headers => { 'Last-Event-Id' => '100-0' });
    ok wait_until { $nginx->get('/pub?id=a')->status == 200 && $nginx->get('/pub?id=a')->json->{subscribers} == 2 }, 'readers are there';
    for my $event_id (qw(5-0 6-0 100-0 101-0)) {
        $nginx->post('/pub?id=a', "m$event_id", 'Event-Id' => $event_id)->status == 200 or die;
    }
    is $reader->chunk . $reader->chunk, ": \nid: 100-0\n\n", 'it is where it was';
    my @events = map { my $event = $reader->event; ($event->{id} // '') . ":$event->{data}" } 1 .. 4;
    is "@events", ':m5-0 :m6-0 :m100-0 101-0:m101-0', 'ids that are not above it are not shown';
    my $answer = $long->response;
    is $answer->body . $answer->header($id), '1|a||m5-0;100-0', 'nor to a long poll, whose position stays';
};

done_testing;
