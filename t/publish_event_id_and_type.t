# Event-Id and Event-Type of a publish go with the message.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;

with_nginx <<'CONF', sub ($nginx) {
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_shared_memory_size 4m;
    push_stream_channels_path $arg_id;
    push_stream_store_messages on;
    push_stream_message_template "~event-id~|~event-type~|~text~";

    server {
        listen 127.0.0.1:%%PORT%%;

        location /pub { push_stream_publisher; }
        location /sub { push_stream_subscriber; }
        location /ev { push_stream_subscriber eventsource; push_stream_message_template ~text~; }
    }
}
CONF
    my $stream = $nginx->subscribe('/sub?id=a');
    my $events = $nginx->subscribe('/ev?id=a');
    is $events->chunk, ": \n", 'an event stream begins with a comment';

    my $delivers = sub ($headers, $in_template, $in_stream, $name) {
        $nginx->post('/pub?id=a', 'hi', %$headers);
        is $stream->chunk, "${in_template}|hi", "$name, in a template";
        is $events->text_until(qr/\n\n/), "${in_stream}data: hi\n\n", "$name, in an event stream";
    };

    $delivers->({}, '|', '', 'neither');
    $delivers->({ 'Event-Id' => '7' }, '7|', "id: 7\n", 'an id');
    $delivers->({ 'Event-Type' => 'note' }, '|note', "event: note\n", 'a type');
    $delivers->({ 'Event-Id' => '8', 'Event-Type' => 'x' }, '8|x', "id: 8\nevent: x\n", 'both');
    $delivers->({ 'EVENT-ID' => '9', 'event-type' => 'y' }, '9|y', "id: 9\nevent: y\n", 'names in any case');
    $delivers->({ 'Event-Id' => 'a: b, ~text~ "q"' }, 'a: b, ~text~ "q"|', qq(id: a: b, ~text~ "q"\n), 'an id of any text');
    $delivers->({ 'Event-Id' => [ 'first', 'second' ] }, 'first|', "id: first\n", 'the first of two ids');
    $delivers->({ 'Event-Ids' => 'x', 'Event-I' => 'x', 'Event-Types' => 'x' }, '|', '', 'names that only resemble them');
    $delivers->({ 'Event-Id' => '', 'Event-Type' => '' }, '|', "id: \nevent: \n", 'empty ones');

    my $long = 'i' x 300;
    $delivers->({ 'Event-Id' => $long }, "$long|", "id: $long\n", 'a long id');

    my $again = $nginx->subscribe('/ev?id=a.b2');
    is $again->chunk, ": \n", 'a later subscriber';
    is $again->text_until(qr/\n\n.*\n\n/s), "id: \nevent: \ndata: hi\n\nid: $long\ndata: hi\n\n", 'gets them from the store too';
};

done_testing;
