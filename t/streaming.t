# Streaming: header, old messages, live messages, footer; each is a chunk of its own, sent at once.

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

    server {
        listen 127.0.0.1:%%PORT%%;

        location /pub { push_stream_publisher admin; }
        location /status { push_stream_channels_statistics; }
        location /bare { push_stream_subscriber; }
        location /sub {
            push_stream_subscriber streaming;
            push_stream_header_template "<html>\r\n";
            push_stream_message_template "<script>p(~id~,'~channel~','~text~');</script>";
            push_stream_footer_template "</html>";
        }
    }
}
CONF
    my $bare = $nginx->subscribe('/bare?id=a');
    is $bare->status, 200, 'the head is sent at once, also when there is nothing else to send';
    is $bare->header('Content-Type'), 'text/html', 'with the type that nginx gives';
    my %of_http1 = ('Transfer-Encoding' => 'chunked', Connection => 'keep-alive');
    is $bare->header($_), over_http2() ? undef : $of_http1{$_}, "$_: each message is a chunk, the connection stays" for keys %of_http1;
    is $bare->header('Expires'), 'Thu, 01 Jan 1970 00:00:01 GMT', 'not to be kept by caches';
    is $bare->header('Cache-Control'), 'no-cache, no-store, must-revalidate', 'of any kind';
    is $bare->header('X-Accel-Buffering'), 'no', 'nor held back by proxies';
    is $bare->header($_), undef, "without $_" for qw(Last-Modified Etag Content-Length Access-Control-Allow-Origin);
    is $nginx->figures('a')->{subscribers}, 1, 'who has the head is counted';

    $nginx->post('/pub?id=a', 'one');
    $nginx->post('/pub?id=a', 'two');
    is_deeply [ $bare->chunks_as('one', 'two') ], [ 'one', 'two' ], 'a message and the next one are chunks of their own';

    my $stream = $nginx->subscribe('/sub?id=a.b2');
    is $stream->chunk, "<html>\r\n", 'the header comes first, alone';
    my @old = map { "<script>p($_->[0],'a','$_->[1]');</script>" } [ 1, 'one' ], [ 2, 'two' ];
    is_deeply [ $stream->chunks_as(@old) ], \@old, 'then an old message and another';
    ok $stream->is_quiet, 'and nothing more';

    $nginx->post('/pub?id=a', "three\r\nlines\r\n");
    is $stream->chunk, "<script>p(3,'a','three\r\nlines\r\n');</script>", 'live messages follow, as they are';
    is $bare->chunk, "three\r\nlines\r\n", 'for everybody';

    my $empty = $nginx->subscribe('/sub?id=b');
    is $empty->chunk, "<html>\r\n", 'a channel that was not there before';
    is $nginx->figures('b')->{subscribers}, 1, 'is there now';

    $nginx->delete('/pub?id=a', 'Content-Length' => 0);
    is_deeply [ $stream->chunks_to_end ], [ "<script>p(-2,'a','Channel deleted');</script>", '</html>' ],
        'at the end the footer, alone, and the end of the response';
    is_deeply [ $bare->chunks_to_end ], ['Channel deleted'], 'no footer, no chunk for it';

    is $nginx->figures->{subscribers}, 1, 'one is left';
    $empty->close;
    ok wait_until { $nginx->figures->{subscribers} == 0 }, 'and not counted when it has left';

    my $large = 'x' x 200_000;
    my $reader = $nginx->subscribe('/bare?id=c');
    $nginx->post('/pub?id=c', $large);
    is length(($reader->chunks_as($large))[0]), 200_000, 'a large message is one chunk too';
};

done_testing;
