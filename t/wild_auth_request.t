# A configuration as it is found: an application decides by auth_request who may listen to what.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;
plan skip_all => 'this nginx has no auth_request' if !PushStream::Nginx->has_module('http_auth_request');

with_nginx <<'CONF', sub ($nginx) {
%%MAIN%%
events { worker_connections 1024; }
http {
    %%HTTP%%
    push_stream_shared_memory_size 16m;

    # The application: a session may listen to the channels of its user.
    map $cookie_session $user { default ""; joe joe; ann ann; }

    server {
        listen 127.0.0.1:%%PORT%%;

        location = /auth {
            internal;
            proxy_pass http://127.0.0.1:%%PORT%%/app;
            proxy_pass_request_body off;
            proxy_set_header Content-Length "";
            proxy_set_header X-Original-URI $request_uri;
        }
        location = /app {
            if ($user = "") { return 401; }
            add_header X-User $user always;
            return 204;
        }
        location = /events {
            auth_request     /auth;
            auth_request_set $channels $upstream_http_x_user;
            error_page 401 = @login;
            push_stream_subscriber    eventsource;
            push_stream_channels_path $channels;
        }
        location @login { return 302 /login; }
        location /pub {
            auth_request /auth;
            push_stream_publisher     admin;
            push_stream_channels_path $arg_id;
            push_stream_store_messages on;
            client_body_buffer_size   1k;
        }
        location /status { push_stream_channels_statistics; push_stream_channels_path $arg_id; }
    }
}
CONF
    my $as = sub ($user) { return (Cookie => "session=$user") };
    my $stranger = $nginx->get('/events');
    is $stranger->status . ' ' . ($stranger->header('Location') // '') =~ s{^\w+://[^/]+}{}r, '302 /login', 'a stranger is sent to the login';
    my %stream = map { $_ => $nginx->subscribe('/events', $as->($_)) } qw(joe ann);
    is $stream{$_}->status, 200, "$_ may listen" for qw(joe ann);
    is $nginx->figures($_)->{subscribers}, 1, 'to the channel that the application named' for qw(joe ann);
    is $nginx->post('/pub?id=joe', 'x')->status, 401, 'a stranger does not publish';
    is $nginx->figures('joe')->{published_messages}, 0, 'indeed';
    my $large = 'y' x 20_000;
    is $nginx->post('/pub?id=joe', $large, $as->('ann'))->status, 200, 'with a session one does, large bodies too';
    ok $stream{joe}->event->{data} eq $large, 'that arrive';
    is $stream{ann}->comment, '', 'at those that they are for';
    ok $stream{ann}->is_quiet(0.2), 'and nowhere else';
    is $nginx->delete('/pub?id=joe', $as->('ann'))->status, 200, 'and delete';
    is $stream{joe}->event->{data}, 'Channel deleted', 'which ends the stream';
};

done_testing;
