# A subscriber of several channels gets the messages of each in order, and stays while one of them is left.

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
    push_stream_store_messages on;
    push_stream_message_template "~channel~:~text~|";

    server {
        listen 127.0.0.1:%%PORT%%;

        location /pub { push_stream_publisher admin; push_stream_channels_path $arg_id; }
        location /status { push_stream_channels_statistics; push_stream_channels_path $arg_id; }
        location ~ ^/sub/(.*) { push_stream_subscriber; push_stream_channels_path $1; }
    }
}
CONF
    $nginx->post("/pub?id=$_", "old $_") for qw(c b a);
    my $stream = $nginx->subscribe('/sub/a.b1/b/c.b9');
    is $stream->chunk, 'a:old a|', 'old messages come in the order of the path';
    is $stream->chunk, 'c:old c|', 'of the channels for which they were asked';
    is $nginx->figures->{subscribers}, 1, 'it is one subscriber';
    is $nginx->figures($_)->{subscribers}, 1, "with a subscription to $_" for qw(a b c);

    # What a worker finds at once it may send channel by channel.
    for my $id (qw(b c a b)) {
        $nginx->post("/pub?id=$id", 'live');
        is $stream->text_until(qr/\|/), "$id:live|", "live messages come as they are published: $id";
    }

    my $twice = $nginx->subscribe('/sub/d/d');
    is $nginx->figures('d')->{subscribers}, 2, 'a channel named twice is subscribed twice';
    is $nginx->figures->{subscribers}, 2, 'by one subscriber';
    $twice->close;
    ok wait_until { $nginx->figures('d')->{subscribers} == 0 }, 'and left twice';

    $nginx->delete('/pub?id=b');
    is $stream->chunk, 'b:Channel deleted|', 'a deleted channel says so';
    $nginx->post('/pub?id=b', 'reborn');
    $nginx->post('/pub?id=a', 'still here');
    is $stream->chunk, 'a:still here|', 'its subscriber goes on with the others, and is not in the new channel of that name';
    $nginx->delete('/pub?id=a/c');
    is join('', sort $stream->chunks_to_end), 'a:Channel deleted|c:Channel deleted|', 'until the last one is deleted';
};

done_testing;
