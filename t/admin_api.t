# What operators may do: list channels and messages, delete by prefix, send subscribers away.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;

use JSON::PP ();
use MIME::Base64 ();

with_nginx <<'CONF', sub ($nginx) {
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_shared_memory_size 64m;
    push_stream_channels_path $arg_id;
    push_stream_store_messages on;
    push_stream_events_channel_id events;
    push_stream_channel_inactivity_time 1h;
    push_stream_max_channel_id_length 40;
    client_max_body_size 4m;

    server {
        listen 127.0.0.1:%%PORT%%;

        location /pub { push_stream_publisher; push_stream_batch_publish on; }
        location /admin { push_stream_publisher admin; push_stream_admin_api on; }
        location /without { push_stream_publisher admin; }
        location /sub { push_stream_subscriber; push_stream_footer_template "the end"; push_stream_message_template "~id~:~text~\n"; }
        location /off { push_stream_subscriber; push_stream_detach off; }
        location /ev { push_stream_subscriber eventsource; }
        location /ordered { push_stream_subscriber eventsource; push_stream_resume ordered; }
        location /wait { push_stream_subscriber long-polling; }
        location /ws { push_stream_subscriber websocket; }
        location /status { push_stream_channels_statistics; }
    }
}
CONF
    my $refused = sub ($method, $uri, $status, $explain, $name) {
        my $answer = $nginx->request($method => $uri);
        is $answer->status, $status, "$name: $status";
        is $answer->explain, $explain, '... and it says why';
    };

    # Channels, a page at a time.
    my $batch = join '', map { qq({"channels": ["c$_"], "text": "x"}\n) } 1 .. 900;
    $nginx->post('/pub', $batch, 'Content-Type' => 'application/x-ndjson');
    $nginx->post('/pub?id=other', 'x');
    my $page = $nginx->json('/admin?list&prefix=c&limit=2');
    is_deeply $page->{channels}, [ map { { channel => "c$_", published_messages => 1, stored_messages => 1, subscribers => 0, stored_bytes => 128 } } 1, 2 ],
        'channels with their figures';
    is_deeply [ map { $_->{channel} } @{ $nginx->json("/admin?list&prefix=c&limit=2&after=$page->{next}")->{channels} } ], [qw(c3 c4)],
        'the next page';
    is_deeply [ map { $_->{channel} } @{ $nginx->json('/admin?list&prefix=c&limit=2&after=c7')->{channels} } ], [qw(c8 c9)],
        'the page behind a channel';
    my (@all, $after);
    for (1 .. 100) {
        my $page = $nginx->json('/admin?list&prefix=&limit=250&after=' . ($after // ''));
        push @all, map { $_->{channel} } @{ $page->{channels} };
        # What goes meanwhile does not confuse it.
        $nginx->delete("/admin?id=$all[-1]") if $all[-1] ne 'other';
        $after = $page->{next} // last;
    }
    is_deeply \@all, [ 'events', (map { "c$_" } 1 .. 900), 'other' ], 'all pages are all channels';
    is_deeply $nginx->json('/admin?list&prefix=nobody'), { channels => [], next => undef }, 'nobody';
    is scalar @{ $nginx->json('/admin?list')->{channels} }, 902 - 3, 'a thousand by default';
    $refused->(GET => '/admin?list&after=nobody', 400, 'Argument after names nothing.', 'behind a channel that is not there');
    $refused->(GET => "/admin?list&limit=$_", 400, 'Argument limit must be a number above zero.', "limit $_") for qw(0 x -1);
    $refused->(GET => '/without?list', 400, 'No channel id provided.', 'without the directive');
    is $nginx->get('/admin?id=c5')->json->{channel}, 'c5', 'without these arguments it is a publisher like any other';
    is $nginx->post('/admin?id=c5&list', 'x')->json->{published_messages}, 2, 'and so for all that is no GET or DELETE';

    # Messages.
    $nginx->post('/pub?id=m', "text $_", $_ == 2 ? ('Event-Id' => 'two', 'Event-Type' => 'note') : ()) for 1 .. 3;
    $nginx->post('/pub?id=m', "\xff\x00");
    my $messages = $nginx->json('/admin?id=m&messages')->{messages};
    is_deeply [ map { $_->{id} } @$messages ], [ 1 .. 4 ], 'stored messages, oldest first';
    is $messages->[0]{text}, 'text 1', 'with their text';
    is_deeply [ @{ $messages->[1] }{qw(event_id event_type)} ], [qw(two note)], 'event id and type';
    cmp_ok abs($messages->[0]{time} - time), '<', 60, 'and time';
    is MIME::Base64::decode_base64($messages->[3]{base64}), "\xff\x00", 'what is no text is base64';
    my $two = $nginx->json('/admin?id=m&messages&limit=2');
    is_deeply [ map { $_->{id} } @{ $two->{messages} } ], [ 1, 2 ], 'a page';
    my $rest = $nginx->json("/admin?id=m&messages&limit=2&after=$two->{next}");
    is_deeply [ map { $_->{id} } @{ $rest->{messages} } ], [ 3, 4 ], 'the next one';
    is $rest->{next}, undef, 'is the last';
    is_deeply [ map { $_->{id} } @{ $nginx->json('/admin?id=m&messages&after=3')->{messages} } ], [4], 'what is behind a message';
    my $many = join '', map { qq({"channels": ["many"], "text": "$_"}\n) } 1 .. 1000;
    $nginx->post('/pub', $many, 'Content-Type' => 'application/x-ndjson');
    my (@texts, $next);
    for (1 .. 100) {
        my $page = $nginx->json('/admin?id=many&messages&limit=70&after=' . ($next // ''));
        push @texts, map { $_->{text} } @{ $page->{messages} };
        $next = $page->{next} // last;
    }
    is_deeply \@texts, [ 1 .. 1000 ], 'all pages are all messages';
    is scalar @{ $nginx->json('/admin?id=many&messages&limit=100000')->{messages} }, 1000, 'or one large page';
    is $nginx->get('/admin?id=many&messages&after=@0-1-4294967295')->status, 200, 'a place that somebody has made up';
    is $nginx->get('/admin?id=nobody&messages')->status, 404, 'of nobody';
    $refused->(GET => '/admin?id=m/many&messages', 400, 'Exactly one channel id is needed.', 'of two channels');
    $refused->(GET => '/admin?messages', 400, 'No channel id provided.', 'of none');
    is $nginx->figures('nobody')->{channel}, undef, 'nothing came into being';

    # A message and the order to go, both found at once by a worker that was busy meanwhile.
    if ($nginx->worker_count > 1) {
        my $ordered = $nginx->subscribe('/ordered?id=yard/hall');
        ok wait_until { $nginx->figures('hall')->{subscribers} == 1 }, 'one is in the hall';
        my ($busy) = map { $_->{pid} } grep { $_->{subscribers} > 0 } @{ $nginx->figures->{by_worker} };
        # Others of the same worker take messages as they come.
        my @others;
        push @others, $nginx->subscribe('/sub?id=hall') until @others == 40
            || grep { $_->{pid} == $busy && $_->{subscribers} > 1 } @{ $nginx->figures->{by_worker} };
        # A stopped worker may be the one that is told of a new connection: only those that others have accepted are of use.
        my @clients = map { $nginx->connect } 1 .. 12;
        $_->request(GET => '/status') for @clients;
        kill STOP => $busy;
        my ($served) = grep { $_->send_request(GET => '/status'); eval { $_->response(0.5)->status == 200 } } @clients;
        if ($served) {
            $served->request(POST => '/pub?id=hall', body => 'the last');
            $served->request(DELETE => '/admin?id=hall&only=subscribers');
        }
        kill CONT => $busy;
        $served or $nginx->post('/pub?id=hall', 'the last') && $nginx->delete('/admin?id=hall&only=subscribers');
        like join('', $ordered->chunks_to_end), qr/the last/, 'who goes by the order of ids gets the last message before it is sent away';
    }

    # Sending subscribers away.
    my $stream = $nginx->subscribe('/sub?id=room');
    my $both = $nginx->subscribe('/ev?id=lobby/room');
    my $ordered = $nginx->subscribe('/ordered?id=lobby/room');
    my $attached = $nginx->subscribe('/off?id=room');
    my $waiting = $nginx->open(GET => '/wait?id=room');
    my $socket = $nginx->open(GET => '/ws?id=room', headers => {
        Connection => 'Upgrade', Upgrade => 'websocket', 'Sec-WebSocket-Version' => 13, 'Sec-WebSocket-Key' => 'dGhlIHNhbXBsZSBub25jZQ==',
    });
    $socket->head;
    my $outside = $nginx->subscribe('/sub?id=lobby');
    ok wait_until { $nginx->figures('room')->{subscribers} == 6 }, 'six are in the room';
    $nginx->post('/pub?id=room', 'last words');
    ok wait_until { $nginx->figures('room')->{subscribers} == 5 }, 'the one who waited has its message';
    my $sent_away = $nginx->delete('/admin?id=room/nobody&only=subscribers');
    is $sent_away->body, qq({"channels": 1, "subscribers": 5}\n), 'they are sent away, but who waited for one message';
    is join('', $stream->chunks_to_end), "1:last words\nthe end", 'after what they were to get, with the footer';
    like join('', $both->chunks_to_end), qr/last words/, 'also who has other channels';
    like join('', $ordered->chunks_to_end), qr/last words/, 'also who goes by the order of ids';
    is join('', $attached->chunks_to_end), 'last words', 'attached or not';
    is $waiting->response->status, 200, 'who waited had got the message';
    like $socket->rest, qr/last words\x88/, 'a WebSocket is closed';
    my $figures = $nginx->figures('room');
    is_deeply [ @$figures{qw(published_messages stored_messages)} ], [ 1, 1 ], 'the channel is what it was';
    ok wait_until { $nginx->figures('room')->{subscribers} == 0 }, 'and empty';
    my $again = $nginx->subscribe('/sub?id=room.b1');
    is $again->chunk, "1:last words\n", 'who comes back is welcome';
    $nginx->post('/pub?id=room', 'welcome');
    is $again->chunk, "2:welcome\n", 'and stays';
    $nginx->post('/pub?id=lobby', 'here');
    is $outside->chunk, "1:here\n", 'others have noticed nothing';
    my $waits = $nginx->open(GET => '/wait?id=room', headers => { 'If-Modified-Since' => 'Wed, 31 Dec 2098 00:00:00 GMT' });
    ok wait_until { $nginx->figures('room')->{subscribers} == 2 }, 'somebody waits';
    $nginx->delete('/admin?id=room&only=subscribers');
    is $waits->response->status, 304, 'and is told that there is nothing';
    is $nginx->delete('/admin?id=nobody&only=subscribers')->status, 404, 'nobody can be sent away from nowhere';
    $refused->(DELETE => '/admin?id=room&only=messages', 400, 'Argument only must be subscribers.', 'only something else');
    $refused->(DELETE => '/admin?id=events&only=subscribers', 403, 'Only internal routines can change events channel.', 'the events channel');

    # Deleting by prefix.
    my $reader = $nginx->subscribe('/sub?id=c42');
    is $nginx->delete('/admin?prefix=c&dry_run=1')->body, qq({"channels": 897, "subscribers": 1, "dry_run": true}\n), 'what would go';
    is $nginx->figures('c42')->{channel}, 'c42', 'is still there';
    my $deleted = $nginx->request(DELETE => '/admin?prefix=c', body => 'closed for today');
    is $deleted->body, qq({"channels": 897, "subscribers": 1, "dry_run": false}\n), 'it goes';
    is join('', $reader->chunks_to_end), "-2:closed for today\nthe end", 'and its subscribers are told what the request says';
    is_deeply [ map { $_->{channel} } @{ $nginx->json('/admin?list&prefix=c')->{channels} } ], [], 'all of it';
    ok $nginx->figures('many')->{channel}, 'nothing else';
    is $nginx->delete('/admin?prefix=c')->body, qq({"channels": 0, "subscribers": 0, "dry_run": false}\n), 'nothing is left to go';
    $refused->(DELETE => '/admin?prefix=', 400, 'An empty prefix would delete every channel.', 'an empty prefix');
    like $nginx->delete('/admin?prefix=&dry_run=1')->body, qr/"channels": [1-9]/, 'which may be counted';
    $nginx->delete('/admin?prefix=e');
    is $nginx->figures('events')->{channel}, 'events', 'the events channel stays';
    is $nginx->delete('/admin?id=many')->status, 200, 'a single channel is deleted as ever';
    is $nginx->delete('/without?id=m&prefix=m')->status, 200, 'without the directive these arguments are nothing';
};

sub conf ($location) {
    return "%%MAIN%%\nevents {}\nhttp { %%HTTP%% push_stream_shared_memory_size 1m; push_stream_channels_path x;"
        . " server { listen 127.0.0.1:%%PORT%%; location / { $location } } }";
}
my $alone = 'push_stream_admin_api needs push_stream_publisher admin or push_stream_console in the same location.';
refuses conf("$_ push_stream_admin_api on;"), $alone, "not with \"$_\""
    for '', 'push_stream_publisher;', 'push_stream_subscriber;', 'push_stream_channels_statistics;';

done_testing;
