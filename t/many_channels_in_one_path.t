# As many channels in one path as a byte counts, one more, one less, and a thousand: all are published to and followed, or none is.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;

only_over_http1 'such long paths do not fit into one frame, and its client sends no more';

with_nginx <<'CONF', sub ($nginx) {
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_shared_memory_size 16m;
    push_stream_channels_path $arg_id;
    push_stream_store_messages on;
    push_stream_max_number_of_channels 4000;
    large_client_header_buffers 4 64k;

    server {
        listen 127.0.0.1:%%PORT%%;

        location /pub { push_stream_publisher admin; }
        location /ev { push_stream_subscriber eventsource; }
        location /status { push_stream_channels_statistics; }
    }
}
CONF
    my $all = 0;
    for my $count (254 .. 257, 1000) {
        my $path = join '/', map { "$count-$_" } 1 .. $count;
        my $answer = $nginx->post("/pub?id=$path", "to $count");
        is $answer->status, 200, "a publish to $count channels at once";
        $all += $count;
        is $nginx->figures->{channels}, $all, 'makes each of them';
        is_deeply [ map { $nginx->figures("$count-$_")->{stored_messages} } 1, $count - 1, $count ], [ 1, 1, 1 ], 'and is stored in each';
        my $events = $nginx->subscribe("/ev?id=$path");
        is $nginx->figures("$count-$_")->{subscribers}, 1, "channel $_ is followed" for 1, $count;
        for my $number (1, 255, 256, $count) {
            next if $number > $count;
            $nginx->post("/pub?id=$count-$number", "only $number");
            is $events->event->{data}, "only $number", "and heard: $number of $count";
        }
        $nginx->post("/pub?id=$path", 'once more');
        is $events->event->{data}, 'once more', 'a message to all of them comes' for 1 .. 3;
        $events->close;
    }
    my $too_many = join '/', map { "new-$_" } 1 .. 3000;
    is $nginx->post("/pub?id=$too_many", 'x')->status, 403, 'more than there may be';
    is $nginx->figures->{channels}, $all, 'makes none';
};

done_testing;
