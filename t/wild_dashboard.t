# A configuration as it is found: a dashboard, many figures on one EventSource, the last value of each at once.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;

with_nginx <<'CONF', sub ($nginx) {
%%MAIN%%
events { worker_connections 1024; }
http {
    %%HTTP%%
    push_stream_shared_memory_size                64m;
    push_stream_max_messages_stored_per_channel   1;
    push_stream_message_ttl                       1d;
    push_stream_channel_inactivity_time           1d;

    map $http_authorization $collector { default 0; "Bearer s3cret" 1; }

    server {
        listen 127.0.0.1:%%PORT%%;

        location /internal/metrics {
            if ($collector = 0) { return 401; }
            push_stream_publisher;
            push_stream_channels_path           $arg_name;
            push_stream_store_messages          on;
            push_stream_channel_info_on_publish off;
        }
        location ~ ^/dashboard/(.*) {
            push_stream_subscriber              eventsource;
            push_stream_channels_path           $1;
            push_stream_message_template        '{"metric":"~channel~","value":~text~}';
            push_stream_header_template         ": connected\nretry: 2000\n\n";
            push_stream_ping_message_interval   15s;
            push_stream_subscriber_connection_ttl 1h;
            push_stream_authorized_channels_only on;
        }
        location = /health { push_stream_channels_statistics; push_stream_channels_path $arg_id; }
    }
}
CONF
    my %key = (Authorization => 'Bearer s3cret');
    is $nginx->post('/internal/metrics?name=cpu', 1)->status, 401, 'strangers bring no figures';
    for my $value (40 .. 42) {
        my $answer = $nginx->post("/internal/metrics?name=cpu", $value, %key);
        is $answer->status . '|' . $answer->body, '200|', 'a figure; the answer is short';
    }
    $nginx->post('/internal/metrics?name=memory', 77, %key);
    is $nginx->get('/dashboard/cpu.b1/disk.b1')->explain, 'Subscriber could not create channels.', 'no figure, no dashboard';

    my $board = $nginx->subscribe('/dashboard/cpu.b1/memory.b1');
    is $board->text_until(qr/memory.*\n\n/),
        qq(: connected\nretry: 2000\n\ndata: {"metric":"cpu","value":42}\n\ndata: {"metric":"memory","value":77}\n\n),
        'the header as it stands, then the last value of each';
    $nginx->post('/internal/metrics?name=memory', 78, %key);
    is $board->event->{data}, '{"metric":"memory","value":78}', 'and each new one';
    $nginx->post('/internal/metrics?name=cpu/memory', 5, %key);
    is_deeply [ map { $board->event->{data} } 1, 2 ], [ '{"metric":"cpu","value":5}', '{"metric":"memory","value":5}' ], 'several at once';
    is $nginx->json('/health')->{stored_messages}, 2, 'one value of each is kept';
};

done_testing;
