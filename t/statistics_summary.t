# The figures of the whole zone.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;

use JSON::PP ();

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

        location /pub { push_stream_publisher admin; }
        location /sub { push_stream_subscriber; }
        location /status { push_stream_channels_statistics; }
    }
}
CONF
    my $number = qr/\d+/;
    my $time = qr/20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d/;
    my $worker_json = qr/\{"pid": "$number", "subscribers": $number, "uptime": $number\}/;
    my $workers = $nginx->worker_count;

    $nginx->post('/pub?id=a', 'x') for 1 .. 3;
    $nginx->post('/pub?id=b/c', 'x');
    my @streams = map { $nginx->subscribe('/sub?id=a/b') } 1 .. 3;

    my $answer = $nginx->get('/status');
    is $answer->status, 200, 'without an id it is the summary';
    is $answer->header('Content-Type'), 'application/json', 'in JSON';
    ok defined $answer->header("X-Nginx-PushStream-$_"), "with $_" for qw(Tag Commit);
    like $answer->body, qr/^\{"hostname": "[^"]+", "time": "$time", "channels": 3, "wildcard_channels": 0, "published_messages": 5, "stored_messages": 5, "messages_in_trash": 0, "channels_in_delete": 0, "channels_in_trash": 0, "subscribers": 3, "uptime": $number, "by_worker": \[\r\n$worker_json(?:,\r\n$worker_json){@{[ $workers - 1 ]}}\r\n\]\}\r\n$/,
        'in exactly this form';
    my $figures = $answer->json;
    is_deeply [ sort map { $_->{pid} } @{ $figures->{by_worker} } ], [ sort $nginx->worker_pids ], 'each worker by its pid';
    my $sum = 0;
    $sum += $_->{subscribers} for @{ $figures->{by_worker} };
    is $sum, 3, 'their subscribers are all there are';

    my $text = sub ($accept) { $nginx->get('/status', Accept => $accept)->body };
    my @names = qw(
        hostname time channels wildcard_channels published_messages stored_messages messages_in_trash
        channels_in_delete channels_in_trash subscribers uptime
    );
    my $value = qr/[^\r\n<,]+/;
    my $plain = join '', map { "$_: $value\\r\\n" } @names;
    my $worker_plain = qr/  pid: $number\r\n  subscribers: $number\r\n  uptime: $number/;
    like $text->('text/plain'), qr/^${plain}by_worker:\r\n$worker_plain(?:,\r\n$worker_plain){@{[ $workers - 1 ]}}\r\n$/, 'plain';
    my $yaml = join '', map { "  $_: $value\\r\\n" } @names;
    like $text->('application/yaml'),
        qr/^$yaml  by_worker:\r\n(?:   -\r\n    pid: $number\r\n    subscribers: $number\r\n    uptime: $number\r\n){$workers}$/,
        'YAML';
    my $xml = join '', map { "  <$_>$value<\\/$_>\\r\\n" } @names;
    my $worker_xml = qr/<worker>\r\n  <pid>$number<\/pid>\r\n  <subscribers>$number<\/subscribers>\r\n  <uptime>$number<\/uptime>\r\n<\/worker>\r\n/;
    like $text->('application/xml'),
        qr/^<\?xml version="1.0" encoding="UTF-8" \?>\r\n<infos>\r\n$xml  <by_worker>(?:$worker_xml){$workers}<\/by_worker>\r\n<\/infos>\r\n$/,
        'XML';

    $_->close for @streams;
    ok wait_until { $nginx->figures->{subscribers} == 0 }, 'who left is not counted';

    for my $method (qw(POST PUT DELETE HEAD OPTIONS)) {
        my $refused = $nginx->request($method => '/status');
        is $refused->status, 405, "$method is not for statistics";
        is $refused->header('Allow'), 'GET', 'GET is';
    }
};

done_testing;
