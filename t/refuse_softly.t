# push_stream_refuse_softly: an EventSource that is refused comes back.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;
use PushStream::Token;

my ($good, $expired) = map { +{ Authorization => "Bearer $_" } } tokens(
    { claims => { push => { subscribe => ['a'] } } },
    { claims => { exp => int(time) - 600, push => { subscribe => ['a'] } } },
);
write_file(key_dir . '/keys.json', key_set('secret'));
my $keys = key_dir;

with_nginx <<"CONF", sub ($nginx) {
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_shared_memory_size 1m;
    push_stream_channels_path \$arg_id;
    push_stream_max_subscribers_per_channel 1;
    push_stream_refuse_softly on;
    push_stream_token_keys $keys/keys.json;

    server {
        listen 127.0.0.1:%%PORT%%;
        location /ev { push_stream_subscriber eventsource; push_stream_token required; }
        location /open { push_stream_subscriber eventsource; }
        location /hard { push_stream_subscriber eventsource; push_stream_token required; push_stream_refuse_softly off; }
        location /poll { push_stream_subscriber polling; push_stream_token required; }
        location /pub { push_stream_publisher; push_stream_token required; }
        location /status { push_stream_channels_statistics; }
    }
}
CONF
    my $refused = sub ($answer, $status, $reason, $what) {
        is $answer->status, 200, $what;
        is $answer->header('Content-Type'), 'text/event-stream; charset=utf-8', '... as a stream';
        is $answer->body, qq(retry: 30000\n\nevent: refused\ndata: {"status":$status,"reason":"$reason"}\n\n), '... that says why and when to come back';
    };
    $refused->($nginx->get('/ev?id=a'), 401, 'missing', 'no token');
    $refused->($nginx->get('/ev?id=a', %$expired), 401, 'expired', 'an expired token');
    $refused->($nginx->get('/ev?id=b', %$good), 403, 'insufficient_scope', 'no grant');
    is $nginx->get('/ev?id=a')->explain, 'No token.', 'the explanation is there as well';
    my $stream = $nginx->subscribe('/ev?id=a', %$good);
    is $stream->status, 200, 'who is granted it is let in';
    ok $stream->is_quiet, '... and told nothing' if $stream->text_until(qr/: \n/);
    $refused->($nginx->get('/ev?id=a', %$good), 403, 'too_many_subscribers', 'a limit');
    $refused->($nginx->get('/open?id=a'), 403, 'too_many_subscribers', 'without tokens, too');

    is $nginx->get('/open?id=')->status, 400, 'a mistake stays one';
    is $nginx->post('/open?id=a', 'x')->status, 405, 'so does another method';
    is $nginx->get('/hard?id=a')->status, 401, 'without the directive the status says it';
    is $nginx->get('/poll?id=a')->status, 401, 'and so it does to a poll';
    is $nginx->get('/ev?id=a', 'X-Nginx-PushStream-Mode' => 'long-polling')->status, 401, 'also to one at the same place';
    is $nginx->post('/pub?id=a', 'x')->status, 401, 'and to a publisher';
    is $nginx->figures('a')->{subscribers}, 1, 'nobody who was refused is subscribed';
};

done_testing;
