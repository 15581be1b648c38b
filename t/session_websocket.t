# The subprotocol push-stream.v1: a WebSocket's client changes its channels and publishes by operations, each of which has a reply.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;
use PushStream::Token;
use PushStream::WebSocket;
use JSON::PP;

only_over_http1 'WebSockets are not to be had there';

my ($long, $reader) = tokens(
    { claims => { exp => int(time) + 3600, push => { subscribe => [ 'a', 'b' ], publish => ['b'] } } },
    { claims => { push => { subscribe => ['a'] } } },
);
write_file(key_dir . '/keys.json', key_set('secret'));
my $keys = key_dir;

my $conf = <<"CONF";
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_shared_memory_size 4m;
    push_stream_channels_path \$arg_id;
    push_stream_store_messages on;
    push_stream_max_channel_id_length 100;
    push_stream_token_keys $keys/keys.json;
    push_stream_token_leeway 0;

    server {
        listen 127.0.0.1:%%PORT%%;

        location /pub { push_stream_publisher admin; }
        location /ws { push_stream_subscriber websocket; push_stream_control on; push_stream_websocket_allow_publish on; }
        location /silent { push_stream_subscriber websocket; push_stream_control on; }
        location /deflate { push_stream_subscriber websocket; push_stream_control on; push_stream_websocket_deflate on; push_stream_websocket_allow_publish on; }
        location /ordered { push_stream_subscriber websocket; push_stream_control on; push_stream_resume ordered; push_stream_message_template "~event-id~:~text~"; }
        location /token { push_stream_subscriber websocket; push_stream_control on; push_stream_websocket_allow_publish on; push_stream_token required; }
        location /off { push_stream_subscriber websocket; push_stream_websocket_allow_publish on; }
        location /status { push_stream_channels_statistics; }
    }
}
CONF

my %offer = ('Sec-WebSocket-Protocol' => 'chat, push-stream.v1');

with_nginx $conf, sub ($nginx) {
    my $open = sub ($uri, %headers) { PushStream::WebSocket->new($nginx, $uri, headers => { %offer, %headers }) };
    my $say = sub ($socket, %operation) { $socket->send(1, encode_json(\%operation)); return };
    my $ask = sub ($socket, %operation) {
        $say->($socket, id => 7, %operation);
        my $reply = decode_json($socket->text);
        is_deeply [ @$reply{qw(op id)} ], [ 'reply', 7 ], "$operation{op}: a reply";
        return $reply->{status} == 200 ? join ' ', sort @{ $reply->{channels} // [] } : "$reply->{status} $reply->{explain}";
    };
    for my $kind (qw(ws deflate)) {
        $nginx->delete('/pub?id=b');
        $nginx->post('/pub?id=b', $_) for 1 .. 5;
        my $socket = $open->("/$kind?id=a", $kind eq 'deflate' ? ('Sec-WebSocket-Extensions' => 'permessage-deflate') : ());
        is $socket->answer->header('Sec-WebSocket-Protocol'), 'push-stream.v1', "$kind: the subprotocol is agreed on";
        $say->($socket, op => 'subscribe', id => 'one', channels => ['b.b2']);
        is $socket->text, $_, "... history: $_" for 4, 5;
        is_deeply decode_json($socket->text), { op => 'reply', id => 'one', status => 200, channels => [ 'a', 'b' ] }, '... and behind it the reply';
        $nginx->post('/pub?id=b', 'live');
        is $socket->text, 'live', 'what is live';
        is $ask->($socket, op => 'unsubscribe', channels => ['b']), 'a', 'away with it';
        $nginx->post('/pub?id=b', 'nobody');
        is $ask->($socket, op => 'unsubscribe', channels => ['a']), '409 A stream keeps at least one channel.', 'the last stays';
        is $ask->($socket, op => 'subscribe', channels => ['ALL']), '403 Channel id not authorized for this method.', 'a reserved name';
        is $ask->($socket, op => 'subscribe', channels => [ 'x' x 101 ]), '400 Channel id is too large.', 'a long name';
        is $ask->($socket, op => 'token', token => 'x'), '400 Tokens are off in this location.', 'no tokens here';
        is $ask->($socket, op => 'dance'), '400 Member op must be subscribe, unsubscribe, token or publish.', 'an unknown operation';
        $socket->send(1, 'hello');
        is_deeply decode_json($socket->text), { op => 'reply', id => undef, status => 400, explain => 'Operation is no JSON object, or has a member twice.' }, 'no operation';
        $say->($socket, op => 'publish', id => 2, channels => ['a'], text => 'from me');
        my @both = sort map { $socket->text } 1, 2;
        is $both[0], 'from me', 'it publishes, and gets what it publishes';
        is decode_json($both[1])->{status}, 200, '... and a reply';
        is $ask->($socket, op => 'publish', channels => ['other'], text => 'x'), q{403 Publishing is allowed to the client's own channels, if at all.}, 'only to its own channels';
        is $nginx->get('/status?id=other')->status, 404, '... really';
        $say->($socket, op => 'subscribe', id => $_, channels => ["c$_"]) for 1 .. 20;
        is_deeply [ map { decode_json($socket->text)->{id} } 1 .. 20 ], [ 1 .. 20 ], 'many at once are replied to in their order';
        is $nginx->figures('c20')->{subscribers}, 1, '... and done';
        $socket->send(2, 'binary');
        is $socket->close_payload, '', 'binary data ends it, as without the subprotocol';
    }
    ok wait_until { $nginx->figures->{subscribers} == 0 }, 'they are gone';

    is $ask->($open->('/silent?id=a'), op => 'publish', channels => ['a'], text => 'x'), q{403 Publishing is allowed to the client's own channels, if at all.}, 'a location without publishing';

    # Without the offer, or where it is not accepted, messages are messages.
    for (
        [ 'no offer' => sub { PushStream::WebSocket->new($nginx, '/ws?id=d') } ],
        [ 'another one' => sub { PushStream::WebSocket->new($nginx, '/ws?id=d', headers => { 'Sec-WebSocket-Protocol' => 'chat' }) } ],
        [ 'a location without control' => sub { $open->('/off?id=d') } ],
    ) {
        my ($what, $connect) = @$_;
        my $socket = $connect->();
        is $socket->answer->header('Sec-WebSocket-Protocol'), undef, "$what: no subprotocol";
        $say->($socket, op => 'subscribe', id => 1, channels => ['e']);
        is decode_json($socket->text)->{op}, 'subscribe', '... and what it sends is published';
        $socket->client->close;
        ok wait_until { $nginx->figures->{subscribers} == 0 }, 'it is gone';
    }

    # In order: the history's ids that would take the client back are not shown.
    $nginx->post("/pub?id=$_->[0]", $_->[1], 'Event-Id' => $_->[1]) for [ f => 1 ], [ g => 2 ], [ f => 3 ], [ g => 4 ];
    my $ordered = PushStream::WebSocket->new($nginx, '/ordered?id=f', headers => { %offer, 'Last-Event-ID' => 1 });
    is $ordered->text, '3:3', 'a reader that resumes in order';
    $say->($ordered, op => 'subscribe', id => 1, channels => ['g'], last_event_id => '1');
    is_deeply [ map { $ordered->text } 1, 2 ], [ ':2', '4:4' ], 'the other channel, above the same id';
    is decode_json($ordered->text)->{status}, 200, 'and the reply';

    my $secured = $open->('/token?id=a', Authorization => "Bearer $reader");
    is $ask->($secured, op => 'subscribe', channels => ['b']), '403 Token does not grant the channels.', 'without a token';
    is $ask->($secured, op => 'subscribe', channels => ['b'], token => $reader), '403 Token does not grant the channels.', 'with one that does not grant it';
    like $ask->($secured, op => 'subscribe', channels => ['b'], token => "x$long"), qr/^401 /, 'with a bad one';
    is $ask->($secured, op => 'subscribe', channels => ['b'], token => $long), 'a b', 'with one that does';
    is $ask->($secured, op => 'token', token => $long), 'a b', 'a new end';
    is $ask->($secured, op => 'publish', channels => ['b'], text => 'x'), '403 Token does not grant the channels.', 'publishing needs a token that grants it';
    is $ask->($secured, op => 'publish', channels => ['a'], text => 'x', token => $long), '403 Token does not grant the channels.', '... in that channel';
    $say->($secured, op => 'publish', id => 3, channels => ['b'], text => 'with a token', token => $long);
    is_deeply [ grep { !/reply/ } map { $secured->text } 1, 2 ], ['with a token'], 'with one it is allowed';
};

# Over a reload.
if (PushStream::Nginx::transport() eq 'http1') {
    with_nginx $conf, sub ($nginx) {
        my $socket = PushStream::WebSocket->new($nginx, '/ws?id=a', headers => \%offer);
        $nginx->reload($conf);
        $socket->send(1, '{"op":"subscribe","id":1,"channels":["b"]}');
        is_deeply decode_json($socket->text), { op => 'reply', id => 1, status => 200, channels => [ 'a', 'b' ] }, 'operations go on at another worker';
    };
}

done_testing;
