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
    push_stream_longpolling_connection_ttl 1s;

    server {
        listen 127.0.0.1:%%PORT%%;

        location /pub { push_stream_publisher; }
        location /stream { push_stream_subscriber; }
        location /ev { push_stream_subscriber eventsource; }
        location /poll { push_stream_subscriber polling; }
        location /wait { push_stream_subscriber long-polling; }
    }
}
CONF
    my $took;
    my $asks = sub ($uri, $mode) {
        my $start = time;
        my $answer = $nginx->get($uri, 'X-Nginx-PushStream-Mode' => $mode);
        $took = time - $start;
        return $answer;
    };
    $nginx->post('/pub?id=a', 'old', 'Event-Id' => 7);

    for my $uri ('/stream', '/ev') {
        is $asks->("$uri?id=a", 'polling')->status, 304, "$uri as polling: nothing new";
        cmp_ok $took, '<', 0.8, 'at once';
        is $asks->("$uri?id=a", 'long-polling')->status, 304, "$uri as long polling: nothing new";
        cmp_ok $took, '>', 0.8, 'after waiting';
        is $asks->("$uri?id=a", 'Long-Polling')->status, 304, 'the word in any case';
    }
    is $asks->('/stream?id=a.b1', 'polling')->body, 'headold', 'a message as polling gives it';
    my $answer = $asks->('/ev?id=a.b1', 'polling');
    is $answer->body, ": head\nid: 7\ndata: old\n\n", 'an EventSource location keeps its framing';
    is $answer->header('Content-Type'), 'text/html', 'but not its type';
    like $answer->header('Etag'), qr/^W\/\d+$/, 'and says where it is';

    is $asks->('/poll?id=a', 'long-polling')->status, 304, 'a polling location can be made to wait';
    cmp_ok $took, '>', 0.8, 'it did';
    is $asks->('/wait?id=a', 'polling')->status, 304, 'a long polling location cannot be made not to';
    cmp_ok $took, '>', 0.8, 'it waits all the same';
    is $asks->('/poll?id=a', 'streaming')->status, 304, 'nor can polling become a stream';

    my $stream = $nginx->subscribe('/stream?id=a', 'X-Nginx-PushStream-Mode' => 'polling please');
    is $stream->chunk, 'head', 'any other word is ignored';
    ok $stream->is_quiet(1.2), 'it is a stream';
};

done_testing;
