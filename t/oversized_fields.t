# Ids longer than any length field has room for, where nginx is told to accept such requests.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;

plan skip_all => 'HTTP/2 has bounds of its own for headers' if ($ENV{TEST_TRANSPORT} // '') eq 'http2';

with_nginx <<'CONF', sub ($nginx) {
%%MAIN%%
events {}
http {
    %%HTTP%%
    client_header_buffer_size 1k;
    large_client_header_buffers 8 256k;
    push_stream_shared_memory_size 4m;
    push_stream_store_messages on;
    push_stream_channels_path $arg_id;

    server {
        listen 127.0.0.1:%%PORT%%;

        location /pub { push_stream_publisher admin; }
        location /batch { push_stream_publisher; push_stream_batch_publish on; push_stream_batch_max_line 1m; }
        location /ev { push_stream_subscriber eventsource; }
        location /poll { push_stream_subscriber polling; push_stream_message_template "~event-id~|~event-type~|~text~;"; }
        location /status { push_stream_channels_statistics; }
    }
}
CONF
    my $long = 65_535;
    for my $field (qw(Event-Id Event-Type)) {
        is $nginx->post('/pub?id=a', 'fits', $field => 'f' x $long)->status, 200, "$field: $long bytes are accepted";
        my $refused = $nginx->post('/pub?id=a', 'too long', $field => 'f' x ($long + 1));
        is $refused->status, 400, "$field: one more is refused";
        like $refused->explain, qr/at most 65535 bytes/, 'with the reason';
    }
    is $nginx->get('/poll?id=a.b9')->body, 'f' x $long . '||fits;|' . 'f' x $long . '|fits;', 'what is stored is what was sent';

    is $nginx->post('/pub?id=' . 'c' x $long, 'x')->status, 200, "a channel id of $long bytes";
    is $nginx->post('/pub?id=' . 'c' x $long, 'x')->json->{published_messages}, 2, 'is found again';
    my $longer = 'c' x ($long + 1);
    for my $answer ($nginx->post("/pub?id=$longer", 'x'), $nginx->get("/ev?id=$longer"), $nginx->get("/poll?id=a/$longer")) {
        is $answer->status, 400, 'a longer one is refused';
        like $answer->explain, qr/too long|too large|large/i, 'with the reason' or diag $answer->explain;
    }
    my $batch = $nginx->request(POST => '/batch', headers => { 'Content-Type' => 'application/x-ndjson' },
        body => qq({"channels": ["$longer"], "text": "x"}\n{"channels": ["b"], "text": "x"}\n));
    like $batch->body, qr/"line": 1, "status": 400.*\n.*"line": 2, "status": 200/, 'in a batch, too, and that line alone';
    is $nginx->figures->{channels}, 3, 'nothing else came into being';
};

done_testing;
