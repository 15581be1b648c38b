# Where to go on can come from variables instead of headers.

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
    push_stream_last_received_message_time $arg_time;
    push_stream_last_received_message_tag $arg_tag;
    push_stream_last_event_id $arg_eventid;

    server {
        listen 127.0.0.1:%%PORT%%;

        location /pub { push_stream_publisher; }
        location /poll { push_stream_subscriber polling; push_stream_message_template "~text~;"; }
        location /stamp { push_stream_subscriber polling; push_stream_message_template "~time~|~tag~"; }
    }
}
CONF
    $nginx->post('/pub?id=a', $_, 'Event-Id' => "e$_") for 1 .. 4;
    my $epoch = 'Thu,%2001%20Jan%201970%2000:00:00%20GMT';
    my ($time, $tag) = split /\|/, $nginx->get('/stamp?id=a.b1')->body;
    my $polled = sub ($query, %headers) { $nginx->get("/poll?id=a&$query", %headers)->body };

    is $polled->("time=$epoch"), '1;2;3;4;', 'a time';
    is $polled->('time=' . $time =~ s/ /%20/gr . '&tag=' . ($tag - 1)), '4;', 'time and tag';
    is $polled->('eventid=e2'), '3;4;', 'an event id';
    is $polled->('tag=&time=&eventid='), '', 'empty ones are no position';
    is $polled->('x=', 'If-Modified-Since' => 'Thu, 01 Jan 1970 00:00:00 GMT', 'Last-Event-Id' => 'e2'), '',
        'and where variables are set headers do not count';
};

done_testing;
