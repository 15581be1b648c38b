# Compressed polls: a whole gzip member or frame of zstd each, and an Etag of their own that comes back in either form.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;
use PushStream::Decoder;

with_nginx <<'CONF', sub ($nginx) {
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_shared_memory_size 32m;
    push_stream_channels_path $arg_id;
    push_stream_store_messages on;
    push_stream_message_template "~text~;";
    push_stream_compress zstd gzip;

    server {
        listen 127.0.0.1:%%PORT%%;

        location /pub { push_stream_publisher; push_stream_compress off; }
        location /poll { push_stream_subscriber polling; }
        location /long { push_stream_subscriber long-polling; push_stream_longpolling_connection_ttl 1s; }
        location /wait { push_stream_subscriber long-polling; }
        location /off { push_stream_subscriber polling; push_stream_compress off; }
        location /status { push_stream_channels_statistics; }
    }
}
CONF
    my @first = ('If-Modified-Since' => 'Thu, 01 Jan 1970 00:00:00 GMT', 'If-None-Match' => '0');
    my $text = 'one message like the other, ' x 20;
    $nginx->post('/pub?id=a', $text) for 1 .. 3;
    my $plain = $nginx->get('/poll?id=a', @first);
    is $plain->body, "$text;" x 3, 'as it is';
    is $plain->header('Vary'), 'Accept-Encoding', 'with Vary';
    my $off = $nginx->get('/off?id=a', @first, 'Accept-Encoding' => 'gzip');
    is $off->body, $plain->body, 'as it is without the directive';
    is $off->header($_), undef, "without $_" for qw(Vary Content-Encoding);

    for my $coding (qw(gzip zstd)) {
        subtest $coding => sub { polls($nginx, $coding, $text, $plain, @first) };
    }
};

sub polls ($nginx, $coding, $text, $plain, @first) {
    for my $mode (qw(poll long)) {
        my $coded = $nginx->get("/$mode?id=a", @first, 'Accept-Encoding' => $coding);
        is $coded->header('Content-Encoding'), $coding, "$mode: compressed";
        is PushStream::Decoder->whole($coding, $coded->body), $plain->body, 'the same text';
        cmp_ok length $coded->body, '<', 200, 'and short';
        is $coded->header('Etag'), $plain->header('Etag') . "-$coding", 'its Etag names the coding';
        for my $tag ($coded->header('Etag'), $plain->header('Etag')) {
            my @next = ('If-Modified-Since' => $coded->header('Last-Modified'), 'If-None-Match' => $tag, 'Accept-Encoding' => $coding);
            my $none = $nginx->get("/$mode?id=a", @next);
            is $none->status, 304, "nothing after $tag";
            is $none->header('Content-Encoding'), undef, 'which has no coding';
        }
    }

    my @waiting = map { $nginx->open(GET => "/wait?id=b-$coding", headers => { 'Accept-Encoding' => $coding }) } 1 .. 5;
    ok wait_until { $nginx->figures("b-$coding")->{subscribers} == 5 }, 'five wait';
    $nginx->post("/pub?id=b-$coding", $text);
    is PushStream::Decoder->whole($coding, $_->response->body), "$text;", 'and get the message' for @waiting;

    $nginx->post("/pub?id=c-$coding", 'short');
    my $short = $nginx->get("/poll?id=c-$coding", @first, 'Accept-Encoding' => $coding);
    is $short->header('Content-Encoding'), undef, 'a short answer is not compressed';
    is $short->body, 'short;', 'but complete';

    # Longer than what is rendered at once.
    my @long = map { "$_ " . $text x 200 } 1 .. 60;
    $nginx->post("/pub?id=d-$coding", $_) for @long;
    my $long = $nginx->get("/poll?id=d-$coding", @first, 'Accept-Encoding' => $coding);
    my $body = ($long->header('Content-Encoding') // '') eq $coding ? PushStream::Decoder->whole($coding, $long->body) : $long->body;
    is $body, join('', map { "$_;" } @long), 'a long answer is complete, in whatever coding';
}

done_testing;
