# X-Nginx-PushStream-Mode turns a stream into polling or long polling, for one request.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;

with_nginx <<'CONF', sub ($nginx) {
%%MAIN%%
events {}
http {
    %%HTTP%%
    default_type text/html;
    push_stream_shared_memory_size 4m;
    push_stream_channels_path $arg_id;
    push_stream_store_messages on;
    push_stream_header_template "head";
    push_stream_longpolling_connection_ttl 1h;

    server {
        listen 127.0.0.1:%%PORT%%;

        location /pub { push_stream_publisher; }
        location /stream { push_stream_subscriber; }
        location /ev { push_stream_subscriber eventsource; }
        location /poll { push_stream_subscriber polling; }
        location /wait { push_stream_subscriber long-polling; }
        location /status { push_stream_channels_statistics; }
    }
}
CONF
    my $asks = sub ($uri, $mode) { return $nginx->get($uri, 'X-Nginx-PushStream-Mode' => $mode) };
    # A long poll waits for an hour: it is there until a message is published, and has that.
    my $waits = sub ($uri, $mode, $name) {
        my $client = $nginx->connect;
        $client->send_request(GET => $uri, headers => { 'X-Nginx-PushStream-Mode' => $mode });
        ok wait_until { $nginx->figures->{subscribers} == 1 }, "$name: it waits";
        $nginx->post('/pub?id=w', 'new', 'Event-Id' => 7);
        my $answer = $client->response;
        is $answer->status, 200, 'until a message comes';
        like $answer->body, qr/new/, 'which it gets';
        ok wait_until { $nginx->figures->{subscribers} == 0 }, 'and is gone then';
    };
    $nginx->post('/pub?id=a', 'old', 'Event-Id' => 7);

    for my $uri ('/stream', '/ev') {
        is $asks->("$uri?id=a", 'polling')->status, 304, "$uri as polling: nothing new, at once";
        $waits->("$uri?id=w", 'long-polling', "$uri as long polling");
        $waits->("$uri?id=w", 'Long-Polling', 'the word in any case');
    }
    is $asks->('/stream?id=a.b1', 'polling')->body, 'headold', 'a message as polling gives it';
    my $answer = $asks->('/ev?id=a.b1', 'polling');
    is $answer->body, ": head\nid: 7\ndata: old\n\n", 'an EventSource location keeps its framing';
    is $answer->header('Content-Type'), 'text/html', 'but not its type';
    like $answer->header('Etag'), qr/^W\/\d+$/, 'and says where it is';

    $waits->('/poll?id=w', 'long-polling', 'a polling location as long polling');
    $waits->('/wait?id=w', 'polling', 'a long polling location as polling');
    is $asks->('/poll?id=a', 'streaming')->status, 304, 'nor can polling become a stream';

    my $stream = $nginx->subscribe('/stream?id=a', 'X-Nginx-PushStream-Mode' => 'polling please');
    is $stream->chunk, 'head', 'any other word is ignored';
    for my $text ('first', 'second') {
        $nginx->post('/pub?id=a', $text);
        is $stream->chunk, $text, 'it is a stream';
    }
};

done_testing;
