# push_stream_token_ticket: a ticket in the URL works once, whichever worker sees it.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;
use PushStream::Token;
use PushStream::WebSocket;

my $push = { subscribe => [ 'a', 'b' ], publish => ['b'] };
my ($good, $publisher) = map { +{ Authorization => "Bearer $_" } } tokens(
    { claims => { sub => '42', jti => 'one', push => $push } },
    { claims => { push => { publish => [ 'a', 'b' ] } } },
);
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
    push_stream_token required;
    push_stream_token_leeway 0;
    log_format token "\$uri \$status sub=\$push_stream_token_sub error=\$push_stream_token_error";

    server {
        listen 127.0.0.1:%%PORT%%;
        access_log %%DIR%%/token.log token;
        push_stream_token_ticket 30s;

        location /pub { push_stream_publisher; }
        location /ev { push_stream_subscriber eventsource; push_stream_allowed_origins https://a.example; }
        location /poll { push_stream_subscriber polling; }
        location /brief { push_stream_subscriber polling; push_stream_token_ticket 1s; }
        location /other { push_stream_subscriber polling; push_stream_token_leeway 5s; }
        location /none { push_stream_subscriber polling; push_stream_token_ticket off; }
        location /ws { push_stream_subscriber websocket; push_stream_websocket_allow_publish on; }
        location /status { push_stream_channels_statistics; }
    }
}
CONF

refuses $conf =~ s/_ticket 1s/_ticket $_->[0]/r, $_->[1], "$_->[0] is refused"
    for [ '0' => 'push_stream_token_ticket: "0" is neither off nor a time from 1s to 1h' ], [ '2h' => 'push_stream_token_ticket' ], [ 'on' => 'push_stream_token_ticket' ];

with_nginx $conf, sub ($nginx) {
    my $ticket = sub ($uri, $token = $good) { my $answer = $nginx->post($uri, '', %$token); return $answer->status == 200 ? $answer->json->{ticket} : $answer->status };
    my $answer = $nginx->post('/ev?id=a/b', '', %$good, Origin => 'https://a.example');
    is_deeply [ $answer->status, $answer->json->{expires_in} ], [ 200, 30 ], 'a token gives a ticket';
    is $answer->header('Access-Control-Allow-Methods'), 'GET, POST', 'to pages of other origins, too';
    is $nginx->request(OPTIONS => "/$_?id=a")->status, 200, "who may ask before: $_" for qw(ev ws);
    my $stream = $nginx->subscribe('/ev?id=a/b&ticket=' . $answer->json->{ticket});
    is $stream->status, 200, 'a ticket opens a stream';
    $nginx->post('/pub?id=a', 'hello', %$publisher);
    is $stream->event->{data}, 'hello', 'as the token would';

    # Each of these connections may be with another worker.
    for my $round (1 .. 3) {
        my $used = $ticket->('/poll?id=a');
        my @polls = map { $nginx->open(GET => "/poll?id=a&ticket=$used") } 1 .. 6;
        is_deeply [ sort map { $_->response->status } @polls ], [ 304, (401) x 5 ], 'of many who use a ticket at once one succeeds';
        is $nginx->get("/poll?id=a&ticket=$used")->explain, 'Ticket is not valid, or was used before.', 'and nobody later';
    }
    is $nginx->get('/poll?id=a&ticket=' . $ticket->('/poll?id=b'))->status, 403, 'a ticket is for the channels that it was made for';
    is $ticket->('/poll?id=c'), 403, 'which the token grants';
    is $ticket->('/poll?id=a', {}), 401, 'without a token there is none';
    is $nginx->post('/poll?id=a&ticket=' . $ticket->('/poll?id=a'), '')->status, 401, 'not even for a ticket';
    is $ticket->('/poll?id='), 400, 'nor for no channel';
    is $nginx->get('/other?id=a&ticket=' . $ticket->('/poll?id=a'))->status, 401, 'a ticket is for what trusts the same tokens';
    is $nginx->get('/none?id=a&ticket=' . $ticket->('/poll?id=a'))->explain, 'No token.', 'where there are no tickets it is nothing';
    is $nginx->post('/none?id=a', '', %$good)->status, 405, 'and cannot be had';
    is $nginx->get('/poll?id=a&ticket=x', %$good)->status, 401, 'a bad ticket is not made good by a token';

    is $nginx->post('/pub?id=b&ticket=' . $ticket->('/poll?id=b'), 'x')->status, 401, 'publishers need a token';

    my $late = sub { my $again = $ticket->('/brief?id=a'); sleep 1.1; $nginx->get("/brief?id=a&ticket=$again")->status };
    is $late->(), 401, 'a ticket has its time';

    my $before = $ticket->('/poll?id=a');
    $nginx->reload;
    is $nginx->get("/poll?id=a&ticket=$before")->status, 304, 'a reload does not take it away';
    is $nginx->get("/poll?id=a&ticket=$before")->status, 401, 'nor give it back';

    if (($ENV{TEST_TRANSPORT} // '') ne 'http2') {
        my ($reader, $writer) = map { PushStream::WebSocket->new($nginx, "/ws?id=$_&ticket=" . $ticket->("/ws?id=$_")) } qw(a b);
        $_->send(1, 'from a client') for $reader, $writer;
        is $writer->text, 'from a client', 'a ticket lets publish what the token does';
        ok $reader->client->is_quiet, 'and nothing else';
    }
    my $lines = sub { open my $file, '<', $nginx->dir . '/token.log' or die $!; join '', <$file> };
    ok wait_until { $lines->() =~ m{^/poll 304 sub=42 error=-$}m }, 'the log has the subject of a ticket';
    like $lines->(), qr{^/poll 401 sub=- error=bad_ticket$}m, '... or that it was none';
};

# The end of the token is the end of the stream.
{
    local $ENV{TEST_WORKERS} = 1;
    with_nginx $conf, sub ($nginx) {
        my ($token) = tokens({ claims => { exp => int(time) + 2 + PushStream::Nginx::slowness, push => $push } });
        my $answer = $nginx->post('/ev?id=a', '', Authorization => "Bearer $token")->json;
        cmp_ok $answer->{expires_in}, '<=', 2 + PushStream::Nginx::slowness, 'a ticket does not outlive its token';
        my $stream = $nginx->subscribe("/ev?id=a&ticket=$answer->{ticket}");
        like join('', $stream->chunks_to_end), qr/event: expired\n/, 'neither does the stream';
    };
}

done_testing;
