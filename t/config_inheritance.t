# Inner values win over outer ones; what a location does not say it takes from the server, then from the http block.

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
    push_stream_channels_path $arg_id;
    push_stream_message_template "http ~text~";
    push_stream_header_template "http header";
    push_stream_footer_template "http footer";
    push_stream_store_messages on;
    push_stream_channel_info_on_publish off;
    push_stream_subscriber_connection_ttl 300ms;

    server {
        listen 127.0.0.1:%%PORT%%;
        push_stream_message_template "server ~text~";

        location /pub { push_stream_publisher; }
        location /pub_info { push_stream_publisher; push_stream_channel_info_on_publish on; }
        location /pub_nostore { push_stream_publisher; push_stream_store_messages off; push_stream_channel_info_on_publish on; }

        location /plain { push_stream_subscriber polling; }
        location /other_path { push_stream_subscriber polling; push_stream_channels_path $arg_other; }
        location /own {
            push_stream_subscriber polling;
            push_stream_message_template "own ~text~";
            push_stream_header_template "";
            push_stream_footer_template "own footer";
        }
        location /outer {
            push_stream_subscriber polling;
            push_stream_message_template "outer ~text~";
            # A handler is not inherited, but everything else is.
            location /outer/files { alias html; }
            location /outer/inner { push_stream_subscriber polling; }
        }
        location /stream { push_stream_subscriber; }
        location /ev { push_stream_subscriber eventsource; }
        location /wait { push_stream_subscriber long-polling; }
    }
}
CONF
    my %all = ('If-Modified-Since' => 'Thu, 01 Jan 1970 00:00:00 GMT');

    my $published = $nginx->post('/pub?id=a', 'hello');
    is $published->status, 200, 'published';
    is $published->body, '', 'without channel information, as the http block says';
    like $nginx->post('/pub_info?id=b', 'hello')->body, qr/"channel": "b"/, 'with it, as the location says';
    is $nginx->post('/pub_nostore?id=c', 'hello')->json->{stored_messages}, 0, 'a location may store nothing';

    is $nginx->get('/plain?id=a', %all)->body, 'http headerserver hellohttp footer',
        'the template of the server, header and footer of the http block';
    is $nginx->get('/own?id=a', %all)->body, 'own helloown footer', 'the location has its own; an empty header is one too';
    is $nginx->get('/other_path?id=b&other=a', %all)->body, 'http headerserver hellohttp footer', 'a path of its own';
    is $nginx->get('/outer?id=a', %all)->body, 'http headerouter hellohttp footer', 'a location around others';
    is $nginx->get('/outer/inner?id=a', %all)->body, 'http headerouter hellohttp footer', 'a nested location inherits';
    is $nginx->get('/outer/files/none?id=a', %all)->status, 404, 'a nested location without a role serves files';

    my $started = time;
    is join('', $nginx->subscribe('/stream?id=a')->chunks_to_end), 'http headerhttp footer', 'a stream';
    within time - $started, 2, 'ends as the http block says';
    is join('', $nginx->subscribe('/ev?id=a')->chunks_to_end), ": http header\n: http footer\n",
        'eventsource prepares what it inherits';
    is $nginx->get('/wait?id=a')->status, 304, 'long polling takes the time limit of the others';
};

done_testing;
