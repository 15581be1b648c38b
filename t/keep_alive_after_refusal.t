# The body of a refused request is never taken for the next request of its connection.

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
    client_body_buffer_size 1k;

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
    my $smuggled = "POST /pub?id=smuggled HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nevil";
    my %all = ('If-Modified-Since' => 'Thu, 01 Jan 1970 00:00:00 GMT');
    $nginx->post('/pub?id=known', 'known');

    my @refused = (
        [ POST => '/pub', 400 ],
        [ POST => '/pub?id=ALL', 403 ],
        [ POST => '/pub?id=a*', 403 ],
        [ PUT => '/pub?id=ALL', 403 ],
        [ DELETE => '/pub?id=known', 405 ],
        [ PATCH => '/pub?id=known', 405 ],
        [ DELETE => '/admin?id=nobody', 404 ],
        [ GET => '/pub?id=nobody', 404 ],
        [ GET => '/pub?id=known', 200 ],
        [ OPTIONS => '/pub?id=known', 200 ],
        [ POST => '/sub?id=known', 405 ],
        [ OPTIONS => '/sub?id=known', 200 ],
        [ GET => '/sub', 400 ],
        [ GET => '/sub?id=ALL', 403 ],
        [ POST => '/poll?id=known', 405 ],
        [ GET => '/poll?id=known', 304 ],
        [ GET => '/poll?id=known', 200, %all ],
        [ POST => '/status', 405 ],
        [ GET => '/status', 200 ],
        [ GET => '/status?id=nobody', 404 ],
    );
    my %bodies = (
        'a short body' => [ { 'Content-Length' => length $smuggled }, $smuggled ],
        'a body larger than the buffer' => [ { 'Content-Length' => 50 * length $smuggled }, $smuggled x 50 ],
        'a chunked body' =>
            [ { 'Transfer-Encoding' => 'chunked' }, sprintf "%x\r\n%s\r\n0\r\n\r\n", length $smuggled, $smuggled ],
    );

    for my $case (@refused) {
        my ($method, $uri, $status, %headers) = @$case;
        for my $kind (sort keys %bodies) {
            my ($framing, $body) = @{ $bodies{$kind} };
            my $client = $nginx->connect;
            my $answer = $client->request($method => $uri, headers => { %headers, %$framing }, body => $body);
            is $answer->status, $status, "$method $uri with $kind: $status";
            my $next = $client->request(GET => '/pub?id=known');
            is $next->status, 200, 'the next answer is that of the next request';
            is $next->json->{published_messages}, 1, 'in full';
        }
    }

    # The body comes after the answer was due.
    for my $case ([ POST => '/pub?id=ALL', 403 ], [ POST => '/sub?id=a', 405 ], [ POST => '/status', 405 ]) {
        my ($method, $uri, $status) = @$case;
        my $client = $nginx->connect;
        $client->send("$method $uri HTTP/1.1\r\nHost: x\r\nContent-Length: " . length($smuggled) . "\r\n\r\n");
        sleep 0.05;
        $client->send($smuggled);
        is $client->response->status, $status, "$method $uri with a late body: $status";
        is $client->request(GET => '/pub?id=known')->status, 200, 'the connection goes on';
    }

    is $nginx->get('/pub?id=smuggled')->status, 404, 'nothing was smuggled in';
    is $nginx->get('/pub?id=known')->json->{published_messages}, 1, 'anywhere';
};

done_testing;
