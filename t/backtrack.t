# `.bN` behind a channel id asks for the N newest stored messages.

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
    push_stream_max_messages_stored_per_channel 10;

    server {
        listen 127.0.0.1:%%PORT%%;

        location /pub { push_stream_publisher; push_stream_channels_path $arg_id; }
        location ~ ^/sub/(.*) { push_stream_subscriber; push_stream_channels_path $1; push_stream_header_template "head"; }
        location ~ ^/poll/(.*) { push_stream_subscriber polling; push_stream_channels_path $1; }
        location ~ ^/wait/(.*) { push_stream_subscriber long-polling; push_stream_channels_path $1; }
    }
}
CONF
    $nginx->post('/pub?id=a', "a$_;") for 1 .. 15;
    $nginx->post('/pub?id=b', "b$_;") for 1 .. 3;
    $nginx->post('/pub?id=room.b18.beautiful', "r$_;") for 1 .. 3;

    my %newest = (
        'a.b1' => 'a15;',
        'a.b3' => 'a13;a14;a15;',
        'a.b10' => join('', map { "a$_;" } 6 .. 15),
        'a.b11' => join('', map { "a$_;" } 6 .. 15),
        'a.b99999999999999999999' => join('', map { "a$_;" } 6 .. 15),
        'b.b3' => 'b1;b2;b3;',
        'a.b2/b.b1' => 'a14;a15;b3;',
        'b.b1/a.b2' => 'b3;a14;a15;',
        'a/b.b1' => 'b3;',
        'room.b18.beautiful.b2' => 'r2;r3;',
    );
    for my $path (sort keys %newest) {
        is $nginx->get("/poll/$path")->body, $newest{$path}, "polling $path";
        is $nginx->get("/wait/$path")->body, $newest{$path}, "long polling $path answers at once";
        my $stream = $nginx->subscribe("/sub/$path");
        is $stream->chunk, 'head', "streaming $path begins with the header";
        is join('', $stream->chunks_as($newest{$path} =~ /[^;]*;/g)), $newest{$path}, 'and goes on with the old messages, a chunk each';
        ok $stream->is_quiet(0.02), 'and no more';
    }
    for my $path ('a', 'a.b0', 'a/b', 'new.b5', 'a.b', 'a.b-1') {
        is $nginx->get("/poll/$path")->status, 304, "$path asks for no old messages";
    }

    is $nginx->get('/poll/a.b2', 'If-Modified-Since' => 'Thu, 01 Jan 1970 00:00:00 GMT')->body, 'a14;a15;',
        'a backtrack wins over the position in headers';

    my $live = $nginx->subscribe('/sub/a.b2');
    $nginx->post('/pub?id=a', 'a16;');
    is $live->text_until(qr/a16/), 'heada14;a15;a16;', 'live messages follow the old ones';
};

done_testing;
