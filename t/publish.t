# A message is published with POST or PUT, and the answer tells how the channel stands.

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

    server {
        listen 127.0.0.1:%%PORT%%;

        location /pub { push_stream_publisher; }
        location /quiet { push_stream_publisher; push_stream_channel_info_on_publish off; }
        location /volatile { push_stream_publisher; push_stream_store_messages off; }
        location /sub { push_stream_subscriber; }
    }
}
CONF
    my $answer = $nginx->post('/pub?id=a', 'first');
    is $answer->status, 200, 'POST is answered with 200';
    is $answer->header('Content-Type'), 'application/json', 'in JSON';
    is $answer->header('Expires'), 'Thu, 01 Jan 1970 00:00:01 GMT', 'not to be kept by caches';
    is $answer->header('Cache-Control'), 'no-cache, no-store, must-revalidate', 'of any kind';
    is $answer->header('Access-Control-Allow-Origin'), undef, 'no CORS header unless configured';
    is $answer->body, qq({"channel": "a", "published_messages": 1, "stored_messages": 1, "subscribers": 0}\r\n),
        'the channel, counting this message';

    is $nginx->put('/pub?id=a', 'second')->body,
        qq({"channel": "a", "published_messages": 2, "stored_messages": 2, "subscribers": 0}\r\n), 'PUT does the same';

    my $one = $nginx->subscribe('/sub?id=a');
    my $two = $nginx->subscribe('/sub?id=a');
    is $nginx->post('/pub?id=a', 'third')->json->{subscribers}, 2, 'subscribers are counted over all workers';
    is $_->chunk, 'third', 'and get the message' for $one, $two;

    is $nginx->post('/volatile?id=a', 'fourth')->body,
        qq({"channel": "a", "published_messages": 4, "stored_messages": 3, "subscribers": 2}\r\n),
        'a message that is not stored is published all the same';
    is $_->chunk, 'fourth', 'and delivered' for $one, $two;

    my $quiet = $nginx->post('/quiet?id=a', 'fifth');
    is $quiet->status, 200, 'without channel information the answer is 200';
    is $quiet->header('Content-Length'), 0, 'and nothing else';

    is $nginx->post('/pub?id=a', 'x', 'Content-Type' => $_)->status, 200, "Content-Type does not matter: $_"
        for 'application/x-www-form-urlencoded', 'multipart/form-data; boundary=x', 'image/png', '';
};

done_testing;
