# A configuration as it is found: polls from pages of another domain, by JSONP and by CORS.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;

with_nginx <<'CONF', sub ($nginx) {
%%MAIN%%
events { worker_connections 1024; }
http {
    %%HTTP%%
    push_stream_shared_memory_size         16m;
    push_stream_longpolling_connection_ttl 2s;
    push_stream_timeout_with_body          on;

    map $http_origin $allowed {
        default "";
        "~^https?://(?:[a-z]+\.)?example\.org$" $http_origin;
    }
    server {
        listen 127.0.0.1:%%PORT%%;
        server_name push.example.org;

        location /pub {
            push_stream_publisher;
            push_stream_channels_path   $arg_id;
            push_stream_store_messages  on;
            push_stream_allowed_origins $allowed;
        }
        # Named: the regular expression in the map forgets numbers.
        location ~ ^/lp/(?<channels>.*) {
            push_stream_subscriber                  long-polling;
            push_stream_channels_path               $channels;
            push_stream_message_template            '{"id":~id~,"channel":"~channel~","text":"~text~","tag":"~tag~","time":"~time~","eventid":"~event-id~"}';
            push_stream_last_received_message_time  $arg_time;
            push_stream_last_received_message_tag   $arg_tag;
            push_stream_last_event_id               $arg_eventid;
            push_stream_allowed_origins             $allowed;
        }
    }
}
CONF
    my $page = { Origin => 'https://www.example.org' };
    my $preflight = $nginx->request(OPTIONS => '/pub?id=a', headers => { %$page, 'Access-Control-Request-Method' => 'POST' });
    is join('|', $preflight->status, map { $preflight->header("Access-Control-Allow-$_") } qw(Origin Methods)),
        '200|https://www.example.org|GET, POST, PUT', 'a page of ours may publish';
    is $nginx->request(OPTIONS => '/pub?id=a', headers => { Origin => 'https://evil.example' })->header('Access-Control-Allow-Origin'),
        undef, 'one of others may not';
    is $nginx->post('/pub?id=/a', 'text', %$page)->json->{infos}[1]{channel}, 'a', 'it publishes as the old client does';

    my $call = 'PushStreamManager_0_onmessage_1290000000000';
    my $answer = $nginx->get("/lp/a.b1?callback=$call&tag=&time=&eventid=&_=1");
    is $answer->header('Content-Type'), 'application/javascript', 'a script';
    my ($json) = $answer->body =~ /^\Q$call\E\((\[.*\])\);$/ or fail 'that calls back';
    my $message = JSON::PP::decode_json($json)->[0];
    is "$message->{channel} $message->{text}", 'a text', 'with what is stored';

    my $query = join '&', "tag=$message->{tag}", 'time=' . $message->{time} =~ s/ /%20/gr, 'eventid=';
    my $waiting = $nginx->open(GET => "/lp/a?callback=$call&$query");
    ok wait_until { $nginx->get('/pub?id=a')->json->{subscribers} == 1 }, 'from there it waits';
    $nginx->post('/pub?id=a', 'more', 'Event-Id' => 'e2');
    like $waiting->response->body, qr/^\Q$call\E\(\[\{"id":2,.*"text":"more".*"eventid":"e2"\}\]\);$/, 'for the next one';
    is $nginx->get("/lp/a?callback=$call&tag=&time=&eventid=e2&x=" . time)->body,
        qq($call([{"id":-3,"channel":"","text":"Timed out","tag":"0","time":"Thu, 01 Jan 1970 00:00:00 GMT","eventid":""}]);),
        'a time-out is a call as well: a script cannot answer 304';
    my $cors = $nginx->get('/lp/a.b1', %$page);
    is $cors->header('Access-Control-Allow-Origin'), 'https://www.example.org', 'or by CORS';
    like $cors->body, qr/^\{"id":2,/, 'without a call';
};

done_testing;
