# With ordered ids a reader goes on above its position, whatever became of the message there, over all its channels and in all modes.

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
    push_stream_message_template "~event-id~|~channel~|~text~;";
    push_stream_longpolling_connection_ttl 1s;

    server {
        listen 127.0.0.1:%%PORT%%;

        location /pub { push_stream_publisher admin; }
        location /exact { push_stream_subscriber polling; push_stream_last_event_id $arg_eventid; }

        location /on/ {
            push_stream_resume ordered;
            push_stream_last_event_id $arg_eventid;

            location /on/ev { push_stream_subscriber eventsource; push_stream_message_template ~text~; }
            location /on/sub { push_stream_subscriber; }
            location /on/poll { push_stream_subscriber polling; }
            location /on/wait { push_stream_subscriber long-polling; }
            location /on/ws { push_stream_subscriber websocket; }
            location /on/retry {
                push_stream_subscriber eventsource;
                push_stream_eventsource_retry 2s 4s;
            }
        }
    }
}
CONF
    my $publish = sub ($channels, $id, $text = $id) {
        my $answer = $nginx->post("/pub?id=$channels", $text, 'Event-Id' => $id);
        $answer->status == 200 or die 'not published';
    };
    $publish->(a => '10');
    $publish->(b => '11');
    $publish->('a/b/c' => '12', 'all');
    $publish->(c => '13-1');
    $publish->(a => '13-2');

    # All modes tell the same story.
    my $polled = sub ($uri, %headers) { join ' ', $nginx->get($uri, %headers)->body =~ /([^|;]*\|\w+\|[^;]*);/g };
    my $all = '10|a|10 11|b|11 |a|all |b|all 12|c|all 13-1|c|13-1 13-2|a|13-2';
    is $polled->('/on/poll?id=a/b/c', 'Last-Event-Id' => '9'), $all, 'polling: merged by id, and only the last copy is a position';
    is $polled->('/on/wait?id=a/b/c', 'Last-Event-Id' => '9'), $all, 'long polling: the same';
    is $polled->('/on/poll?id=c/a/b&eventid=11'), '|c|all |a|all 12|b|all 13-1|c|13-1 13-2|a|13-2', 'by an argument';
    is $polled->('/on/poll?id=a/b/c', 'Last-Event-Id' => '13'), '13-1|c|13-1 13-2|a|13-2', 'a position between two messages';
    is $polled->('/on/poll?id=a/b/c', 'Last-Event-Id' => '13-2'), '', 'at the end there is nothing';
    is $nginx->get('/on/poll?id=a/b/c', 'Last-Event-Id' => '13-2')->status, 304, 'which is a 304';

    my $stream = $nginx->subscribe('/on/sub?id=a/b/c&eventid=12');
    is $stream->text_until(qr/13-2;/), '13-1|c|13-1;13-2|a|13-2;', 'streaming';
    my $socket = PushStream::WebSocket->new($nginx, '/on/ws?id=a/b/c&eventid=11');
    is join(' ', map { $socket->text } 1 .. 5), '|a|all; |b|all; 12|c|all; 13-1|c|13-1; 13-2|a|13-2;', 'WebSocket';
    my $events = $nginx->subscribe('/on/ev?id=a/b/c', 'Last-Event-Id' => '11');
    my @events = map { my $event = $events->event; ($event->{id} // '') . ":$event->{data}" } 1 .. 5;
    is "@events", ':all :all 12:all 13-1:13-1 13-2:13-2', 'EventSource';

    # Which position counts.
    is $polled->('/on/poll?id=a&eventid=10', 'Last-Event-Id' => '12'), '13-2|a|13-2', 'what the browser sends is before what the page said';
    is $polled->('/on/poll?id=a&eventid=12', 'Last-Event-Id' => ''), '13-2|a|13-2', 'an empty one is none';
    is $polled->('/exact?id=a&eventid=12', 'Last-Event-Id' => '10'), '13-2|a|13-2', 'exact: the directive takes the place of the header';
    is $polled->('/on/poll?id=a.b3', 'Last-Event-Id' => '12'), '13-2|a|13-2', 'an id is before a backtrack';
    is $polled->('/on/poll?id=a.b1/b.b2/c'), '11|b|11 12|b|all 13-2|a|13-2', 'backtracks are merged, too';
    my $epoch = 'Thu, 01 Jan 1970 00:00:00 GMT';
    is $polled->('/on/poll?id=c/a', 'If-Modified-Since' => $epoch), '10|a|10 |c|all 12|a|all 13-1|c|13-1 13-2|a|13-2', 'so is a time';
    is $polled->('/on/poll?id=a', 'Last-Event-Id' => 'unknown', 'If-Modified-Since' => $epoch), '10|a|10 12|a|all 13-2|a|13-2',
        'an id without order is as good as in exact';
    $publish->(d => 'x1', 'first');
    $publish->(d => 'x2', 'second');
    is $polled->('/on/poll?id=d', 'Last-Event-Id' => 'x1'), 'x2|d|second', 'it is found if it is there';
    is $polled->('/exact?id=a&eventid=11'), '', 'exact: a position that is not there gives nothing';

    # Live.
    my $live = $nginx->subscribe('/on/ev?id=a/b/c/e');
    like $live->chunk, qr/^: \n$/, 'a stream begins';
    is $live->chunk, "id: 13-2\n\n", 'and says where it is, if no message does';
    $publish->('e/a/b', '14', 'copies');
    @events = map { my $event = $live->event; ($event->{id} // '') . ":$event->{data}" } 1 .. 3;
    is "@events", ':copies :copies 14:copies', 'live: only the last copy is a position';
    $publish->(a => '15');
    is $live->event->{id}, '15', 'and on it goes';

    my $waiting = $nginx->open(GET => '/on/wait?id=a/b/c&eventid=15');
    ok wait_until { ($nginx->get('/pub?id=c')->json->{subscribers} // 0) == 5 }, 'a long poll waits';
    $publish->('c/b', '16', 'two');
    is $waiting->response->body, '|b|two;16|c|two;', 'it gets all copies, so that none is skipped nor sent again';

    # An id below what a reader has seen in another of its channels is shown as no position.
    my $both = $nginx->subscribe('/on/ev?id=f/g');
    $both->chunk for 1, 2;
    $publish->(f => '30');
    is $both->event->{id}, '30', 'one channel is ahead';
    $publish->(g => '25', 'behind');
    is_deeply $both->event, { data => 'behind' }, 'the other comes without an id';
    $publish->(g => '31');
    is $both->event->{id}, '31', 'until it has caught up';

    # A deleted channel is left; the last one ends the stream.
    my $leaving = $nginx->subscribe('/on/ev?id=h/i');
    $leaving->chunk for 1, 2;
    $nginx->delete('/pub?id=h');
    is $leaving->event->{data}, 'Channel deleted', 'a deleted channel is told of';
    $publish->(i => '40');
    is $leaving->event->{id}, '40', 'the other goes on';
    $nginx->delete('/pub?id=i');
    is $leaving->event->{data}, 'Channel deleted', 'when that is deleted, too';
    is $leaving->chunk, '', 'the stream ends';

    my %retries;
    for (1 .. 20) {
        my $text = join '', map { $_ } (my $stream = $nginx->subscribe('/on/retry?id=r'))->text_until(qr/retry: \d+\n\n/);
        my ($retry) = $text =~ /retry: (\d+)\n\n/;
        ok $retry >= 2000 && $retry <= 4000, "comes back after $retry ms";
        $retries{$retry} = 1;
    }
    cmp_ok scalar(keys %retries), '>', 1, 'not all at once';
};

done_testing;
