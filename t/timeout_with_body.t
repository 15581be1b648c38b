# push_stream_timeout_with_body: long polling ends with a message instead of 304.

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
    push_stream_channels_path $arg_id;
    push_stream_timeout_with_body on;
    push_stream_longpolling_connection_ttl 300ms;

    server {
        listen 127.0.0.1:%%PORT%%;

        location /poll { push_stream_subscriber polling; }
        location /wait {
            push_stream_subscriber long-polling;
            push_stream_header_template "head|";
            push_stream_message_template "~id~:~channel~:~text~:~tag~:~time~";
            push_stream_footer_template "|foot";
        }
        location /long { push_stream_subscriber long-polling; push_stream_longpolling_connection_ttl 1h; }
        location /status { push_stream_channels_statistics; }
    }
}
CONF
    my $text = '-3::Timed out:0:Thu, 01 Jan 1970 00:00:00 GMT';
    my $answer = $nginx->get('/wait?id=a');
    is $answer->status, 200, 'the end of the time is an answer';
    is $answer->body, "head|$text|foot", 'with a message of its own';
    is $answer->header('Etag'), 'W/0', 'tag 0';
    ok $answer->header('Last-Modified'), 'and the time of now';
    is $nginx->get('/wait?id=a&callback=cb')->body, "head|cb([$text]);|foot", 'as JSONP too';
    is $nginx->get('/poll?id=a')->status, 304, 'polling does not time out';

    my $long = $nginx->open(GET => '/long?id=a');
    ok wait_until { $nginx->figures('a')->{subscribers} }, 'waiting';
    $nginx->signal('TERM');
    is $long->response->body, 'Timed out', 'when nginx stops it is the same';
    is $nginx->wait_for_exit, 0, 'and nginx ends';
};

done_testing;
