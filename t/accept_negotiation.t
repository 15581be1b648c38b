# The Accept header chooses how channel information is written.

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

    server {
        listen 127.0.0.1:%%PORT%%;

        location /pub { push_stream_publisher; }
        location /status { push_stream_channels_statistics; }
    }
}
CONF
    my %one = (
        json => qq({"channel": "a", "published_messages": 1, "stored_messages": 0, "subscribers": 0}\r\n),
        plain => "channel: a\r\npublished_messages: 1\r\nstored_messages: 0\r\nactive_subscribers: 0\r\n",
        yaml => "  channel: a\r\n  published_messages: 1\r\n  stored_messages: 0\r\n  subscribers: 0\r\n",
        xml => qq(<?xml version="1.0" encoding="UTF-8" ?>\r\n<channel>\r\n  <name>a</name>\r\n)
            . "  <published_messages>1</published_messages>\r\n  <stored_messages>0</stored_messages>\r\n"
            . "  <subscribers>0</subscribers>\r\n</channel>\r\n\r\n",
    );
    my @cases = (
        [ undef, 'application/json', 'json' ],
        [ '*/*', 'application/json', 'json' ],
        [ 'text/html', 'application/json', 'json' ],
        [ 'application/json', 'application/json', 'json' ],
        [ 'text/plain', 'text/plain', 'plain' ],
        [ 'application/yaml', 'application/yaml', 'yaml' ],
        [ 'application/xml', 'application/xml', 'xml' ],
        [ 'text/x-json', 'text/x-json', 'json' ],
        [ 'text/x-yaml', 'text/x-yaml', 'yaml' ],
        [ 'text/html, application/xml;q=0.1, text/plain', 'application/xml', 'xml' ],
        [ 'application/jsonp', 'application/json', 'json' ],
        [ 'application/XML', 'application/json', 'json' ],
    );
    is $nginx->post('/pub?id=a', 'x', Accept => 'application/xml')->body, $one{xml}, 'a publish answers as it is asked';
    for my $case (@cases) {
        my ($accept, $type, $format) = @$case;
        for my $uri ('/pub?id=a', '/status?id=a') {
            my $answer = $nginx->get($uri, Accept => $accept);
            my $name = $uri . ' for ' . ($accept // 'nothing');
            is $answer->header('Content-Type'), $type, "$name: $type";
            is $answer->body, $one{$format}, "$name: as $format";
        }
    }

    is $nginx->get('/status?id=a')->header('Content-Length'), length $one{json}, 'with its length';
};

done_testing;
