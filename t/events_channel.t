# The events channel tells of channels and subscribers that come and go.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;

my $conf = <<'CONF';
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_shared_memory_size 4m;
    push_stream_events_channel_id events;
    push_stream_channels_path $arg_id;
    push_stream_message_ttl 5m;

    server {
        listen 127.0.0.1:%%PORT%% reuseport;

        location /pub { push_stream_publisher admin; }
        location /sub { push_stream_subscriber; }
        location /wait { push_stream_subscriber long-polling; push_stream_longpolling_connection_ttl 200ms; }
        location /poll { push_stream_subscriber polling; }
        location /watch {
            push_stream_subscriber;
            push_stream_message_template "~event-type~ ~text~|";
            push_stream_allow_connections_to_events_channel on;
        }
        location /watch_ev { push_stream_subscriber eventsource; push_stream_allow_connections_to_events_channel on; }
        location /status { push_stream_channels_statistics; }
    }
}
CONF

with_nginx $conf, sub ($nginx) {
    my $event = sub ($type, $id) { qq($type {"type": "$type", "channel": "$id"}|) };
    my $refused = sub ($answer, $explain, $name) {
        is $answer->status, 403, $name;
        is $answer->explain, $explain, "$name: the reason";
    };

    is $nginx->figures->{channels}, 1, 'it is there from the start, and counts';
    $refused->($nginx->get("/$_?id=events"), 'Subscription to events channel is not allowed.', "$_ where it is not allowed")
        for qw(sub wait poll);
    my $only = 'Only internal routines can change events channel.';
    $refused->($nginx->post('/pub?id=events', 'x'), $only, 'publishing to it');
    $refused->($nginx->delete('/pub?id=events'), $only, 'deleting it');
    is $nginx->get('/pub?id=events')->json->{published_messages}, 0, 'it can be asked for';

    my $watch = $nginx->subscribe('/watch?id=events');
    my $browser = $nginx->subscribe('/watch_ev?id=events');
    ok $watch->is_quiet(0.1), 'nothing is said of itself';

    $nginx->post('/pub?id=a', 'x');
    is $watch->chunk, $event->('channel_created', 'a'), 'a channel comes';
    is_deeply $browser->event, { event => 'channel_created', data => '{"type": "channel_created", "channel": "a"}', comments => [''] },
        'as an event with its type';
    $nginx->post('/pub?id=a', 'y');
    my $stream = $nginx->subscribe('/sub?id=a/b');
    is $watch->text_until(qr/(\|.*){3}/s),
        $event->('channel_created', 'b') . $event->('client_subscribed', 'a') . $event->('client_subscribed', 'b'),
        'a subscriber, with each of its channels';
    $stream->close;
    is join(' ', sort split / (?=client)|(?<=\|)/, $watch->text_until(qr/(\|.*){2}/s)),
        join(' ', $event->('client_unsubscribed', 'a'), $event->('client_unsubscribed', 'b')), 'it goes';

    $nginx->get('/wait?id=a');
    is $watch->text_until(qr/(\|.*){2}/s), $event->('client_subscribed', 'a') . $event->('client_unsubscribed', 'a'),
        'who polls long comes and goes';
    $nginx->get('/poll?id=a');
    ok $watch->is_quiet(0.1), 'polling is nothing to tell';

    my $start = time;
    $nginx->delete('/pub?id=a');
    is $watch->chunk(8), $event->('channel_destroyed', 'a'), 'a deleted channel goes';
    cmp_ok time - $start, '<', 6, 'within one round of cleaning up';

    my $both = $nginx->subscribe('/watch?id=events/other');
    like $both->text_until(qr/client_subscribed.*\|/s), qr/"client_subscribed", "channel": "other"/, 'who watches sees itself come';
    $nginx->post('/pub?id=quote%22', 'x');
    like $watch->text_until(qr/quote.*\|/s), qr/"channel": "quote\\""/, 'ids are escaped';

    my $zone = $nginx->figures;
    is $zone->{published_messages}, 3, 'events do not count as published';
    is $zone->{stored_messages}, 0, 'nor as stored';
    cmp_ok $nginx->figures('events')->{stored_messages}, '>', 5, 'but are stored, whatever push_stream_store_messages says';

    $nginx->reload;
    my $after = $nginx->subscribe('/watch?id=events.b1');
    $nginx->post('/pub?id=after', 'x');
    like $after->text_until(qr/after.*\|/s), qr/channel_created \{"type": "channel_created", "channel": "after"\}\|$/, 'it goes on after a reload';
};

subtest 'switched on by a reload' => sub {
    with_nginx $conf =~ s/^ *push_stream_events_channel_id.*\n//mr, sub ($nginx) {
        $nginx->post('/pub?id=a', 'x');
        $nginx->reload($conf);
        my $watch = $nginx->subscribe('/watch?id=events');
        $nginx->post('/pub?id=b', 'x');
        like $watch->chunk, qr/"channel": "b"/, 'it is made when it is missing';
    };
};

done_testing;
