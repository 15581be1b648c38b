# Requests that are sent behind a stream wait for its end, and are answered then.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;

only_over_http1 'it has no pipelines';

with_nginx <<'CONF', sub ($nginx) {
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_shared_memory_size 4m;
    push_stream_channels_path $arg_id;
    push_stream_store_messages on;
    push_stream_footer_template "foot";

    server {
        listen 127.0.0.1:%%PORT%%;

        location /pub { push_stream_publisher admin; }
        location /sub { push_stream_subscriber; }
        location /ev { push_stream_subscriber eventsource; }
        location /poll { push_stream_subscriber polling; }
        location /wait { push_stream_subscriber long-polling; push_stream_longpolling_connection_ttl 300ms; }
        location /status { push_stream_channels_statistics; }
    }
}
CONF
    my $get = sub ($uri) { "GET $uri HTTP/1.1\r\nHost: x\r\n\r\n" };

    for my $location ('/sub', '/ev') {
        my $client = $nginx->connect;
        $client->send($get->("$location?id=a") . $get->('/status?id=nobody'));
        is $client->status, 200, "$location, with a request behind it";
        ok wait_until { $nginx->figures('a')->{subscribers} }, 'is subscribed';
        $nginx->post('/pub?id=a', 'message');
        $client->text_until(qr/message/);
        $nginx->delete('/pub?id=a');
        my $last = join '', $client->chunks_to_end;
        like $last, qr/Channel deleted.*foot/s, 'ends with its channel';
        $client->{head} = undef;
        is $client->response->status, 404, 'then the other request is answered';
        is $client->request(GET => '/status')->status, 200, 'and the next one';
    }

    my $wait = $nginx->connect;
    $wait->send($get->('/wait?id=b') . $get->('/poll?id=b') . $get->('/wait?id=b') . $get->('/status'));
    my @answers = map { $wait->response->status } 1 .. 4;
    is "@answers", '304 304 304 200', 'polls behind one another';

    # Noise behind a stream is nobody's request; a browser that hangs up is noticed.
    my $noisy = $nginx->subscribe('/sub?id=c');
    $noisy->send("\x16\x03\x01 noise \r\n\r\n");
    $nginx->post('/pub?id=c', 'still here');
    is $noisy->chunk, 'still here', 'a stream does not mind what its client sends';
    $noisy->close;
    ok wait_until { $nginx->figures('c')->{subscribers} == 0 }, 'only that it hangs up';

    my $half = $nginx->subscribe('/sub?id=c');
    my $flood = eval { $half->send('x' x 3_000_000); 1 };
    $nginx->post('/pub?id=c', 'after the flood');
    is $nginx->get('/status')->status, 200, 'megabytes of noise: nginx goes on' . ($flood ? '' : ', they are not even read');
    $half->close;
    ok wait_until { $nginx->figures('c')->{subscribers} == 0 }, 'and sees the end';
};

done_testing;
