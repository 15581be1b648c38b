# push_stream_drain_time spreads the end of streams, so that not all of them reconnect at once.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;

with_nginx <<'CONF', sub ($nginx) {
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_handover off;
    push_stream_shared_memory_size 4m;
    push_stream_channels_path $arg_id;
    push_stream_drain_time 2s;

    server {
        # Each worker with a queue of its own, so that subscribers are spread over all of them.
        listen 127.0.0.1:%%PORT%% reuseport;

        location /pub { push_stream_publisher; }
        location /sub { push_stream_subscriber; push_stream_footer_template "foot"; }
        location /status { push_stream_channels_statistics; }
    }
}
CONF
    my @streams = map { $nginx->subscribe('/sub?id=a') } 1 .. 200;
    my $start = time;
    $nginx->signal('HUP');
    my $ended = sub { scalar grep { !$_->is_quiet(0) } @streams };
    sleep 1;
    my $half_way = $ended->();
    ok $half_way > 20 && $half_way < 180, "after half of the time $half_way of 200 have ended";
    ok wait_until { $ended->() == 200 }, 'in the end all have';
    cmp_ok time - $start, '>', 1.5, 'over the time that is configured';
    within time - $start, 3.5, 'and not much longer';
    is scalar(grep { join('', $_->chunks_to_end) ne 'foot' } @streams), 0, 'properly';
};

done_testing;
