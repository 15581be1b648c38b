# push_stream_detach: a stream gives its request back to nginx and goes on without it. Whoever needs the request keeps it.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;

only_over_http1 'it keeps its requests';
use PushStream::WebSocket;

plan skip_all => 'this nginx has no auth_request' if !PushStream::Nginx->has_module('http_auth_request');

with_nginx <<'CONF', sub ($nginx) {
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_shared_memory_size 4m;
    push_stream_channels_path $arg_id;
    push_stream_store_messages on;
    push_stream_header_template "head\n";
    push_stream_footer_template "foot";
    limit_conn_zone $binary_remote_addr zone=addresses:1m;
    # What is in it when the request ends, or is given back.
    log_format short '$status $uri $remote_addr';
    access_log %%DIR%%/short.log short;

    server {
        listen 127.0.0.1:%%PORT%%;
        set_real_ip_from 127.0.0.1;
        real_ip_header X-Real-IP;

        location /pub { access_log off; push_stream_publisher admin; }
        location /status { access_log off; push_stream_channels_statistics; }

        location /stream { push_stream_subscriber; push_stream_ping_message_interval 1s; }
        location /ev { push_stream_subscriber eventsource; }
        location /ws { push_stream_subscriber websocket; push_stream_websocket_allow_publish on; push_stream_header_template ""; push_stream_footer_template ""; }
        location /ttl { push_stream_subscriber eventsource; push_stream_subscriber_connection_ttl 300ms; }
        location /guarded { auth_request /auth; push_stream_subscriber eventsource; }
        location = /auth { internal; access_log off; proxy_pass http://127.0.0.1:%%PORT%%/yes; }
        location = /yes { access_log off; return 204; }
        location /proxy { access_log off; proxy_pass http://127.0.0.1:%%PORT%%/ev; proxy_buffering off; proxy_http_version 1.1; }

        location /off { push_stream_detach off; push_stream_subscriber eventsource; }
        location /counted { limit_conn addresses 2; push_stream_subscriber eventsource; }
        location /slow { limit_rate 100k; push_stream_subscriber eventsource; }
        location /zip { gzip on; gzip_min_length 1; gzip_types text/event-stream; push_stream_subscriber eventsource; }
        location /wait { push_stream_subscriber long-polling; }
    }
}
CONF
    my $log = sub { open my $file, '<', $nginx->dir . '/short.log' or return ''; join '', <$file> };
    my $logged = sub ($line) { wait_until { $log->() =~ /^\Q$line\E$/m } };

    subtest 'what gives its request back is logged when it begins' => sub {
        for my $case (
            [ '/stream', '/stream?id=a', 'head\n', 'text' ], [ '/ev', '/ev?id=a', ": head\n", "data: text\n\n" ],
            [ '/guarded', '/guarded?id=a', ": head\n", "data: text\n\n" ],
        ) {
            my ($uri, $request, $head, $message) = @$case;
            my $stream = $nginx->subscribe($request, 'X-Real-IP' => '192.0.2.7');
            is $stream->chunk, $head =~ s/\\n/\n/r, "$uri: the header";
            ok $logged->("200 $uri 192.0.2.7"), 'logged, with the address that realip found';
            $nginx->post('/pub?id=a', 'text');
            is $stream->chunk, $message, 'and still served';
            is $nginx->figures('a')->{subscribers}, 1, 'still counted';
            $stream->close;
            ok wait_until { $nginx->figures('a')->{subscribers} == 0 }, 'until it is gone';
        }
        my $socket = PushStream::WebSocket->new($nginx, '/ws?id=a', headers => { 'X-Real-IP' => '192.0.2.7' });
        ok $logged->('101 /ws 192.0.2.7'), '/ws: logged';
        $nginx->post('/pub?id=a', 'text');
        is $socket->text, 'text', 'a message';
        $socket->send(PushStream::WebSocket::TEXT, 'from me');
        is $socket->text, 'from me', 'it may send';
        $socket->send(PushStream::WebSocket::PING, 'beep');
        is_deeply [ $socket->next_frame ], [ PushStream::WebSocket::PONG, 'beep' ], 'and ping';
        $socket->send(PushStream::WebSocket::CLOSE, pack 'n', 1000);
        is $socket->close_payload, pack('n', 1000), 'and close';
        my $early = PushStream::WebSocket->new($nginx, '/ws?id=b', more => PushStream::WebSocket::frame(PushStream::WebSocket::TEXT, 'early'));
        is $early->text, 'early', 'what comes with the handshake is not lost';
    };

    subtest 'behind a proxy' => sub {
        my $stream = $nginx->subscribe('/proxy?id=p');
        is $stream->chunk, ": head\n", 'the header';
        $nginx->post('/pub?id=p', 'text');
        is $stream->chunk, "data: text\n\n", 'a message';
        $nginx->delete('/pub?id=p');
        is join('', $stream->chunks_to_end), "data: Channel deleted\n\n: foot\n", 'the end';
    };

    subtest 'its end' => sub {
        my $stream = $nginx->subscribe('/stream?id=e');
        my $ttl = $nginx->subscribe('/ttl?id=t');
        my $old = $nginx->open(GET => '/stream?id=e', version => '1.0');
        $old->head;
        my $chatty = $nginx->subscribe('/ev?id=e');
        ok wait_until { () = $log->() =~ m{^200 /ev 127}mg }, 'given back';
        # Nobody asked for it. Closing with it unread would reset the connection, and the end could get lost.
        $chatty->send('x' x 20_000);
        my $ping = $stream->chunk . $stream->chunk;
        is $ping, "head\n ", 'a ping';
        $nginx->post('/pub?id=e', 'last');
        $nginx->delete('/pub?id=e');
        is join('#', $stream->chunks_to_end), 'last#Channel deleted#foot', 'messages, footer, last chunk';
        ok $stream->is_closed, 'and the connection ends';
        like $old->rest, qr/^head\n *lastChannel deletedfoot\z/, 'HTTP/1.0';
        is join('', $chatty->chunks_to_end), ": head\ndata: last\n\ndata: Channel deleted\n\n: foot\n", 'with unread input, too';
        ok $chatty->is_closed, 'and ends';
        is join('', $ttl->chunks_to_end), ": head\n: foot\n", 'after its time';
    };

    subtest 'who needs the request keeps it' => sub {
        my %attached = (
            off => [ '/off' ],
            limit_conn => [ '/counted' ],
            limit_rate => [ '/slow' ],
            gzip => [ '/zip', 'Accept-Encoding' => 'gzip' ],
        );
        for my $name (sort keys %attached) {
            my ($uri, %headers) = @{ $attached{$name} };
            my $stream = $nginx->subscribe("$uri?id=k", %headers);
            $stream->chunk;
            $nginx->post('/pub?id=k', 'text');
            ok length $stream->chunk, "$name: served";
            unlike $log->(), qr/^\d+ $uri /m, 'not logged';
            $nginx->delete('/pub?id=k');
            $stream->chunks_to_end;
            ok $logged->("200 $uri 127.0.0.1"), 'until its end';
        }
        my @two = map { $nginx->subscribe('/counted?id=k') } 1 .. 2;
        is $nginx->get('/counted?id=k')->status, 503, 'limit_conn still counts';

        my $pipelined = $nginx->connect;
        $pipelined->send("GET /stream?id=n HTTP/1.1\r\nHost: x\r\n\r\nGET /status HTTP/1.1\r\nHost: x\r\n\r\n");
        is $pipelined->chunk, "head\n", 'the next request is already there';
        $nginx->delete('/pub?id=n');
        is join('#', $pipelined->chunks_to_end), 'Channel deleted#foot', 'it waits for its turn';
        delete $pipelined->{head};
        is $pipelined->response->status, 200, 'and gets it';

        my $again = $nginx->subscribe('/off?id=n');
        $nginx->delete('/pub?id=n');
        $again->chunks_to_end;
        is $again->request(GET => '/status')->status, 200, 'its connection serves the next request';
    };
};

done_testing;
