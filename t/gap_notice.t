# Who has missed messages is told, and gets all there is.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;
use PushStream::WebSocket;

use JSON::PP qw(decode_json);

my $conf = <<'CONF';
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_shared_memory_size 8m;
    push_stream_channels_path $arg_id;
    push_stream_store_messages on;
    push_stream_max_messages_stored_per_channel %%STORED%%;
    push_stream_longpolling_connection_ttl 1s;
    push_stream_message_template "~id~|~channel~|~event-id~|~text~;";
    push_stream_resume ordered;
    keepalive_requests 100000;

    server {
        listen 127.0.0.1:%%PORT%% sndbuf=16k;

        location /pub { push_stream_publisher admin; }
        %%AUTO%%
        location /silent { push_stream_subscriber eventsource; push_stream_message_template ~text~; }

        location /on/ {
            push_stream_gap_notice on;
            location /on/ev { push_stream_subscriber eventsource; push_stream_message_template ~text~; }
            location /on/sub { push_stream_subscriber; }
            location /on/poll { push_stream_subscriber polling; push_stream_allowed_origins *; }
            location /on/wait { push_stream_subscriber long-polling; push_stream_longpolling_connection_ttl 20s; }
            location /on/short { push_stream_subscriber long-polling; }
            location /on/ws { push_stream_subscriber websocket; push_stream_gap_message_text "Something is missing"; }
            location /on/skip {
                push_stream_subscriber eventsource;
                push_stream_message_template ~text~;
                push_stream_slow_reader skip;
                push_stream_subscriber_queue 100k;
            }
            location /on/latest {
                push_stream_subscriber;
                push_stream_slow_reader latest;
                push_stream_subscriber_queue 100k;
            }
        }
    }
}
CONF

with_nginx $conf =~ s/%%AUTO%%//r =~ s/%%STORED%%/3/r, sub ($nginx) {
    my $publish = sub ($channels, @ids) {
        $nginx->post("/pub?id=$channels", "m$_", 'Event-Id' => $_)->status == 200 or die for @ids;
    };
    $publish->(a => 1 .. 5);
    $publish->(b => 6);
    my $gap = sub ($event) { ($event->{event} // '') eq 'gap' && !exists $event->{id} ? decode_json($event->{data}) : $event };

    my $events = $nginx->subscribe('/on/ev?id=b/a', 'Last-Event-Id' => 1);
    is_deeply $gap->($events->event), { channel => 'a', asked => '1', first => '3' }, 'EventSource: a notice, before all messages';
    is join(' ', map { $events->event->{id} } 1 .. 4), '3 4 5 6', 'then everything there is';
    $events = $nginx->subscribe('/on/ev?id=b/a', 'Last-Event-Id' => 2);
    is $events->event->{id}, 3, 'who has missed nothing is told nothing';
    $events = $nginx->subscribe('/on/ev?id=a/b', 'Last-Event-Id' => 99);
    is_deeply [ map { $gap->($events->event)->{channel} } 1, 2 ], [qw(a b)], 'a position that this zone never had: one for each channel';
    is join(' ', map { $events->event->{id} } 1 .. 4), '3 4 5 6', 'and everything there is';
    $events = $nginx->subscribe('/silent?id=a', 'Last-Event-Id' => 1);
    is $events->event->{id}, 3, 'without the directive: what there is above, and not a word';
    $events = $nginx->subscribe('/on/ev?id=a');
    is $events->chunk . $events->chunk, ": \nid: 6\n\n", 'who has no position has missed nothing';

    my $stream = $nginx->subscribe('/on/sub?id=a', 'Last-Event-Id' => 1);
    my @told = ('-4|a||Messages lost;', '3|a|3|m3;');
    is_deeply [ $stream->chunks_as(@told) ], \@told, 'streaming: a message of its own, then the messages';
    my $socket = PushStream::WebSocket->new($nginx, '/on/ws?id=a', headers => { 'Last-Event-ID' => 1 });
    is $socket->text, '-4|a||Something is missing;', 'WebSocket: the same, with a text of its own';
    is $socket->text, '3|a|3|m3;', 'then the messages';

    my $poll = $nginx->get('/on/poll?id=b/a', 'Last-Event-Id' => 1);
    is $poll->header('X-Nginx-PushStream-Gap'), 'a', 'polling: a header';
    is $poll->header('Access-Control-Expose-Headers'), 'Etag, X-Nginx-PushStream-Gap, X-Nginx-PushStream-Event-Id',
        'that pages may read';
    like $poll->body, qr/^3\|a\|3\|m3;/, 'with the messages';
    is $nginx->get('/on/poll?id=a/b', 'Last-Event-Id' => 7)->header('X-Nginx-PushStream-Gap'), 'a, b', 'of all channels';
    is $nginx->get('/on/poll?id=a/b', 'Last-Event-Id' => 6)->header('X-Nginx-PushStream-Gap'), undef, 'or none';

    # Of a channel that was deleted everything may have been missed, also if it is back; and also if it never was there.
    $nginx->delete('/pub?id=b');
    is $nginx->get('/on/poll?id=n%2C1', 'Last-Event-Id' => 5)->header('X-Nginx-PushStream-Gap'), 'n%2C1', 'on a 304, too';
    my $waiting = $nginx->open(GET => '/on/wait?id=b', headers => { 'Last-Event-Id' => 5 });
    ok wait_until { ($nginx->get('/pub?id=b')->status == 200 && $nginx->get('/pub?id=b')->json->{subscribers}) }, 'a gap ends no wait';
    $publish->(b => 7);
    my $answer = $waiting->response;
    is $answer->header('X-Nginx-PushStream-Gap'), 'b', 'it comes with the answer';
    is $answer->body, '1|b|7|m7;', 'which is a message';
    is $nginx->get('/on/short?id=x1', 'Last-Event-Id' => 5)->header('X-Nginx-PushStream-Gap'), 'x1', 'or with the 304';

    # Messages that are not stored are nobody's loss.
    $events = $nginx->subscribe('/on/ev?id=a', 'Last-Event-Id' => 5);
    is $events->chunk . $events->chunk, ": \nid: 7\n\n", 'nothing lost, nothing told';
};

# A reader that is too slow is told what it misses, where it misses it.
with_nginx $conf =~ s/%%AUTO%%/location \/auto { push_stream_publisher; push_stream_auto_event_id on; }/r =~ s/%%STORED%%/3/r, sub ($nginx) {
    my $slow = sub ($uri) {
        my $client = $nginx->connect(receive_buffer => 4096);
        $client->send_request(GET => $uri);
        $client->head;
        return $client;
    };
    my $skip = $slow->('/on/skip?id=a/b');
    my $latest = $slow->('/on/latest?id=a');
    my ($publisher, $count) = ($nginx->connect, 600);
    my %id;
    for my $n (1 .. $count) {
        my $channel = $n % 3 ? 'a' : 'b';
        my $answer = $publisher->request(POST => "/auto?id=$channel", body => sprintf('%s %06d ', $channel, $n) . 'x' x 4000);
        $id{ $answer->header('X-Nginx-PushStream-Event-Id') } = $n;
    }
    my ($last, %gap, $gaps, $wrong, @missing) = (0);
    while (1) {
        my $event = $skip->event;
        if (($event->{event} // '') eq 'gap') {
            my $gap = decode_json($event->{data});
            $gap{ $gap->{channel} } = $gap;
            is $id{ $gap->{asked} }, $last, "what is missing in $gap->{channel} follows what was read last" or $wrong++;
            $gaps++;
            next;
        }
        my ($channel, $n) = $event->{data} =~ /^(\w) 0*(\d+) /;
        for my $missed (grep { ($_ % 3 ? 'a' : 'b') eq $channel } $last + 1 .. $n - 1) {
            $gap{$channel} or push @missing, $missed;
        }
        if (my $gap = delete $gap{$channel}) {
            is $id{ $gap->{first} }, $n, "and then comes the first of $channel that is there";
        }
        $last = $n;
        last if $n == $count;
    }
    cmp_ok $gaps, '>=', 2, 'skip: both channels have gaps';
    is "@missing", '', 'skip: nothing is missing that was not told of';

    my ($told, $silent, $before) = (0, 0, 0);
    while (1) {
        my $chunk = $latest->chunk;
        if ($chunk =~ /^-4\|a\|\|Messages lost;$/) { $told = 1; next }
        my ($n) = $chunk =~ /\|a 0*(\d+) / or die "unexpected: $chunk";
        $silent++ if !$told && grep { $_ % 3 } $before + 1 .. $n - 1;
        ($told, $before) = (0, $n);
        last if $n >= $count - 1;
    }
    is $silent, 0, 'latest: the same';
};

# Old messages go while a slow reader is still at them.
with_nginx $conf =~ s/%%AUTO%%//r =~ s/%%STORED%%/1000/r =~ s/(http \{)/$1 push_stream_message_ttl 2s;/r, sub ($nginx) {
    my $publisher = $nginx->connect;
    my $publish = sub ($channel, $n) {
        $publisher->request(POST => "/pub?id=$channel", headers => { 'Event-Id' => $n }, body => "$n " . 'x' x 8000)->status == 200 or die;
    };
    $publish->('a', $_) for 1 .. 400;
    my $reader = $nginx->connect(receive_buffer => 4096);
    $reader->send_request(GET => '/on/ev?id=b/a', headers => { 'Last-Event-Id' => 0 });
    is $reader->event->{id}, 1, 'it begins to read';
    ok wait_until { !$nginx->get('/pub?id=a')->json->{stored_messages} }, 'then all is gone';
    my ($last, $gap) = (1);
    while (!$gap) {
        my $event = $reader->event;
        if (($event->{event} // '') eq 'gap') { $gap = decode_json($event->{data}) }
        else { is $event->{id}, $last + 1, 'in between' or last if $event->{id} != $last + 1; $last = $event->{id} }
    }
    cmp_ok $last, '<', 400, "it got $last messages";
    is_deeply $gap, { channel => 'a', asked => "$last", first => undef }, 'and is told that the others are lost';
    $publish->(b => 401);
    is $reader->event->{id}, 401, 'on it goes';

    # A poll is told in the head of its answer. When that is out, the answer is broken off: it must not look whole.
    $publish->('c', $_) for 402 .. 801;
    my $poll = $nginx->connect(receive_buffer => 4096);
    $poll->send_request(GET => '/on/poll?id=c', headers => { 'Last-Event-Id' => 401 });
    is $poll->head->header('X-Nginx-PushStream-Gap'), undef, 'a poll begins to read, and nothing is missing';
    ok wait_until { !$nginx->get('/pub?id=c')->json->{stored_messages} }, 'then all is gone';
    my $whole = eval { $poll->response->body };
    is $whole, undef, 'its answer has no end';
    $publish->(c => 802);
    my $again = $nginx->get('/on/poll?id=c', 'Last-Event-Id' => 401);
    is $again->header('X-Nginx-PushStream-Gap'), 'c', 'it asks again and is told';
    like $again->body, qr/^\d+\|c\|802\|802 x+;$/, 'with what there is';
};

done_testing;
