# A configuration as it is found: behind a load balancer, which names the clients by X-Forwarded-For.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;
plan skip_all => 'this nginx has no realip' if !PushStream::Nginx->has_module('http_realip');

with_nginx <<'CONF', sub ($nginx) {
%%MAIN%%
events { worker_connections 1024; }
http {
    %%HTTP%%
    set_real_ip_from 127.0.0.1;
    real_ip_header   X-Forwarded-For;
    real_ip_recursive on;
    log_format who '$remote_addr $status $uri';
    access_log %%DIR%%/who.log who;

    push_stream_shared_memory_size             16m;
    push_stream_max_subscribers_per_address    2;
    push_stream_user_agent                     $http_x_device;

    server {
        listen 127.0.0.1:%%PORT%%;

        location /pub {
            allow 10.0.0.0/8;
            deny  all;
            push_stream_publisher admin;
            push_stream_channels_path $arg_id;
        }
        location ~ ^/ev/(.*) {
            push_stream_subscriber eventsource;
            push_stream_channels_path $1;
            push_stream_padding_by_user_agent "old,100,100";
        }
        location /status { push_stream_channels_statistics; push_stream_channels_path $arg_id; }
    }
}
CONF
    my $from = sub ($address, %more) { return ('X-Forwarded-For' => $address, %more) };
    is $nginx->post('/pub?id=a', 'x', $from->('203.0.113.9'))->status, 403, 'nobody publishes from outside';
    my @joe = map { $nginx->subscribe('/ev/a', $from->('203.0.113.9')) } 1, 2;
    is $nginx->get('/ev/a', $from->('203.0.113.9'))->status, 403, 'a third stream from one address is refused';
    my $ann = $nginx->subscribe('/ev/a', $from->('2001:db8:1:2::7'));
    my $old = $nginx->subscribe('/ev/a', $from->('2001:db8:1:2::8', 'X-Device' => 'old phone'));
    is $nginx->get('/ev/a', $from->('2001:db8:1:2:ffff::9'))->explain, 'Subscribers limit per address has been exceeded.',
        'of IPv6 the network counts';
    is $nginx->post('/pub?id=a', 'inside', $from->('198.51.100.1, 10.1.2.3'))->status, 200, 'from inside one may publish';
    is $_->event->{data}, 'inside', 'to everybody' for @joe, $ann;
    is length $old->text_until(qr/inside\n\n:+\n$/), 3 + 100 + length("data: inside\n\n") + 100, 'old devices get their padding';
    $_->close for @joe;
    ok wait_until { $nginx->figures->{subscribers} == 2 }, 'they leave';
    is $nginx->subscribe('/ev/a', $from->('203.0.113.9'))->status, 200, 'and may come again';
    my $log = sub { open my $file, '<', $nginx->dir . '/who.log' or return ''; join '', <$file> };
    ok wait_until { $log->() =~ m{^203\.0\.113\.9 200 /ev/a$}m }, 'the log knows their addresses';
};

done_testing;
