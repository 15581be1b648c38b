# A configuration as it is found: a chat over WebSockets, rooms as channels, who is there from the events channel.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;
use PushStream::WebSocket;

with_nginx <<'CONF', sub ($nginx) {
%%MAIN%%
events { worker_connections 1024; }
http {
    %%HTTP%%
    default_type application/json;
    push_stream_shared_memory_size                32M;
    push_stream_channel_inactivity_time           10m;
    push_stream_message_ttl                       "12h";
    push_stream_max_messages_stored_per_channel   50;
    push_stream_max_channel_id_length             64;
    push_stream_max_subscribers_per_channel       500;
    push_stream_channel_deleted_message_text      '{"system":"closed"}';
    push_stream_ping_message_interval             20s;
    push_stream_events_channel_id                 presence;

    server {
        listen 127.0.0.1:%%PORT%%;

        location ~ ^/ws/(?<room>[a-z0-9_.-]+)$ {
            push_stream_subscriber             websocket;
            push_stream_channels_path          room_$room;
            push_stream_message_template       '{"room":"~channel~","id":~id~,"at":"~time~","say":"~text~"}';
            push_stream_websocket_allow_publish on;
            push_stream_store_messages         on;
        }
        location = /presence {
            allow 127.0.0.1;
            deny all;
            push_stream_subscriber             eventsource;
            push_stream_channels_path          presence;
            push_stream_allow_connections_to_events_channel on;
        }
        location = /rooms {
            push_stream_channels_statistics;
            push_stream_channels_path          $arg_id;
        }
        location = /admin {
            allow 127.0.0.1;
            deny all;
            push_stream_publisher              admin;
            push_stream_channels_path          room_$arg_room;
            push_stream_store_messages         on;
        }
    }
}
CONF
    my $said = sub ($socket) { my $json = JSON::PP::decode_json($socket->text); delete $json->{at}; $json };
    my $presence = $nginx->subscribe('/presence');
    $presence->comment;
    my $ann = PushStream::WebSocket->new($nginx, '/ws/lobby');
    is $presence->event->{data}, '{"type": "channel_created", "channel": "room_lobby"}', 'the first visitor opens a room';
    is $presence->event->{data}, '{"type": "client_subscribed", "channel": "room_lobby"}', 'and is seen to come';
    $ann->send(PushStream::WebSocket::TEXT, 'hello?');
    is_deeply $said->($ann), { room => 'room_lobby', id => 1, say => 'hello?' }, 'who speaks hears it like everybody';

    my $bob = PushStream::WebSocket->new($nginx, '/ws/lobby.b20');
    is_deeply $said->($bob), { room => 'room_lobby', id => 1, say => 'hello?' }, 'who comes later reads what was said';
    $bob->send(PushStream::WebSocket::TEXT, 'hi');
    is_deeply $said->($_), { room => 'room_lobby', id => 2, say => 'hi' }, 'and both talk' for $ann, $bob;
    is $nginx->json('/rooms?id=room_lobby')->{subscribers}, 2, 'two are there';
    is $presence->event->{event}, 'client_subscribed', 'the second one was seen to come';

    my $other = PushStream::WebSocket->new($nginx, '/ws/attic');
    $nginx->post('/admin?room=lobby', 'maintenance at noon');
    is_deeply $said->($ann), { room => 'room_lobby', id => 3, say => 'maintenance at noon' }, 'the house speaks, too';
    ok $other->client->is_quiet(0.1), 'not in other rooms';

    $bob->send(PushStream::WebSocket::CLOSE, pack 'n', 1000);
    $presence->event for 1 .. 2;    # the attic
    is $presence->event->{event}, 'client_unsubscribed', 'one leaves, and is seen to';
    is $nginx->delete('/admin?room=lobby')->status, 200, 'the room is closed';
    like $ann->text, qr/"id":-2,.*"say":"\{"system":"closed"\}"/, 'who is there is told';
    is $ann->close_payload, '', 'and sent home';
};

done_testing;
