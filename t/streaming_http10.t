# HTTP/1.0 has no chunks: the stream is the body, and ends with the connection.

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
    push_stream_header_template "head|";
    push_stream_message_template "~text~|";
    push_stream_footer_template "foot";

    server {
        listen 127.0.0.1:%%PORT%%;

        location /pub { push_stream_publisher admin; }
        location /sub { push_stream_subscriber; }
        location /ev { push_stream_subscriber eventsource; }
        location /poll { push_stream_subscriber polling; }
        location /wait { push_stream_subscriber long-polling; }
        location /status { push_stream_channels_statistics; }
    }
}
CONF
    my $stream = $nginx->open(GET => '/sub?id=a', version => '1.0');
    is $stream->header('Transfer-Encoding'), undef, 'no chunks';
    is $stream->header('Connection'), 'close', 'the connection is for this response alone';
    my $events = $nginx->open(GET => '/ev?id=a', version => '1.0');
    $events->head;

    $nginx->post('/pub?id=a', $_) for qw(one two);
    like $stream->raw_until(qr/two\|/), qr/^head\|one\|two\|$/, 'messages arrive as they are published';
    like $events->raw_until(qr/two/), qr/^: head\|\ndata: one\|\n\ndata: two\|/, 'events too';

    my $wait = $nginx->open(GET => '/wait?id=a', version => '1.0');
    ok wait_until { $nginx->figures('a')->{subscribers} == 3 }, 'long polling waits';
    $nginx->post('/pub?id=a', 'three');
    is $wait->response->body, 'head|three|foot', 'and is answered';

    my $poll = $nginx->open(GET => '/poll?id=a.b1', version => '1.0');
    is $poll->response->body, 'head|three|foot', 'so is polling';
    is $nginx->open(GET => '/poll?id=a', version => '1.0')->response->status, 304, 'also with nothing new';

    $nginx->delete('/pub?id=a');
    is $stream->rest, 'three|Channel deleted|foot', 'at the end the footer and the end of the connection';
};

done_testing;
