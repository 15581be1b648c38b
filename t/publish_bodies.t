# Any body is a message, byte for byte: small or large, in memory or spooled to a file, chunked or not.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;

with_nginx <<'CONF', sub ($nginx) {
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_shared_memory_size 32m;
    push_stream_channels_path $arg_id;
    push_stream_store_messages on;
    client_max_body_size 6m;

    server {
        listen 127.0.0.1:%%PORT%%;

        location /pub { push_stream_publisher; client_body_buffer_size 16k; }
        location /pub_file { push_stream_publisher; client_body_in_file_only clean; }
        location /pub_small { push_stream_publisher; client_max_body_size 1k; }
        location /sub { push_stream_subscriber; }
    }
}
CONF
    my $stream = $nginx->subscribe('/sub?id=a');
    my $every_byte = join '', map { chr } 0 .. 255;
    my $published = 0;

    my $delivers = sub ($body, $name, $uri = '/pub?id=a', %options) {
        my $answer = $nginx->request(POST => $uri, body => $body, %options);
        is $answer->status, 200, "$name is accepted" or return;
        is $answer->json->{published_messages}, ++$published, "$name counts once";
        ok(($stream->chunks_as($body))[0] eq $body, "$name arrives as it was sent");
    };

    $delivers->('x', 'one byte');
    $delivers->("\0", 'a NUL');
    $delivers->($every_byte, 'every byte');
    $delivers->($every_byte x 64, 'as much as fits into the buffer');
    $delivers->($every_byte x 64 . 'x', 'one byte more');
    $delivers->($every_byte x 4000, 'a megabyte, spooled to a file');
    $delivers->($every_byte x 20000, 'five megabytes');
    $delivers->('small', 'a small body in a file', '/pub_file?id=a');
    $delivers->("line\r\n\r\n0\r\n\r\nline", 'what looks like the end of a chunked body');

    my $chunked = sub ($body, $size) {
        my $out = '';
        while (length(my $chunk = substr $body, 0, $size, '')) {
            $out .= sprintf "%x\r\n%s\r\n", length $chunk, $chunk;
        }
        return "${out}0\r\n\r\n";
    };
    for my $body ('x', $every_byte, $every_byte x 400) {
        my $answer = $nginx->request(
            POST => '/pub?id=a',
            headers => { 'Transfer-Encoding' => 'chunked' },
            body => $chunked->($body, 1000),
        );
        is $answer->status, 200, 'a chunked body of ' . length($body) . ' bytes is accepted';
        ok(($stream->chunks_as($body))[0] eq $body, 'and arrives without its chunks');
        $published++;
    }

    # A body that trickles in.
    my $slow = $nginx->connect;
    $slow->send("POST /pub?id=a HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n");
    ok $slow->is_quiet(0.1), 'the answer waits for the body';
    $slow->send($_) for split //, '0123456789';
    is $slow->response->status, 200, 'when it is complete it is accepted';
    is $stream->chunk, '0123456789', 'and arrives';
    $published++;

    my $expecting = $nginx->connect;
    $expecting->send("POST /pub?id=a HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n");
    is $expecting->response->status, 100, 'a client that waits to be asked is asked';
    $expecting->send('body');
    is $expecting->response->status, 200, 'and answered';
    is $stream->chunk, 'body', 'and the message arrives';
    $published++;

    is $nginx->post('/pub_small?id=b', 'x' x 1025)->status, 413, 'a body over client_max_body_size is refused';
    is $nginx->get('/pub?id=b')->status, 404, 'and creates no channel';

    my $gone = $nginx->connect;
    $gone->send("POST /pub?id=a HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n" . 'x' x 50000);
    # The file has lost its name already, or will lose it.
    my $files = sub {
        my @open = grep { (readlink $_ // '') =~ /client_body/ } map { glob "/proc/$_/fd/*" } $nginx->worker_pids;
        my @named = glob $nginx->dir . '/client_body/*';
        return @open + @named;
    };
    ok wait_until { $files->() }, 'half of a large body is in a file';
    $gone->close;
    ok wait_until { !$files->() }, 'which is gone when its client is; no other was left';
    is $nginx->get('/pub?id=a')->json->{published_messages}, $published, 'half a body is no message';
};

done_testing;
