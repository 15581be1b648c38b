# GET on a publisher location tells how channels stand, and creates none.

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
    push_stream_max_messages_stored_per_channel 3;

    server {
        listen 127.0.0.1:%%PORT%%;

        location /pub { push_stream_publisher; }
        location /sub { push_stream_subscriber; }
    }
}
CONF
    is $nginx->get('/pub?id=a')->status, 404, 'an unknown channel';
    is $nginx->get('/pub?id=a')->header('Content-Length'), 0, 'has nothing to tell';
    is $nginx->get('/pub?id=a/b')->status, 404, 'neither have two';

    $nginx->post('/pub?id=a', $_) for 1 .. 5;
    $nginx->post('/pub?id=b', 'x');
    my $stream = $nginx->subscribe('/sub?id=b');

    is $nginx->get('/pub?id=a')->body,
        qq({"channel": "a", "published_messages": 5, "stored_messages": 3, "subscribers": 0}\r\n), 'one channel';
    is $nginx->get('/pub?id=b')->json->{subscribers}, 1, 'with its subscribers';
    is_deeply [ map { $_->{channel} } @{ $nginx->get('/pub?id=b/a')->json->{infos} } ], [qw(b a)],
        'several, in the order of the path';
    is_deeply [ map { $_->{channel} } @{ $nginx->get('/pub?id=b/nobody/a')->json->{infos} } ], [qw(b a)],
        'the unknown ones left out';
    is $nginx->get('/pub?id=nobody/a')->json->{channel}, 'a', 'a single one that is left has the single form';
    is $nginx->get('/pub?id=a.b2')->json->{channel}, 'a', 'a backtrack means nothing here';
    is $nginx->get('/pub?id=nobody')->status, 404, 'asking creates nothing';

    $stream->close;
    ok wait_until { $nginx->get('/pub?id=b')->json->{subscribers} == 0 }, 'a subscriber that left is not counted';
};

done_testing;
