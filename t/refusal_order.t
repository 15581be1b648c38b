# Of several reasons to refuse a request, the one that comes first is told: channel by channel, in the order of the path.

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
    push_stream_events_channel_id events;
    push_stream_max_channel_id_length 10;
    push_stream_max_number_of_channels 4;
    push_stream_max_subscribers_per_channel 1;
    push_stream_wildcard_channel_prefix w_;
    push_stream_wildcard_channel_max_qtd 1;

    server {
        listen 127.0.0.1:%%PORT%%;

        location /pub { push_stream_publisher admin; }
        location /sub { push_stream_subscriber; }
        location /known { push_stream_subscriber polling; push_stream_authorized_channels_only on; }
        location /ws { push_stream_subscriber websocket; push_stream_authorized_channels_only on; }
    }
}
CONF
    my %reason = (
        reserved => [ 403, 'Channel id not authorized for this method.' ],
        long => [ 400, 'Channel id is too large.' ],
        unknown => [ 403, 'Subscriber could not create channels.' ],
        taken => [ 403, 'Subscribers limit per channel has been exceeded.' ],
        events => [ 403, 'Subscription to events channel is not allowed.' ],
        wildcards => [ 403, 'Subscribed too much wildcard channels.' ],
        number => [ 403, 'Number of channels were exceeded.' ],
        ours => [ 403, 'Only internal routines can change events channel.' ],
        empty => [ 400, 'No channel id provided.' ],
    );
    my $is = sub ($answer, $what, $name) {
        is $answer->status . ' ' . ($answer->explain // ''), join(' ', @{ $reason{$what} }), $name;
    };
    $nginx->post("/pub?id=$_", 'x') for qw(a taken);
    my $taken = $nginx->subscribe('/sub?id=taken');
    my $long = 'x' x 11;

    for my $case (
        [ "/sub?id=$long/ALL", 'long' ], [ "/sub?id=ALL/$long", 'reserved' ],
        [ "/sub?id=taken/ALL", 'taken' ], [ "/sub?id=a/ALL/taken", 'reserved' ], [ "/sub?id=taken/$long", 'taken' ],
        [ "/sub?id=events/taken", 'events' ], [ "/sub?id=taken/events", 'taken' ], [ "/sub?id=events/*", 'events' ],
        [ "/known?id=nobody/$long", 'unknown' ], [ "/known?id=a/$long/nobody", 'long' ], [ "/known?id=nobody/events", 'unknown' ],
        [ '/sub?id=w_1/w_2', 'wildcards' ], [ '/sub?id=taken/w_1/w_2', 'taken' ], [ '/sub?id=w_1/w_2/ALL', 'reserved' ],
        [ '/known?id=w_1/nobody/w_2', 'unknown' ],
        [ '/sub?id=new1/new2', 'number' ], [ '/sub?id=new1/new2/w_1/w_2', 'wildcards' ], [ '/sub?id=new1/new2/taken', 'taken' ],
        [ '/sub?id=', 'empty' ],
    ) {
        my ($uri, $what) = @$case;
        $is->($nginx->get($uri), $what, $uri);
    }
    my $socket = PushStream::WebSocket->new($nginx, "/ws?id=nobody/$long");
    is $socket->close_payload, qq{\x03\xf0{"http_status": 403, "explain":"$reason{unknown}[1]"}}, 'over a WebSocket too';

    for my $case (
        [ 'events/ALL', 'ours' ], [ "events/$long", 'ours' ], [ 'ALL/events', 'reserved' ], [ "a/$long/events", 'long' ],
        [ 'new1/new2/ALL', 'number' ], [ "new1/$long/new2", 'long' ], [ 'new1/new2/events', 'number' ], [ 'new1/events/new2', 'ours' ],
    ) {
        my ($path, $what) = @$case;
        $is->($nginx->post("/pub?id=$path", 'x'), $what, "POST $path");
    }
    $is->($nginx->delete('/pub?id=events/ALL'), 'ours', 'DELETE events/ALL');
    $is->($nginx->delete('/pub?id=ALL/events'), 'reserved', 'DELETE ALL/events');
    $is->($nginx->get("/pub?id=events/$long"), 'long', 'GET may ask about the events channel');
    is $nginx->get('/pub?id=new1')->status, 404, 'nothing was created by any of them';
};

done_testing;
