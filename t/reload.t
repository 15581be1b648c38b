# A reload changes the configuration, ends the streams of the old workers, and keeps what is stored.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;

my $conf = <<'CONF';
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_handover off;
    push_stream_shared_memory_size 4m;
    push_stream_channels_path $arg_id;
    push_stream_store_messages on;
    push_stream_ping_message_interval 1h;
    push_stream_subscriber_connection_ttl 2h;

    server {
        listen 127.0.0.1:%%PORT%%;

        location /pub { push_stream_publisher admin; }
        location /sub {
            push_stream_subscriber;
            push_stream_message_template "old ~text~";
            push_stream_footer_template "foot";
        }
        location /ev { push_stream_subscriber eventsource; }
        location /poll { push_stream_subscriber polling; push_stream_message_template "old ~text~ "; }
        location /wait { push_stream_subscriber long-polling; }
        location /status { push_stream_channels_statistics; }
    }
}
CONF

with_nginx $conf, sub ($nginx) {
    my %all = ('If-Modified-Since' => 'Thu, 01 Jan 1970 00:00:00 GMT');

    $nginx->post('/pub?id=a', "message $_", 'Event-Id' => $_) for 1 .. 5;
    $nginx->post('/pub?id=b', 'x');
    my $before = $nginx->figures;
    my $stream = $nginx->subscribe('/sub?id=a.b1');
    my $events = $nginx->subscribe('/ev?id=a');
    my $wait = $nginx->open(GET => '/wait?id=c');
    ok wait_until { $nginx->figures->{subscribers} == 3 }, 'three subscribers';
    my @old_workers = $nginx->worker_pids;
    sleep 1.1;

    my $start = time;
    $nginx->reload($conf =~ s/old ~text~/new ~text~/gr =~ s/push_stream_store_messages on/push_stream_store_messages on;\n    push_stream_max_messages_stored_per_channel 3/r);
    within time - $start, 5, 'the old workers leave at once, whatever pings and time limits are configured';

    is_deeply [ $stream->chunks_to_end ], [ 'old message 5', 'foot' ], 'a stream ends with its footer';
    is_deeply [ $events->chunks_to_end ], [": \n"], 'an event stream ends properly';
    my $ended = $wait->response;
    is $ended->status, 304, 'long polling ends as at its time limit';
    is $ended->header('Etag'), 'W/0', 'with tag 0';

    my $after = $nginx->figures;
    is $after->{$_}, $before->{$_}, "$_ stay" for qw(published_messages stored_messages);
    is $after->{subscribers}, 0, 'nobody is subscribed any more';
    is $nginx->figures($_)->{subscribers}, 0, "not to $_" for qw(a b);
    cmp_ok $after->{uptime}, '>', $before->{uptime}, 'the zone is the same one, and grows older';
    my %by_worker = map { $_->{pid} => 1 } @{ $after->{by_worker} };
    is_deeply [ sort keys %by_worker ], [ sort $nginx->worker_pids ], 'the new workers are listed, and no old one';
    is scalar(grep { $by_worker{$_} } @old_workers), 0, 'really none';

    is $nginx->get('/poll?id=a', %all)->body, join('', map { "new message $_ " } 1 .. 5), 'stored messages follow the new template';
    is $nginx->post('/pub?id=a', 'message 6', 'Event-Id' => 6)->json->{stored_messages}, 3, 'new limits hold at once';

    $events = $nginx->subscribe('/ev?id=a', 'Last-Event-Id' => 5);
    is $events->event->{data}, 'message 6', 'a browser goes on where it was cut off';

    # Sockets come and go with connections; the others stay.
    my $fds = sub {
        my ($pid) = $nginx->worker_pids;
        return scalar grep { (readlink $_ // 'socket') !~ /socket/ } glob "/proc/$pid/fd/*";
    };
    $events->close;
    $nginx->reload;
    my $open = $fds->();
    for (1 .. 5) {
        my $subscriber = $nginx->subscribe('/sub?id=a');
        $nginx->reload;
        is_deeply [ $subscriber->chunks_to_end ], ['foot'], 'each reload ends the stream of its time';
    }
    is $fds->(), $open, 'no descriptor is lost by reloads';
    $nginx->post('/pub?id=a', 'the last');
    is $nginx->get('/poll?id=a.b1')->body, 'new the last ', 'it still works';

    # A configuration that cannot be used changes nothing.
    my $survivor = $nginx->subscribe('/sub?id=a');
    $nginx->expect_in_log(qr/\[emerg\].*nonsense/);
    $nginx->write_conf("nonsense;\n");
    $nginx->signal('HUP');
    ok $nginx->wait_for_log(qr/nonsense/), 'a reload with a broken configuration';
    $nginx->post('/pub?id=a', 'still alive');
    is $survivor->chunk, 'new still alive', 'leaves everybody alone';
};

done_testing;
