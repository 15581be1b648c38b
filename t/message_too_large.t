# Messages have an end: what cannot be counted in 32 bits once it is rendered is refused, with the reason.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;

only_over_plain_http1 'a body of this size says nothing more over TLS or HTTP/2';

my $conf = <<'CONF';
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_shared_memory_size 8m;
    push_stream_channels_path $arg_id;
    client_max_body_size 1g;
    client_body_buffer_size 16k;

    server {
        listen 127.0.0.1:%%PORT%%;
        location /pub { push_stream_publisher admin; push_stream_store_messages on; }
        location /metrics { push_stream_channels_statistics; push_stream_statistics_format prometheus; }
    }
}
CONF

my $limit = 256 << 20;
with_nginx $conf, sub ($nginx) {
    my $refused = $nginx->post('/pub?id=a', 'x' x ($limit + 1));
    is $refused->status, 413, 'more than 256 MiB is refused';
    is $refused->explain, 'Message is too large.', 'with the reason';
    ok wait_until { $nginx->get('/metrics')->body =~ /^push_stream_messages_refused_total\{reason="invalid"\} 1$/m }, 'and counted';
       

    my $full = $nginx->post('/pub?id=a', 'x' x $limit);
    is $full->explain, 'Zone is full.', 'what is not too large by itself may be too large for the zone';
    is $nginx->post('/pub?id=a', 'x')->status, 200, 'and others go on';
};

done_testing;
