# A configuration as it is found: limits of connections, requests, rates and methods around all of it.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;

with_nginx <<'CONF', sub ($nginx) {
%%MAIN%%
events { worker_connections 1024; }
http {
    %%HTTP%%
    limit_conn_zone $binary_remote_addr zone=perip:1m;
    limit_req_zone  $arg_id             zone=perchannel:1m rate=1000r/s;
    push_stream_shared_memory_size              8m;
    push_stream_max_number_of_channels          10;
    push_stream_max_messages_stored_per_channel 5;

    server {
        listen 127.0.0.1:%%PORT%%;
        keepalive_timeout 5s;
        client_max_body_size 2k;

        location /pub {
            limit_req zone=perchannel burst=100 nodelay;
            limit_except GET POST { deny all; }
            push_stream_publisher;
            push_stream_channels_path  $arg_id;
            push_stream_store_messages on;
        }
        location ~ ^/stream/(.*) {
            limit_conn perip 3;
            limit_conn_status 429;
            push_stream_subscriber;
            push_stream_channels_path $1;
            push_stream_subscriber_connection_ttl 1h;
        }
        location ~ ^/slowly/(.*) {
            limit_rate 200k;
            push_stream_subscriber;
            push_stream_channels_path $1;
        }
        location /status { push_stream_channels_statistics; push_stream_channels_path $arg_id; }
    }
}
CONF
    my @streams = map { $nginx->subscribe('/stream/a') } 1 .. 3;
    is $nginx->get('/stream/a')->status, 429, 'a fourth stream is one too many';
    is $nginx->get('/status?id=a')->status, 200, 'other locations have room';
    is $nginx->post('/pub?id=a', 'x' x 2049)->status, 413, 'a message over the limit';
    is $nginx->post('/pub?id=a', 'x' x 2048)->status, 200, 'one of just its size';
    is $nginx->put('/pub?id=a', 'x')->status, 403, 'limit_except is heard';
    my $slow = $nginx->subscribe('/slowly/a');
    $nginx->post('/pub?id=a', "$_" x 1000) for 1 .. 9;
    my $expected = 'x' x 2048 . join '', map { "$_" x 1000 } 1 .. 9;
    ok $_->text_until(qr/9{1000}/) eq $expected, 'all streams get everything' for @streams;
    ok $slow->text_until(qr/9{1000}/) eq substr($expected, 2048), 'limit_rate slows down, and loses nothing';
    is $nginx->get('/pub?id=a')->json->{stored_messages}, 5, 'five are kept';
    pop(@streams)->close;
    ok wait_until { $nginx->figures('a')->{subscribers} == 3 }, 'one leaves';
    my $next;
    ok wait_until { $next = $nginx->subscribe('/stream/a'); $next->status == 200 }, 'which makes room';
    $nginx->post("/pub?id=c$_", 'x') for 1 .. 9;
    is $nginx->post('/pub?id=c10', 'x')->explain, 'Number of channels were exceeded.', 'and so it is with channels';
};

done_testing;
