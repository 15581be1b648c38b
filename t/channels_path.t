# The channels path is evaluated for each request, and percent-decoded once.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;

with_nginx <<'CONF', sub ($nginx) {
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_shared_memory_size 4m;
    push_stream_store_messages on;

    map $http_x_user $channel_of_user { default ""; "~^\w+$" "user_$http_x_user"; }

    server {
        listen 127.0.0.1:%%PORT%%;

        location /pub { push_stream_publisher; push_stream_channels_path $arg_id; }
        location ~ ^/nice/(.*) { push_stream_publisher; push_stream_channels_path $1; }
        location /constant { push_stream_publisher; push_stream_channels_path a%2541b; }
        location /fixed { push_stream_publisher; push_stream_channels_path one/two; }
        location /mine { push_stream_publisher; push_stream_channels_path $channel_of_user; }
    }
}
CONF
    my $channels = sub ($uri, %headers) {
        my $answer = $nginx->post($uri, 'x', %headers);
        return $answer->status if $answer->status != 200;
        my $json = $answer->json;
        return join '|', map { $_->{channel} } $json->{infos} ? @{ $json->{infos} } : $json;
    };

    is $channels->('/pub?id=a%20b'), 'a b', 'an escape';
    is $channels->('/pub?id=a+b'), 'a+b', 'a plus is a plus';
    is $channels->('/pub?id=a%2Fb'), 'a|b', 'an escaped slash separates channels';
    is $channels->('/pub?id=a%252Fb'), 'a%2Fb', 'decoded once, not twice';
    is $channels->('/pub?id=a/b/c'), 'a|b|c', 'a slash as it is';
    is $channels->('/pub?id=%C3%A9'), "\x{e9}", 'UTF-8';
    is $channels->('/pub?id=a%00b'), "a\0b", 'even NUL';
    is $channels->('/nice/a/b'), 'a|b', 'from the URL';
    is $channels->('/nice/a%252Fb'), 'a|b', 'which nginx has decoded already';
    is $channels->('/fixed'), 'one|two', 'a constant';
    is $channels->('/constant'), 'aA1b' =~ s/A1/%41/r, 'is decoded once' for 1 .. 3;
    is $channels->('/mine', 'X-User' => 'joe'), 'user_joe', 'from a map';
    is $channels->('/mine'), 400, 'that may come to nothing: no channel';
};

done_testing;
