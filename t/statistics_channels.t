# The figures of channels: one, several, all, or all with a prefix.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;

use JSON::PP ();

with_nginx <<'CONF', sub ($nginx) {
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_shared_memory_size 32m;
    push_stream_channels_path $arg_id;
    push_stream_store_messages on;
    push_stream_max_channel_id_length 100;
    keepalive_requests 100000;

    server {
        listen 127.0.0.1:%%PORT%%;

        location /pub { push_stream_publisher; }
        location /sub { push_stream_subscriber; }
        location /status { push_stream_channels_statistics; }
    }
}
CONF
    my $ids = sub ($uri) { join ' ', map { $_->{channel} } @{ $nginx->json($uri)->{infos} } };

    my $none = $nginx->json('/status?id=ALL');
    is_deeply $none->{infos}, [], 'no channel yet: an empty list';
    is $nginx->get('/status?id=ALL')->status, 200, 'and not an error';

    $nginx->post("/pub?id=$_", 'x') for qw(news_b chat news_a chat_1);
    $nginx->post('/pub?id=chat', 'y');

    is $nginx->get('/status?id=chat')->body,
        qq({"channel": "chat", "published_messages": 2, "stored_messages": 2, "subscribers": 0}\r\n), 'one';
    is $ids->('/status?id=news_a/chat'), 'news_a chat', 'several, in the order of the path';
    is $ids->('/status?id=news_a/nobody/chat'), 'news_a chat', 'those that exist';
    is $nginx->json('/status?id=nobody/chat')->{channel}, 'chat', 'one of several has the single form';
    is $nginx->get('/status?id=nobody')->status, 404, 'none is 404';
    is $nginx->get('/status?id=' . 'x' x 101)->explain, 'Channel id is too large.', 'too long an id';

    is $ids->('/status?id=ALL'), 'news_b chat news_a chat_1', 'ALL: all, in the order of their creation';
    is $ids->('/status?id=*'), 'news_b chat news_a chat_1', '*: as well';
    is $ids->('/status?id=news_*'), 'news_b news_a', 'a prefix';
    is $ids->('/status?id=chat*'), 'chat chat_1', 'that is an id itself';
    is $ids->('/status?id=n*what%20ever'), 'news_b news_a', 'what stands behind the star does not matter';
    is $ids->('/status?id=nothing*'), '', 'a prefix of nothing is an empty list';
    is $ids->('/status?id=chat/news_*/ALL'), 'news_b news_a', 'the first that is a star or ALL decides alone';

    my $group = $nginx->get('/status?id=news_*')->body;
    like $group, qr/^\{"hostname": "[^"]+", "time": "[^"]+", "channels": 4, "wildcard_channels": 0, "uptime": \d+, "infos": \[\r\n\{"channel": "news_b", "published_messages": 1, "stored_messages": 1, "subscribers": 0\},\r\n\{"channel": "news_a", "published_messages": 1, "stored_messages": 1, "subscribers": 0\}\r\n\]\}\r\n$/,
        'in exactly this form';

    my %strange = ('quote%22' => 'quote"', 'back%5Cslash' => 'back\\slash', 'line%0A' => "line\n", '%C3%A9' => "\x{e9}", '%FF' => "\x{fffd}", '%3Cb%3E%26' => '<b>&');
    for my $id (sort keys %strange) {
        $nginx->post("/pub?id=$id", 'x');
        is $nginx->json("/status?id=$id")->{channel}, $strange{$id}, "the id $id in JSON";
    }
    like $nginx->get('/status?id=%3Cb%3E%26', Accept => 'application/xml')->body, qr{<name>&lt;b&gt;&amp;</name>}, 'and in XML';

    my $publisher = $nginx->connect;
    my $count = 5000;
    $publisher->send_request(POST => "/pub?id=many_$_", body => 'x') && $publisher->response for 1 .. $count;
    my $start = time;
    my $many = $nginx->json('/status?id=many_*')->{infos};
    within time - $start, 2, "$count channels are listed quickly";
    is scalar @$many, $count, 'all of them';
    is_deeply [ map { $_->{channel} } @$many ], [ map { "many_$_" } 1 .. $count ], 'in the order of their creation';
    my $xml = $nginx->get('/status?id=many_*', Accept => 'application/xml')->body;
    is scalar(() = $xml =~ /<channel>/g), $count, 'in any format';
};

done_testing;
