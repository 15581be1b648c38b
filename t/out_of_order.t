# An id that is not above its channel's newest is refused, or stored where it belongs.

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

    server {
        listen 127.0.0.1:%%PORT%%;

        location /refuse { push_stream_publisher; push_stream_out_of_order refuse; }
        location /store { push_stream_publisher; push_stream_out_of_order store; }
        location /once { push_stream_publisher; push_stream_idempotent_publish on; }
        location /plain { push_stream_publisher; }
        location /ev { push_stream_subscriber eventsource; push_stream_resume ordered; }
        location /poll { push_stream_subscriber polling; push_stream_resume ordered; push_stream_message_template "~event-id~ "; }
        location /exact { push_stream_subscriber polling; push_stream_message_template "~event-id~ "; }
    }
}
CONF
    my $publish = sub ($uri, $id) { $nginx->post($uri, "message $id", 'Event-Id' => $id) };
    my $reader = $nginx->subscribe('/ev?id=a');
    $reader->chunk;
    $publish->('/refuse?id=a', 5);
    is $reader->event->{id}, 5, 'a message';

    for my $id (4, 5, '4-9') {
        my $refused = $publish->('/refuse?id=b/a', $id);
        is $refused->status, 409, "$id is not above 5";
        is $refused->explain, 'Event id is out of order.', 'which is said';
        is $publish->('/once?id=a', $id)->status, 409, 'refusing is the default where ids are looked at' if $id ne 5;
    }
    is $nginx->get('/refuse?id=b')->status, 404, 'the whole publish was refused';
    is $publish->('/refuse?id=a', '5-0')->status, 200, '5-0 is above 5';
    is $reader->event->{id}, '5-0', 'and arrives';
    is $publish->('/refuse?id=a', 'no order')->status, 200, 'an id without order may come any time';
    is $reader->event->{data}, 'message no order', 'and arrives';

    is $publish->('/store?id=a', 3)->status, 200, 'store: 3 is taken';
    is_deeply $reader->event, { data => 'message 3' }, 'a reader gets it, but not as a position';
    is $publish->('/plain?id=a', 4)->status, 200, 'where nothing is asked for it is as in store';
    is_deeply $reader->event, { data => 'message 4' }, 'for readers, too';
    $publish->('/refuse?id=a', 6);
    is $reader->event->{id}, 6, 'what is in order goes on';

    my $polled = sub ($uri, $position) { $nginx->get($uri, 'Last-Event-Id' => $position)->body };
    is $polled->('/poll?id=a', 0), '3 4 5 5-0 6 ', 'who resumes gets all in order';
    is $polled->('/poll?id=a', 3), '4 5 5-0 6 ', 'from anywhere';
    is $polled->('/poll?id=a', 5), '5-0 6 ', 'but nothing below its position';
    is $polled->('/exact?id=a', 5), '5-0 no order 3 4 6 ', 'exact: in the order in which they came';
};

done_testing;
