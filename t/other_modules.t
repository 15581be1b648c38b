# Together with what stands in front of a location: auth_request, rewrite, error_page, limit_conn, a proxy.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;

plan skip_all => 'this nginx has no auth_request' if !PushStream::Nginx->has_module('http_auth_request');

with_nginx <<'CONF', sub ($nginx) {
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_shared_memory_size 4m;
    push_stream_store_messages on;
    push_stream_footer_template "foot";
    limit_conn_zone $arg_user zone=users:1m;
    log_format short '$status $uri $request_method';

    server {
        listen 127.0.0.1:%%PORT%%;

        location /pub { push_stream_publisher admin; push_stream_channels_path $arg_id; }
        location /status { push_stream_channels_statistics; push_stream_channels_path $arg_id; }
        location ~ ^/sub/(.*) { push_stream_subscriber; push_stream_channels_path $1; }

        location = /auth { internal; if ($http_x_key != "secret") { return 403; } return 204; }
        location ~ ^/guarded/(.*) { auth_request /auth; push_stream_subscriber; push_stream_channels_path $1; }
        location /guarded_pub { auth_request /auth; push_stream_publisher; push_stream_channels_path $arg_id; }

        location /old/ { rewrite ^/old/(.*)$ /sub/$1 last; }
        location /missing { error_page 404 = @stream; return 404; }
        location @stream { push_stream_subscriber; push_stream_channels_path fallback; }
        location ~ ^/two/(.*) { limit_conn users 2; push_stream_subscriber; push_stream_channels_path $1; }

        location /proxy/ {
            proxy_pass http://127.0.0.1:%%PORT%%/sub/;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
        }
        location /logged { access_log %%DIR%%/short.log short; push_stream_subscriber polling; push_stream_channels_path $arg_id; }
    }
}
CONF
    is $nginx->get('/guarded/a')->status, 403, 'auth_request keeps strangers out';
    my $guarded = $nginx->subscribe('/guarded/a', 'X-Key' => 'secret');
    is $guarded->status, 200, 'and lets others in';
    is $nginx->post('/guarded_pub?id=a', 'x')->status, 403, 'also publishers';
    is $nginx->post('/guarded_pub?id=a', 'hello', 'X-Key' => 'secret')->json->{subscribers}, 1, 'with their bodies';
    is $guarded->chunk, 'hello', 'delivered';

    my $old = $nginx->subscribe('/old/a.b1');
    is $old->chunk, 'hello', 'a rewritten URL';
    my $fallback = $nginx->subscribe('/missing');
    is $fallback->status, 200, 'error_page to a named location';
    $nginx->post('/pub?id=fallback', 'here');
    is $fallback->chunk, 'here', 'is a stream';

    my @two = map { $nginx->subscribe('/two/l?user=joe') } 1 .. 2;
    is $nginx->get('/two/l?user=joe')->status, 503, 'limit_conn counts streams';
    pop(@two)->close;
    ok wait_until { $nginx->figures('l')->{subscribers} == 1 }, 'one ends';
    is $nginx->subscribe('/two/l?user=joe')->status, 200, 'another may begin';

    # Over HTTP/2 nginx's proxy does not pass on a head by itself.
    my $proxied = $nginx->open(GET => '/proxy/p');
    ok wait_until { ($nginx->figures('p')->{subscribers} // 0) == 1 }, 'through a proxy';
    $nginx->post('/pub?id=p', "message $_") for 1 .. 3;
    is $proxied->text_until(qr/message 3/), 'message 1message 2message 3', 'messages arrive when they are published';
    $nginx->delete('/pub?id=p');
    is join('', $proxied->chunks_to_end), 'Channel deletedfoot', 'and so does the end';
    my $left = $nginx->open(GET => '/proxy/q');
    ok wait_until { ($nginx->figures('q')->{subscribers} // 0) == 1 }, 'another one';
    $left->close;
    ok wait_until { $nginx->figures('q')->{subscribers} == 0 }, 'that goes away is gone behind the proxy, too';

    $nginx->get('/logged?id=a.b1');
    $nginx->get('/logged?id=a');
    $nginx->get('/logged?id=ALL');
    my $log = sub { open my $file, '<', $nginx->dir . '/short.log' or return ''; join '', <$file> };
    ok wait_until { $log->() eq "200 /logged GET\n304 /logged GET\n403 /logged GET\n" }, 'the access log has it right' or diag $log->();
};

done_testing;
