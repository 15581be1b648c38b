# Pings fill silence: one interval after connecting or after the last message, then again and again.

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
    push_stream_ping_message_text "are you there?";
    push_stream_ping_message_interval 800ms;

    server {
        listen 127.0.0.1:%%PORT%%;

        location /pub { push_stream_publisher; }
        location /sub { push_stream_subscriber; push_stream_message_template "~id~|~channel~|~text~|~time~|~tag~"; }
        location /ev {
            push_stream_subscriber eventsource;
            push_stream_message_template "~id~ ~text~";
        }
        location /wait { push_stream_subscriber long-polling; push_stream_longpolling_connection_ttl 2s; }
    }
}
CONF
    my $ping = '-1||are you there?|Thu, 01 Jan 1970 00:00:00 GMT|0';

    my $start = time;
    my $stream = $nginx->subscribe('/sub?id=a');
    my $events = $nginx->subscribe('/ev?id=a');
    is $events->chunk, ": \n", 'the comment that begins an event stream';
    for my $n (1 .. 3) {
        is $stream->chunk, $ping, "ping $n of a stream goes through the template";
        my $after = time - $start;
        cmp_ok $after, '>', 0.8 * $n - 0.15, "not before $n intervals";
        within $after, 0.8 * $n + 0.8, 'and not much later';
        is $events->chunk, ": -1\n", "ping $n of an event stream is a comment";
    }

    # Every 200 ms a message: no time for pings, unless the machine has none for us.
    my $before = time;
    for my $n (1 .. 5) {
        sleep 0.2;
        $nginx->post('/pub?id=a', "message $n");
        my @texts = ($stream->text_until(qr/$n\|a\|message $n\|.*/), $events->text_until(qr/message $n\n\n/));
        if (time - $before > 0.6) {
            s/^(?:\Q$ping\E|: -1\n)+// for @texts;
        }
        like $texts[0], qr/^$n\|a\|message $n\|/, 'as long as messages come no ping does';
        is $texts[1], "data: $n message $n\n\n", 'in no stream';
        $before = time;
    }
    my $last = time;
    is $stream->chunk, $ping, 'afterwards it does';
    cmp_ok time - $last, '>', 0.6, 'an interval later' if time - $before < 1.5;

    my $wait = $nginx->open(GET => '/wait?id=a');
    my $answer = $wait->response;
    is $answer->status, 304, 'who polls long is not pinged';
};

done_testing;
