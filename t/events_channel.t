# The events channel: it tells what happens to all others.

use v5.36;
use FindBin;
use Time::HiRes 'time';
use lib "$FindBin::Bin/lib";
use PushStream::Test;
use PushStream::WebSocket;

with_nginx <<'CONF', sub ($nginx) {
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_handover off;
    push_stream_shared_memory_size 4m;
    push_stream_channels_path $arg_id;
    push_stream_store_messages on;
    push_stream_events_channel_id events;
    push_stream_max_number_of_channels 25;

    server {
        listen 127.0.0.1:%%PORT%%;

        location /pub { push_stream_publisher admin; }
        location /status { push_stream_channels_statistics; }
        location /sub { push_stream_subscriber; push_stream_message_template "~id~ ~text~\n"; }
        location /poll { push_stream_subscriber long-polling; push_stream_longpolling_connection_ttl 300ms; }
        location /short { push_stream_subscriber; push_stream_subscriber_connection_ttl 300ms; }
        location /listen {
            push_stream_subscriber eventsource;
            push_stream_allow_connections_to_events_channel on;
        }
        location /ws { push_stream_subscriber websocket; }
    }
}
CONF
    my $told = sub ($type, $id) { qq(event: $type\ndata: {"type": "$type", "channel": "$id"}\n\n) };

    # --- it is there from the start, and not for everybody ---
    is $nginx->figures('events')->{published_messages}, 0, 'it exists before anything happens';
    is $nginx->figures->{channels}, 1, 'and is one of the channels';
    my $refused = $nginx->get('/sub?id=events');
    is $refused->status, 403, 'only where it is allowed';
    is $refused->header('X-Nginx-PushStream-Explain'), 'Subscription to events channel is not allowed.', 'one may listen';
    is(PushStream::WebSocket->new($nginx, '/ws?id=events')->close_payload,
        qq{\x03\xf0{"http_status": 403, "explain":"Subscription to events channel is not allowed."}}, 'over a WebSocket too');
    for my $method (qw(POST PUT DELETE)) {
        my $answer = $nginx->request($method => '/pub?id=x/events', body => 'forged');
        is $answer->status, 403, "$method";
        is $answer->header('X-Nginx-PushStream-Explain'), 'Only internal routines can change events channel.', 'is for the module alone';
    }
    is_deeply $nginx->figures('x'), {}, 'and nothing of it was done';
    is $nginx->get('/pub?id=events')->status, 200, 'its figures are no secret';

    # --- what it tells ---
    my $events = $nginx->subscribe('/listen?id=events');
    is $events->chunk, ": \n", 'listening';
    $nginx->post('/pub?id=a', 'x');
    is $events->text_until(qr/\n\n/), $told->(channel_created => 'a'), 'a channel comes into being';
    my $subscriber = $nginx->subscribe('/sub?id=a/a');
    is $events->text_until(qr/\n\n.*\n\n/s), $told->(client_subscribed => 'a') x 2, 'a subscription, one for each channel of the path';
    close $subscriber->socket;
    is $events->text_until(qr/\n\n.*\n\n/s), $told->(client_unsubscribed => 'a') x 2, 'the client hung up';
    $nginx->subscribe('/short?id=a');
    is $events->text_until(qr/unsubscribed.*\n\n/s), $told->(client_subscribed => 'a') . $told->(client_unsubscribed => 'a'), 'its time was up';
    is $nginx->get('/poll?id=a', 'If-Modified-Since' => 'Thu, 01 Jan 1970 00:00:00 GMT')->status, 200, 'a poll that is answered at once';
    ok $events->is_quiet, 'is not worth a word';
    is $nginx->get('/poll?id=a')->status, 304, 'one that waits';
    is $events->text_until(qr/unsubscribed.*\n\n/s), $told->(client_subscribed => 'a') . $told->(client_unsubscribed => 'a'), 'is';
    $nginx->post('/pub?id=quote%22%0Aline', 'x');
    is $events->text_until(qr/\n\n/), $told->(channel_created => 'quote\"\nline'), 'ids are escaped';
    my $both = $nginx->subscribe('/listen?id=events/other');
    $both->chunk;
    is $both->text_until(qr/\n\n/), $told->(client_subscribed => 'other'), 'who listens to another channel too sees itself come';
    is $events->text_until(qr/subscribed.*\n\n/s), $told->(channel_created => 'other') . $told->(client_subscribed => 'other'), 'as do the others';
    my $before = $nginx->figures;
    $nginx->delete('/pub?id=a');
    is $events->text_until(qr/\n\n/, 8), $told->(channel_destroyed => 'a'), 'a deletion, when it is done';
    my $zone = $nginx->figures;
    is $zone->{published_messages}, 2, 'events do not count as published';
    is $zone->{stored_messages}, 1, 'nor as stored';

    # --- kills and reloads ---
    my $count = $nginx->figures('events')->{published_messages};
    my $followers = $nginx->subscribe('/sub?id=b');
    ok wait_until { $nginx->figures('events')->{published_messages} == $count + 2 }, 'one more channel and subscription';
    $nginx->reload;
    ok wait_until { $nginx->figures('events')->{published_messages} >= $count + 3 }, 'which ends with the old worker';
    my $again = $nginx->subscribe('/listen?id=events.b1');
    like $again->text_until(qr/\n\n/), qr/client_unsubscribed/, 'and is told, and kept';
    $nginx->post('/pub?id=new', 'x');
    like $again->text_until(qr/channel_created.*\n\n/s), qr/"new"/, 'it goes on after the reload';
    ok wait_until { $nginx->figures('events')->{subscribers} == 1 }, 'counts are true';
};

# What a worker does itself reaches its own subscribers at once.
with_nginx <<'CONF', sub ($nginx) {
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_shared_memory_size 1m;
    push_stream_channels_path $arg_id;
    push_stream_events_channel_id events;

    server {
        listen 127.0.0.1:%%PORT%%;

        location /sub { push_stream_subscriber; push_stream_allow_connections_to_events_channel on; push_stream_message_template ~text~; }
        location /pub { push_stream_publisher admin; }
        location /ws { push_stream_subscriber websocket; }
    }
}
CONF
    my $events = $nginx->subscribe('/sub?id=events');
    my %ways = (
        'a stream is cut' => sub { my $stream = $nginx->subscribe('/sub?id=a'); return sub { $stream->close } },
        'a WebSocket is closed' => sub {
            my $socket = PushStream::WebSocket->new($nginx, '/ws?id=a');
            return sub { $socket->client->close };
        },
        'a channel is deleted' => sub {
            $nginx->subscribe('/sub?id=a');
            return sub { $nginx->delete('/pub?id=a') };
        },
    );
    for my $way (sort keys %ways) {
        my @took;
        for (1 .. 5) {
            my $leave = $ways{$way}->();
            $events->text_until(qr/client_subscribed/);
            my $before = time;
            $leave->();
            $events->text_until(qr/client_unsubscribed/);
            push @took, time - $before;
        }
        @took = sort { $a <=> $b } @took;
        # The timer that looks for what was overlooked comes once a second.
        cmp_ok $took[2], '<', 0.5, "$way: told at once";
    }
};

done_testing;
