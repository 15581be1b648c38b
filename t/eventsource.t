# EventSource: what a browser reads is what was published.

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

        location /pub { push_stream_publisher admin; }
        location /ev { push_stream_subscriber eventsource; default_type text/html; }
        location /framed {
            push_stream_subscriber eventsource;
            push_stream_header_template "line one\nline two\r\n";
            push_stream_message_template '{"id":~id~,"size":~size~,"text":"~text~"}';
            push_stream_footer_template "bye";
        }
        location /ready {
            push_stream_subscriber eventsource;
            push_stream_header_template ": my own\n";
            push_stream_message_template "data: [~text~]\n";
        }
    }
}
CONF
    my $events = $nginx->subscribe('/ev?id=a');
    is $events->status, 200, 'an event stream';
    is $events->header('Content-Type'), 'text/event-stream; charset=utf-8', 'has its own type';
    is $events->header('X-Accel-Buffering'), 'no', 'which no proxy may hold back';
    is $events->header($_), undef, "and no $_" for qw(Last-Modified Etag Content-Length);
    is $events->chunk, ": \n", 'it begins with a comment';

    $nginx->post('/pub?id=a', 'test message');
    is $events->text_until(qr/\n\n/), "data: test message\n\n", 'a message';

    my %wire = (
        "l1\nl2\r\nl3\rl4" => "data: l1\ndata: l2\ndata: l3\ndata: l4\n\n",
        "a\n" => "data: a\ndata: \n\n",
        "a\n\nb" => "data: a\ndata: \ndata: b\n\n",
        "\r\n" => "data: \ndata: \n\n",
        " leading" => "data:  leading\n\n",
        "nul\0\nevent: forged" => "data: nul\0\ndata: event: forged\n\n",
        'back\nslash' => "data: back\\nslash\n\n",
    );
    for my $text (sort keys %wire) {
        $nginx->post('/pub?id=a', $text);
        is $events->text_until(qr/\n\n/), $wire{$text}, 'every line is kept, and is a data line';
    }

    my $framed = $nginx->subscribe('/framed?id=a');
    is $framed->chunk, ": line one\n: line two\n", 'each line of a header is a comment';
    my $ready = $nginx->subscribe('/ready?id=a');
    is $ready->chunk, ": my own\n", 'one that is a comment is used as it stands';

    $nginx->post('/pub?id=a', "one\nthree", 'Event-Id' => '5', 'Event-Type' => 'note');
    is $framed->text_until(qr/\n\n/),
        qq(id: 5\nevent: note\ndata: {"id":9,"size":3,"text":"one"}\ndata: {"id":9,"size":5,"text":"three"}\n\n),
        'the template is applied to each line';
    is $ready->text_until(qr/\n\n/), "id: 5\nevent: note\ndata: [one]\ndata: [three]\n\n", 'a template made for it too';
    is_deeply $events->event, { id => 5, event => 'note', data => "one\nthree" }, 'a browser puts it together again';

    my $forger = $nginx->subscribe('/ev?id=x%0Adata:%20forged');
    $forger->chunk;
    $nginx->post('/pub?id=x%0Adata:%20forged', 'real');
    is $forger->text_until(qr/\n\n/), "data: real\n\n", 'a channel id cannot forge anything';

    $nginx->delete('/pub?id=a');
    is join('', $framed->chunks_to_end), qq(data: {"id":-2,"size":15,"text":"Channel deleted"}\n\n: bye\n),
        'the notice of deletion is a message, the footer a comment';
    is join('', $ready->chunks_to_end), "data: [Channel deleted]\n\n", 'no footer, no comment';
};

done_testing;
