# push_stream_allowed_origins: three headers on every answer to browsers of other sites, also on refusals.

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
    push_stream_allowed_origins $arg_origin;

    server {
        listen 127.0.0.1:%%PORT%%;

        location /pub { push_stream_publisher; }
        location /admin { push_stream_publisher admin; }
        location /sub { push_stream_subscriber; }
        location /poll { push_stream_subscriber polling; }
        location /status { push_stream_channels_statistics; }
    }
}
CONF
    my @names = map { "Access-Control-Allow-$_" } qw(Origin Methods Headers);
    my $allowed = 'If-Modified-Since,If-None-Match,Etag,Event-Id,Event-Type,Last-Event-Id';
    my $answers = sub ($answer, $methods, $name) {
        is $answer->header($names[0]), 'http://other', "$name: origin";
        is $answer->header($names[1]), $methods, "$name: methods";
        is $answer->header($names[2]), $allowed, "$name: headers";
    };
    my $q = 'id=a&origin=http://other';
    $answers->($nginx->post("/pub?$q", 'x'), 'GET, POST, PUT', 'publish');
    $answers->($nginx->get("/pub?$q"), 'GET, POST, PUT', 'information');
    $answers->($nginx->post('/pub?id=ALL&origin=http://other', 'x'), 'GET, POST, PUT', 'a refused publish');
    $answers->($nginx->request(OPTIONS => "/pub?$q"), 'GET, POST, PUT', 'a preflight');
    $answers->($nginx->request(PATCH => "/pub?$q"), 'GET, POST, PUT', 'a method that is none');
    $answers->($nginx->get("/admin?$q"), 'GET, POST, PUT, DELETE', 'an administrator');
    $answers->($nginx->subscribe("/sub?$q")->head, 'GET', 'a stream');
    $answers->($nginx->get("/poll?$q"), 'GET', 'a poll with nothing new');
    $answers->($nginx->request(OPTIONS => "/sub?$q"), 'GET', 'a preflight of a subscriber');
    $answers->($nginx->get('/sub?origin=http://other'), 'GET', 'a refused subscriber');
    $answers->($nginx->get('/poll?id=a&origin=http%3A%2F%2Fother'), 'GET', 'the value is percent-decoded');

    for my $uri ('/pub?id=a', '/poll?id=a', "/status?$q") {
        my $answer = $nginx->get($uri);
        is $answer->header($_), undef, "$uri: no $_" for @names;
    }
};

# Several origins, and requests with cookies.
my $several = <<'CONF';
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_shared_memory_size 4m;
    push_stream_channels_path $arg_id;
    push_stream_allowed_origins "https://a.example, https://b.example";
    push_stream_cors_credentials on;

    server {
        listen 127.0.0.1:%%PORT%%;

        location /poll { push_stream_subscriber polling; }
        location /without { push_stream_subscriber polling; push_stream_cors_credentials off; }
        location /one { push_stream_subscriber polling; push_stream_allowed_origins https://a.example; }
        location /any { push_stream_subscriber polling; push_stream_allowed_origins $arg_origins; }
    }
}
CONF
with_nginx $several, sub ($nginx) {
    my $is = sub ($uri, $origin, $allowed, $credentials, $vary, $what) {
        my $answer = $nginx->get("$uri?id=a&origins=*", $origin ? (Origin => $origin) : ());
        my @got = map { $answer->header($_) } 'Access-Control-Allow-Origin', 'Access-Control-Allow-Credentials', 'Vary';
        is_deeply \@got, [ $allowed, $credentials, $vary ], $what;
    };
    $is->('/poll', 'https://a.example', 'https://a.example', 'true', 'Origin', 'the one that asks is named');
    $is->('/poll', 'https://b.example', 'https://b.example', 'true', 'Origin', 'the other one, too');
    $is->('/poll', 'https://b.example.org', undef, undef, 'Origin', 'and no third');
    $is->('/poll', undef, undef, undef, 'Origin', 'who does not say what it is is not named');
    $is->('/without', 'https://a.example', 'https://a.example', undef, 'Origin', 'cookies are a matter of their own');
    $is->('/one', 'https://b.example', 'https://a.example', 'true', undef, 'a single one is always the same');
    $is->('/any', 'https://c.example', '*', undef, undef, 'anybody may not send cookies');
};
refuses $several =~ s/"https:.*"/*/r, 'push_stream_cors_credentials needs named origins in push_stream_allowed_origins.', 'cookies from anywhere';

done_testing;
