# The end of a token ends its streams: they are told before, and why.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;
use PushStream::Token;
use PushStream::WebSocket;

tokens({ claims => {} });    # makes the key
write_file(key_dir . '/keys.json', key_set('secret'));
my $keys = key_dir;

my $conf = <<"CONF";
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_shared_memory_size 1m;
    push_stream_channels_path \$arg_id;
    push_stream_token_keys $keys/keys.json;
    push_stream_token_leeway 0;
    push_stream_log_disconnect %%DIR%%/ends.log;

    server {
        listen 127.0.0.1:%%PORT%%;

        location /pub { push_stream_publisher admin; }
        location /status { push_stream_channels_statistics; }
        location /metrics { push_stream_channels_statistics; push_stream_statistics_format prometheus; }
        location /ev { push_stream_subscriber eventsource; push_stream_token required; push_stream_footer_template "bye"; }
        location /attached { push_stream_subscriber eventsource; push_stream_token required; push_stream_detach off; push_stream_footer_template "bye"; }
        location /stream { push_stream_subscriber; push_stream_token required; push_stream_footer_template "bye"; }
        location /lp { push_stream_subscriber long-polling; push_stream_token required; }
        location /ws { push_stream_subscriber websocket; push_stream_token required; push_stream_websocket_allow_publish on; }
        location /ttl { push_stream_subscriber eventsource; push_stream_token required; push_stream_subscriber_connection_ttl 500ms; }
        location /free { push_stream_subscriber eventsource; push_stream_token required; }
        location /late { push_stream_subscriber eventsource; push_stream_token required; push_stream_token_leeway 5m; }
    }
}
CONF

# Long enough that all come in before, on a slow machine, too.
my $soon = 2 + 2 * PushStream::Nginx::slowness;

with_nginx $conf, sub ($nginx) {
    my $push = { subscribe => [ 'a', 'b' ], publish => ['b'] };
    my ($short, $minute, $hour, $endless) = map { +{ Authorization => "Bearer $_" } } tokens(
        { claims => { exp => int(time) + $soon, push => $push } },
        { claims => { exp => int(time) + 33, push => $push } },
        { claims => { exp => int(time) + 3600, push => $push } },
        { claims => { push => $push } },
    );
    my $open = sub ($uri, $token = $short) { $nginx->subscribe($uri, %$token) };
    my ($event, $attached, $stream) = map { $open->("/$_?id=a") } qw(ev attached stream);
    my ($warned, $later, $never, $ttl, $late) = ($open->('/ev?id=a', $minute), $open->('/free?id=a', $hour), $open->('/free?id=a', $endless), $open->('/ttl?id=a'), $open->('/late?id=a'));
    my $poll = $nginx->open(GET => '/lp?id=b', headers => $short);
    my $http1 = ($ENV{TEST_TRANSPORT} // '') ne 'http2';
    my $socket = $http1 ? PushStream::WebSocket->new($nginx, '/ws?id=a', headers => $short) : undef;

    $nginx->post('/pub?id=a', 'hello');
    is $stream->chunk, 'hello', 'a message before the end';
    my ($notice, $message) = map { $event->event } 1 .. 2;
    ($notice, $message) = ($message, $notice) if ($notice->{event} // '') ne 'token';
    is $message->{data}, 'hello', 'for everybody';
    like $notice->{data}, qr/^\{"expires_in":\d+\}$/, 'a stream that ends within half a minute is told at once';
    is $notice->{id}, undef, 'in an event without an id';

    # Over HTTP/2 all of it may come in one frame.
    is join('', $event->chunks_to_end), qq(event: expired\ndata: {"status":401,"reason":"expired"}\n\n: bye\n),
        'an EventSource is told why it ends, then come footer and end';
    my $rest = join '', $attached->chunks_to_end;
    like $rest, qr/event: expired\ndata: \{"status":401,"reason":"expired"\}\n\n: bye\n\z/, 'an attached one, too';
    is_deeply [ $stream->chunks_to_end ], ['bye'], 'a stream ends';
    is $poll->response->status, 304, 'a poll is answered';
    if ($socket) {
        is $socket->text, 'hello', 'a WebSocket has its message';
        is $socket->close_payload, pack('n', 3000) . 'token expired', 'and is closed with a code of its own';
    }
    unlike join('', $ttl->chunks_to_end), qr/expired/, 'what has ended before has not ended for its token';
    like $warned->text_until(qr/expires_in/), qr/event: token\ndata: \{"expires_in/, 'half a minute before the end a stream is told';
    ok $_->is_quiet, 'others go on' for map { $_->text_until(qr/hello\n\n/); $_ } $later, $never, $late;
    is $nginx->figures('a')->{subscribers}, 4, 'the others are left';

    my $log = sub { open my $file, '<', $nginx->dir . '/ends.log' or return ''; join '', <$file> };
    my $ended = $http1 ? 4 : 3;
    ok wait_until { (() = $log->() =~ /reason=token_expired$/mg) == $ended }, 'the log of disconnects has the reason' or diag $log->();
    is((() = $log->() =~ /reason=ttl$/mg), 1, '... and that of the other');
    ok wait_until { $nginx->get('/metrics')->body =~ /^push_stream_subscribers_closed_total\{reason="token_expired"\} $ended$/m }, 'they are counted';

    if ($http1) {
        my ($reader, $writer) = map { PushStream::WebSocket->new($nginx, "/ws?id=$_", headers => $hour) } qw(a b);
        $_->send(1, 'from a client') for $reader, $writer;
        is $writer->text, 'from a client', 'who may publish by its token does';
        ok $reader->client->is_quiet, 'and nobody else';
    }
};

# What follows does not depend on the transport, or is only over plain HTTP/1: many at once, and who is handed over.
if (PushStream::Nginx::transport() ne 'http1') {
    done_testing;
    exit;
}

# A second's tokens do not end in one turn.
with_nginx $conf, sub ($nginx) {
    my ($token) = tokens({ claims => { exp => int(time) + $soon, push => { subscribe => ['a'] } } });
    my @streams = map { $nginx->subscribe('/stream?id=a', Authorization => "Bearer $token") } 1 .. 30;
    is scalar(grep { $_->status == 200 } @streams), 30, 'all come in';
    ok wait_until { $nginx->figures('a')->{subscribers} == 0 }, 'all end';
    my @seconds;
    my $read = sub { open my $file, '<', $nginx->dir . '/ends.log' or return ''; join '', <$file> };
    ok wait_until { (@seconds = $read->() =~ /seconds=(\d+\.\d+) .*reason=token_expired$/mg) == 30 }, 'each of them has a line';
    my ($first, $last) = (sort { $a <=> $b } @seconds)[ 0, -1 ];
    cmp_ok $last - $first, '>', 0.3, 'not at the same time';
};

with_nginx $conf, sub ($nginx) {
    my ($short, $hour) = map { +{ Authorization => "Bearer $_" } } tokens(
        { claims => { exp => int(time) + 1 + $soon, push => { subscribe => ['a'] } } },
        { claims => { exp => int(time) + 3600, push => { subscribe => ['a'] } } },
    );
    my $stream = $nginx->subscribe('/ev?id=a', %$short);
    my $socket = PushStream::WebSocket->new($nginx, '/ws?id=a', headers => $hour);
    like $stream->text_until(qr/expires_in.*\n\n/), qr/event: token/, 'told before the reload';
    $nginx->reload;
    my $all = join '', $stream->chunks_to_end;
    like $all, qr/\Aevent: expired\n/, 'a stream that was handed over ends with its token, and is not told twice';
    $socket->send(1, 'from a client');
    $nginx->post('/pub?id=a', 'from a publisher');
    is $socket->text, 'from a publisher', 'a client that may not publish may not after a reload';
};

done_testing;
