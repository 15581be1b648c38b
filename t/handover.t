# A reload that no reader notices: detached subscribers go from the old workers to the new ones.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;
use PushStream::WebSocket;

only_over_plain_http1 'subscribers over TLS and HTTP/2 end at a reload';

my $conf = <<'CONF';
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_shared_memory_size 4m;
    push_stream_channels_path $arg_id;
    push_stream_store_messages on;
    push_stream_events_channel_id events;
    push_stream_ping_message_interval 1h;

    server {
        listen 127.0.0.1:%%PORT%%;

        location /pub { push_stream_publisher admin; }
        location /quiet { push_stream_publisher; push_stream_store_messages off; }
        location /sub { push_stream_subscriber; push_stream_message_template "old ~text~"; push_stream_footer_template "foot"; }
        location /ev { push_stream_subscriber eventsource; }
        location /ordered { push_stream_subscriber eventsource; push_stream_resume ordered; }
        location /ws { push_stream_subscriber websocket; push_stream_websocket_allow_publish on; }
        location /short { push_stream_subscriber; push_stream_subscriber_connection_ttl 3s; push_stream_footer_template "end"; }
        location /attached { push_stream_subscriber; push_stream_detach off; push_stream_footer_template "foot"; }
        location /gone { push_stream_subscriber; push_stream_footer_template "foot"; }
        location /stats { push_stream_subscriber eventsource; push_stream_allow_connections_to_events_channel on; }
        location /status { push_stream_channels_statistics; }
        location /metrics { push_stream_channels_statistics; push_stream_statistics_format prometheus; }
    }
}
CONF

with_nginx $conf, sub ($nginx) {
    my @old_workers = $nginx->worker_pids;
    my $stream = $nginx->subscribe('/sub?id=a');
    my $event = $nginx->subscribe('/ev?id=a/b');
    my $ordered = $nginx->subscribe('/ordered?id=a/b');
    my $short = $nginx->subscribe('/short?id=a');
    my $attached = $nginx->subscribe('/attached?id=a');
    my $gone = $nginx->subscribe('/gone?id=a');
    my $socket = PushStream::WebSocket->new($nginx, '/ws?id=c');
    ok wait_until { $nginx->figures->{subscribers} == 7 }, 'seven subscribers';
    my $watch = $nginx->subscribe('/stats?id=events');
    $nginx->post('/pub?id=a', 'before', 'Event-Id' => 1);
    is $stream->chunk, 'old before', 'a message before the reload';
    is $event->event->{data}, 'before', 'for everybody';
    is $ordered->event->{id}, 1, 'with its id';
    is $short->chunk, 'before', 'again';

    $nginx->reload($conf =~ s/old ~text~/new ~text~/r =~ s,location /gone,location /renamed,r);
    my @new_workers = $nginx->worker_pids;
    is scalar(grep { my $old = $_; grep { $_ == $old } @new_workers } @old_workers), 0, 'all workers are new';
    is_deeply [ grep { $_ eq 'foot' } $attached->chunks_to_end ], ['foot'], 'an attached stream ends properly';
    is_deeply [ grep { $_ eq 'foot' } $gone->chunks_to_end ], ['foot'], 'and so does one whose location is gone';

    ok wait_until { $nginx->figures->{subscribers} == 6 }, 'the others are subscribers of the new workers';
    my %by_worker = map { $_->{pid} => $_->{subscribers} } @{ $nginx->figures->{by_worker} };
    is_deeply [ sort keys %by_worker ], [ sort @new_workers ], 'and no old worker is listed';
    is $nginx->figures($_->[0])->{subscribers}, $_->[1], "channel $_->[0] has $_->[1]" for [ a => 4 ], [ b => 2 ], [ c => 1 ];

    ok wait_until { $nginx->get('/metrics')->body =~ /^push_stream_subscribers_handed_over_total 6$/m }, 'which is counted';

    $nginx->post('/pub?id=a', 'after', 'Event-Id' => 2);
    $nginx->post('/quiet?id=b', 'not stored', 'Event-Id' => 3);
    is $stream->chunk, 'new after', 'a stream goes on, with what is configured now';
    is $event->event->{data}, 'after', 'an EventSource goes on';
    is $event->event->{data}, 'not stored', 'in all its channels';
    is $ordered->event->{id}, 2, 'ordered resume goes on';
    is $ordered->event->{id}, 3, 'in all its channels';
    $nginx->post('/pub?id=c', 'hello');
    is $socket->text, 'hello', 'a WebSocket goes on';
    $socket->send(1, 'from the client');
    is $socket->text, 'from the client', 'in both directions';
    is $short->chunk, 'after', 'a stream with a time limit goes on';
    is_deeply [ $short->chunks_to_end ], ['end'], 'and ends when it would have ended';

    # A reader that reads nothing has bytes on their way and others that wait.
    my $slow = $nginx->subscribe('/sub?id=slow');
    my @large = map { "$_ " . 'x' x 60_000 } 1 .. 12;
    $nginx->post('/pub?id=slow', $_) for @large;
    for my $round (1 .. 3) {
        $nginx->reload;
        $nginx->post('/pub?id=slow', "round $round");
        $nginx->post('/pub?id=a', "round $round");
        is $stream->chunk, "new round $round", "reload $round";
        is $event->event->{data}, "round $round", 'for an EventSource';
        is $ordered->event->{data}, "round $round", 'in order';
        if ($round == 2) {
            is $slow->chunk =~ s/^(old|new) //r, $_, 'a slow reader gets ' . substr $_, 0, 2 for @large;
        }
    }
    is $slow->chunk =~ s/^(old|new) //r, "round $_", "and round $_" for 1 .. 3;

    my @told;
    while (my $told = eval { $watch->event(0.5) }) { push @told, $told->{event} }
    is scalar(grep { $_ eq 'client_subscribed' } @told), 1, 'the events channel is told of the reader that came, and of no handover';

    $nginx->reload($conf =~ s/push_stream_ping_message_interval 1h;/push_stream_ping_message_interval 1h; push_stream_handover off;/r);
    is_deeply [ grep { $_ eq 'foot' } $stream->chunks_to_end ], ['foot'], 'if the new workers take nobody, all end as ever';
};

done_testing;
