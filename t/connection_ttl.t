# A subscriber connection lives no longer than configured, whatever goes on.

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
    push_stream_channels_path $arg_id;
    push_stream_footer_template "bye";
    push_stream_subscriber_connection_ttl 2s;

    server {
        listen 127.0.0.1:%%PORT%%;

        location /pub { push_stream_publisher; }
        location /sub { push_stream_subscriber; }
        location /pinged { push_stream_subscriber; push_stream_ping_message_interval 400ms; }
        location /ev { push_stream_subscriber eventsource; }
        location /wait { push_stream_subscriber long-polling; push_stream_longpolling_connection_ttl 700ms; }
        location /status { push_stream_channels_statistics; }
    }
}
CONF
    my $in_time = sub ($seconds, $expected, $name) {
        cmp_ok $seconds, '>', $expected - 0.2, "$name: not before";
        within $seconds, $expected + 1, "$name: and not much later";
    };
    my $start = time;
    my $stream = $nginx->subscribe('/sub?id=a');
    my $pinged = $nginx->subscribe('/pinged?id=a');
    my $events = $nginx->subscribe('/ev?id=b');
    my $wait = $nginx->open(GET => '/wait?id=c');

    $nginx->post('/pub?id=a', 'message');

    is $wait->response->status, 304, 'long polling ends with 304';
    $in_time->(time - $start, 0.7, 'after its own time');

    is_deeply [ $stream->chunks_to_end ], [ 'message', 'bye' ], 'a stream ends with its footer';
    $in_time->(time - $start, 2, 'after its time, messages or not');
    is_deeply [ $events->chunks_to_end ], [ ": \n", ": bye\n" ], 'an event stream too';

    my @chunks = $pinged->chunks_to_end;
    is pop @chunks, 'bye', 'a stream with pings ends as well';
    is scalar(grep { $_ eq 'message' } @chunks), 1, 'it got the message';
    cmp_ok scalar(grep { $_ eq ' ' } @chunks), '>=', 2, 'and pings';
    $in_time->(time - $start, 2, 'pings do not keep it alive');

    ok wait_until { $nginx->figures->{subscribers} == 0 }, 'nobody is left';
    is $nginx->figures($_)->{subscribers}, 0, "not on $_" for qw(a b c);
};

done_testing;
