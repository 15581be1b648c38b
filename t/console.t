# The console: its page, the figures that it asks for, and what it may do.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;

use Digest::SHA qw(sha256_base64);
use JSON::PP qw(decode_json);

my @FROM_PAGE = ('X-Nginx-PushStream-Console' => 1);

my $conf = <<'CONF';
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_shared_memory_size 8m;
    server {
        listen 127.0.0.1:%%PORT%%;
        location = /pub { push_stream_publisher admin; push_stream_channels_path $arg_id; push_stream_store_messages on; }
        location /sub { push_stream_subscriber; push_stream_channels_path $arg_id; }
        location = /console { push_stream_console; }
        location = /operators {
            push_stream_console;
            push_stream_admin_api on;
            push_stream_channels_path $arg_id;
            push_stream_store_messages on;
            push_stream_statistics_channels 5;
            push_stream_console_worker here /told/;
            push_stream_console_worker "not here" /nobody;
            push_stream_console_node b /b;
        }
        location = /watch { push_stream_console; push_stream_console_worker here /told/; push_stream_console_node b /b; }
        location = /b { internal; proxy_pass http://127.0.0.1:%%PORT%%/console; }
        location /told/ { internal; return 200 "$request_method $uri $args"; }
        location /nobody/ { internal; proxy_pass http://unix:%%DIR%%/nobody:/; }
    }
}
CONF

with_nginx $conf, sub ($nginx) {
    my $page = $nginx->get('/console');
    is $page->status, 200, 'the page';
    like $page->header('Content-Type'), qr{^text/html; charset=utf-8}, 'is HTML';
    my $html = $page->body;
    cmp_ok length $html, '<=', 60_000, length($html) . ' bytes';
    my $policy = $page->header('Content-Security-Policy');
    like $policy, qr{^default-src 'none'; .*frame-ancestors 'none'$}, 'nothing is allowed but';
    for my $tag (qw(script style)) {
        my @parts = $html =~ m{<$tag>(.*?)</$tag>}sg;
        is @parts, 1, "one $tag";
        my $hash = sha256_base64($parts[0]);
        $hash .= '=' while length($hash) % 4;
        like $policy, qr{$tag-src 'sha256-\Q$hash\E';}, "this $tag (POLICY in console.rs)";
    }
    unlike $html, qr{(?:src|href)="(?!data:,")|https?://|\bstyle="|\bon\w+="}, 'and it asks for nothing else';
    is $page->header($_->[0]), $_->[1], $_->[0] for [ 'X-Content-Type-Options', 'nosniff' ], [ 'Cache-Control', 'no-cache, no-store, must-revalidate' ];

    my $stream = $nginx->subscribe('/sub?id=news');
    $nginx->post('/pub?id=news', "message $_") for 1 .. 3;
    wait_until { decode_json($nginx->get('/console?figures')->body)->{delivered} == 3 };
    my $figures = decode_json($nginx->get('/console?figures')->body);
    is $figures->{$_->[0]}, $_->[1], "$_->[0]: $_->[1]"
        for [ admin => 0 ], [ top => 0 ], [ subscribers => 1 ], [ published => 3 ], [ stored => 3 ], [ delivered => 3 ], [ channels => 1 ], [ refused => 0 ];
    is_deeply [ grep { $_->{count} } @{ $figures->{modes} } ], [ { name => 'streaming', count => 1 } ], 'modes';
    is scalar @{ $figures->{workers} }, scalar(my @pids = $nginx->worker_pids), 'workers';
    is $figures->{fanout}[-1]{below_ms}, 0, 'the last bucket has no bound';
    my $metrics = sub ($name) { (decode_json($nginx->get('/console?figures')->body))->{$name} };
    cmp_ok $metrics->('bytes_free'), '<', $metrics->('bytes_total'), 'the zone';

    my $one = decode_json($nginx->get('/console?channel=news')->body);
    is_deeply [ @$one{qw(channel published_messages subscribers)} ], [ 'news', 3, 1 ], 'one channel';
    is $nginx->get('/console?channel=none')->status, 404, 'none';
    is $nginx->get('/console?channel=')->status, 404, 'no name';

    subtest 'read-only without the admin API' => sub {
        for my $request (
            [ GET => '/console?list' ], [ GET => '/console?id=news&messages' ], [ POST => '/console?id=news', 'x' ],
            [ DELETE => '/console?id=news&only=subscribers' ],
        ) {
            my ($method, $uri, $body) = @$request;
            my $answer = $nginx->request($method => $uri, headers => {@FROM_PAGE}, defined $body ? (body => $body) : ());
            is $answer->status, 403, "$method $uri";
            is $answer->header('X-Nginx-PushStream-Explain'), 'push_stream_admin_api is off.', 'says why';
        }
        for my $method (qw(PUT PATCH OPTIONS DELETE)) {
            my $answer = $nginx->request($method => '/console?id=news');
            is $answer->status, 405, $method;
        }
    };

    subtest 'workers and other nodes' => sub {
        my $json = $nginx->get('/watch?figures')->json;
        is_deeply [ @$json{qw(companions nodes)} ], [ [ { name => 'here' } ], [ { name => 'b' } ] ], 'the page knows their names';
        is $nginx->get('/watch?node=0')->json->{published}, 3, 'figures of another node';
        is $nginx->get('/watch?worker=0')->body, 'GET /told/stats ', 'those of a worker';
        for my $query ('worker=1', 'worker=', 'worker=-1', 'worker=x', 'node=1', 'node=18446744073709551616') {
            my $answer = $nginx->get("/watch?$query");
            is $answer->status, 404, "$query: none";
            is $answer->header('X-Nginx-PushStream-Explain'), 'The console watches no such worker or node.', 'says so';
        }
        is $nginx->get('/told/stats')->status, 404, 'nobody gets there but by the console';
        my %read_only = ('worker=0&parked' => 'GET', 'worker=0&retry=1' => 'POST', 'worker=0&retry' => 'GET', 'worker=0' => 'POST', 'node=0' => 'POST', 'worker=0&only' => 'DELETE');
        for my $query (sort keys %read_only) {
            my $answer = $nginx->request($read_only{$query} => "/watch?$query", headers => {@FROM_PAGE}, body => '');
            is $answer->status, 403, "$read_only{$query} $query";
            is $answer->header('X-Nginx-PushStream-Explain'), 'push_stream_admin_api is off.', 'says why';
            $answer = $nginx->request($read_only{$query} => "/operators?$query", body => '') if $query =~ /parked|retry/;
            is $answer->status, 403, 'or of a page of another origin';
        }
        my $ask = sub ($method, $query) { $nginx->request($method => "/operators?$query", headers => {@FROM_PAGE}, body => '') };
        is $ask->(GET => 'worker=0&parked')->body, 'GET /told/parked ', 'parked events';
        is $ask->(POST => 'worker=0&retry=a%20b%26%2F%3D')->body, 'POST /told/parked/retry a%20b%26%2F%3D', 'are retried by their id';
        is $ask->(POST => 'worker=0&retry')->body, 'POST /told/parked/retry ', 'or all';
        is $ask->(POST => 'worker=0')->status, 400, 'nothing else is asked of a worker';
        $nginx->expect_in_log(qr/connect\(\) to unix:\S+nobody failed/);
        is $nginx->get('/operators?worker=1')->status, 502, 'one that is away';
    };

    subtest 'with it' => sub {
        my $ask = sub ($method, $query, %more) { $nginx->request($method => "/operators?$query", headers => {@FROM_PAGE}, %more) };
        is decode_json($nginx->get('/operators?figures')->body)->{admin}, 1, 'the page is told';
        for my $request ([ GET => 'list' ], [ GET => 'id=news&messages' ], [ POST => 'id=news', 'x' ], [ DELETE => 'id=news&only=subscribers' ]) {
            my ($method, $query, $body) = @$request;
            my $answer = $nginx->request($method => "/operators?$query", defined $body ? (body => $body) : ());
            is $answer->status, 403, "$method $query of a page of another origin";
            is $answer->header('X-Nginx-PushStream-Explain'), 'Only the console itself may ask for this.', 'says why';
        }
        is_deeply [ map { $_->{channel} } @{ decode_json($ask->(GET => 'list&prefix=ne')->body)->{channels} } ], ['news'], 'channels';
        is_deeply [ map { $_->{text} } @{ decode_json($ask->(GET => 'id=news&messages&after=1')->body)->{messages} } ],
            [ 'message 2', 'message 3' ], 'messages';
        is $ask->(POST => 'id=news', body => 'from the console')->status, 200, 'publishing';
        my $got = '';
        $got .= $stream->chunk while $got !~ /from the console/;
        like $got, qr/from the console$/, 'reaches subscribers';
        for my $query ('id=news', 'prefix=n', 'prefix=n&only=subscribers') {
            is $ask->(DELETE => $query)->status, 405, "no deletion: $query";
        }
        is $ask->(DELETE => 'id=news&only=subscribers')->status, 200, 'subscribers are sent away';
        ok wait_until(sub { $metrics->('subscribers') == 0 }), 'and are gone';
        is decode_json($nginx->get('/operators?channel=news')->body)->{stored_messages}, 4, 'their channel stays';
        ok wait_until(sub { ($nginx->get('/operators?figures')->json->{by_bytes}[0] // {})->{channel} }, 15), 'the busiest channels';
    };
};

my $http = "%%MAIN%%\nevents {}\nhttp {\n%%HTTP%%\npush_stream_shared_memory_size 1m;\nserver { listen 127.0.0.1:%%PORT%%; location / { HERE } }\n}\n";
refuses $http =~ s/HERE/push_stream_console; push_stream_admin_api on;/r, 'push_stream_channels_path must be set.', 'the admin API wants to know which channel';
refuses $http =~ s/HERE/push_stream_publisher; push_stream_channels_path \$arg_id; push_stream_console;/r, '"push_stream_console" directive is duplicate', 'one role';
for my $directive (qw(push_stream_console_worker push_stream_console_node)) {
    my $refused = sub ($value, $reason, $name) { refuses $http =~ s/HERE/push_stream_console; $directive $value;/r, $reason, "$directive: $name" };
    refuses $http =~ s/HERE/$directive a \/a;/r, "$directive needs push_stream_console in the same location.", "$directive alone";
    $refused->('a', qq(invalid number of arguments in "$directive" directive), 'no path');
    $refused->('a a', qq("$directive" directive needs the path of a location, which begins with a slash), 'no path of a location');
    $refused->('a http://127.0.0.1/', qq("$directive" directive needs the path of a location, which begins with a slash), 'an address');
    $refused->('a /a?b', qq("$directive" directive takes a path without arguments and variables), 'arguments');
    $refused->("a /a; $directive a /b", qq("$directive" directive has this name already in this location), 'a name twice');
}
accepts $http =~ s/HERE/push_stream_console;/r, 'no channels otherwise';

done_testing;
