# Padding for user agents that show nothing before they have got enough.

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
    push_stream_header_template "0123456789";
    push_stream_padding_by_user_agent "[T|t]est 1,1024,508:[T|t]est 2,4097,0";

    server {
        listen 127.0.0.1:%%PORT%%;

        location /pub { push_stream_publisher; }
        location /sub { push_stream_subscriber; }
        location /ev { push_stream_subscriber eventsource; }
        location /agent { push_stream_subscriber; push_stream_user_agent $arg_agent; }
        location /poll { push_stream_subscriber polling; }
    }
}
CONF
    my $filler = sub ($length) { ($length % 2 ? "\n" : '') . "\r\n" x int($length / 2) };

    my $one = $nginx->subscribe('/sub?id=a', 'User-Agent' => 'Test 1');
    is $one->chunk, '0123456789', 'the header';
    is $one->chunk, $filler->(1100), 'is filled up, in hundreds';
    my $two = $nginx->subscribe('/sub?id=a', 'User-Agent' => 'test 2');
    $two->chunk;
    is $two->chunk, $filler->(4097), 'but not beyond the largest minimum of all';
    my $none = $nginx->subscribe('/sub?id=a', 'User-Agent' => 'Test 3');
    $none->chunk;
    my $named = $nginx->subscribe('/agent?id=a&agent=Test%201', 'User-Agent' => 'Test 3');
    $named->chunk;
    is $named->chunk, $filler->(1100), 'the agent can come from a variable';
    my $events = $nginx->subscribe('/ev?id=a', 'User-Agent' => 'Test 1');
    is $events->chunk, ": 0123456789\n", 'the header of an event stream';
    is $events->chunk, ':' x 1099 . "\n", 'is filled up with a comment';

    $nginx->post('/pub?id=a', 'x' x 108);
    is_deeply [ $one->chunks_as('x' x 108, $filler->(500)) ], [ 'x' x 108, $filler->(500) ], 'a message is filled up as well';
    is $two->chunk, 'x' x 108, 'or not, if nothing is to be filled up';
    is $none->chunk, 'x' x 108, 'other agents get nothing of it';
    ok $_->is_quiet(0.05), 'indeed' for $two, $none;
};

done_testing;
