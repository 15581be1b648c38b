# JSONP: polls answer with a call of the function that the client names.

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
    push_stream_store_messages on;
    push_stream_header_template "head|";
    push_stream_footer_template "|foot";
    push_stream_longpolling_connection_ttl 300ms;

    server {
        listen 127.0.0.1:%%PORT%%;

        location /pub { push_stream_publisher admin; }
        location /poll { push_stream_subscriber polling; }
        location /wait { push_stream_subscriber long-polling; push_stream_longpolling_connection_ttl 10s; }
        location /short { push_stream_subscriber long-polling; }
        location /sub { push_stream_subscriber; }
        location /status { push_stream_channels_statistics; }
    }
}
CONF
    $nginx->post("/pub?id=$_", "\"$_\"") for qw(a b);
    $nginx->post('/pub?id=a', '"c"');

    my $answer = $nginx->get('/poll?id=a.b2/b.b1&callback=cb');
    is $answer->header('Content-Type'), 'application/javascript', 'a script';
    is $answer->body, 'head|cb(["a","c","b"]);|foot', 'one call with all messages of all channels';
    my $nothing = $nginx->get('/poll?id=a&callback=cb');
    is $nothing->status, 304, 'nothing new';
    is $nothing->header('Content-Type'), 'application/javascript', 'is a script too';
    is $nginx->get('/wait?id=a.b1&callback=cb')->body, 'head|cb(["c"]);|foot', 'long polling with something new';

    my $wait = $nginx->open(GET => '/wait?id=a&callback=obj.fn%5B0%5D_1%24');
    ok wait_until { $nginx->figures('a')->{subscribers} }, 'long polling with nothing new waits';
    $nginx->post('/pub?id=a', '"d"');
    is $wait->response->body, 'head|obj.fn[0]_1$(["d"]);|foot', 'and calls when there is';
    is $nginx->get('/short?id=a&callback=1_onmessage_2')->header('Content-Type'), 'application/javascript', 'also at the end of its time';
    is $nginx->get('/poll?id=a.b1&callback=')->body, 'head|"d"|foot', 'an empty name is none';

    is $nginx->get("/poll?id=a.b1&callback=$_")->status, 400, "a name that could be a script itself is refused: $_"
        for 'alert(1)', 'a%28', '%3Cscript%3E', 'a%0Ab', 'a;b';
    is $nginx->subscribe('/sub?id=a.b1&callback=cb')->text_until(qr/"d"/), 'head|"d"', 'a stream knows nothing of it';
};

done_testing;
