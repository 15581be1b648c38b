# Inside `if` the role goes on with the values of the `if` block.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;

with_nginx <<'CONF', sub ($nginx) {
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_shared_memory_size 1m;
    push_stream_store_messages on;

    server {
        listen 127.0.0.1:%%PORT%%;

        location /pub {
            push_stream_publisher;
            push_stream_channels_path $arg_id;
            if ($arg_volatile) {
                push_stream_store_messages off;
            }
            if ($arg_group) {
                push_stream_channels_path group_$arg_group;
            }
        }
        location /poll {
            push_stream_subscriber polling;
            push_stream_channels_path $arg_id;
            if ($arg_group) {
                push_stream_channels_path group_$arg_group;
            }
        }
        location /ev {
            push_stream_subscriber eventsource;
            push_stream_channels_path $arg_id;
            push_stream_header_template "header";
            push_stream_footer_template "footer";
            push_stream_message_template "<~text~>";
            push_stream_subscriber_connection_ttl 300ms;
            if ($arg_group) {
                push_stream_channels_path group_$arg_group;
            }
        }
        location /stream {
            push_stream_subscriber;
            push_stream_channels_path $arg_id;
            push_stream_header_template "header";
            push_stream_footer_template "footer";
            push_stream_message_template "<~text~>";
            push_stream_subscriber_connection_ttl 300ms;
            if ($arg_group) {
                push_stream_channels_path group_$arg_group;
            }
        }
        location /checked {
            push_stream_channels_path $arg_id;
            push_stream_subscriber polling;
            if ($arg_id ~ "^secret") {
                return 403;
            }
        }
    }
}
CONF
    my %all = ('If-Modified-Since' => 'Thu, 01 Jan 1970 00:00:00 GMT');

    is $nginx->post('/pub?id=a', 'one')->json->{stored_messages}, 1, 'stored';
    is $nginx->post('/pub?id=a&volatile=1', 'two')->json->{stored_messages}, 1, 'not stored within the if';
    is $nginx->post('/pub?id=a&group=g', 'three')->json->{channel}, 'group_g', 'another path within the if';

    is $nginx->get('/poll?id=a', %all)->body, 'one', 'the path outside';
    is $nginx->get('/poll?id=a&group=g', %all)->body, 'three', 'the path within';

    is join('', $nginx->subscribe('/ev?id=group_g.b1')->chunks_to_end), ": header\ndata: <three>\n\n: footer\n",
        'eventsource outside the if';
    is join('', $nginx->subscribe('/ev?group=g.b1')->chunks_to_end), ": header\ndata: <three>\n\n: footer\n",
        'the same within: nothing is prepared twice';
    is join('', $nginx->subscribe('/stream?group=g.b1')->chunks_to_end), 'header<three>footer', 'streaming within';

    is $nginx->get('/checked?id=secret1')->status, 403, 'an if that returns wins over the role';
    is $nginx->get('/checked?id=a', %all)->body, 'one', 'where it does not, the role answers';
};

done_testing;
