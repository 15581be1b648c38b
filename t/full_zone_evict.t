# With push_stream_on_full evict a full zone makes room: the oldest goes, the newest is always there.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;

with_nginx <<'CONF', sub ($nginx) {
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_shared_memory_size 128k;
    push_stream_on_full evict;
    push_stream_channels_path $arg_id;
    push_stream_store_messages on;
    keepalive_requests 100000;

    server {
        listen 127.0.0.1:%%PORT%%;

        location /pub { push_stream_publisher; client_max_body_size 2m; }
        location /sub { push_stream_subscriber; }
        location /poll { push_stream_subscriber polling; }
        location /status { push_stream_channels_statistics; }
    }
}
CONF
    my %all = ('If-Modified-Since' => 'Thu, 01 Jan 1970 00:00:00 GMT');
    my $stream = $nginx->subscribe('/sub?id=a');
    my $publisher = $nginx->connect;
    my $publish = sub ($uri, $body) { $publisher->request(POST => $uri, body => $body)->status };

    my ($read, $total) = ('', 3000);
    my @refused;
    for my $n (1 .. $total) {
        push @refused, $n if $publish->('/pub?id=a', "<$n>") != 200;
        # A reader that keeps up.
        $read .= $stream->text_until(qr/<$n>/) if $n % 50 == 0;
    }
    is "@refused", '', "$total messages are accepted, far more than fit";
    is $read, join('', map { "<$_>" } 1 .. $total), 'a subscriber that keeps up gets all of them';

    my $stored = $nginx->get('/poll?id=a', %all)->body;
    my $count = () = $stored =~ /</g;
    is $stored, join('', map { "<$_>" } $total - $count + 1 .. $total), "the newest $count are stored";
    cmp_ok $count, '>', 100, 'as many as fit';

    is scalar(grep { $publish->("/pub?id=idle$_", 'x') != 200 } 1 .. 2000), 0, '2000 channels are accepted too';
    is $publish->('/pub?id=a', 'after all'), 200, 'a channel with subscribers is still there';
    is $stream->chunk, 'after all', 'and delivers';
    is $nginx->figures('a')->{published_messages}, $total + 1, 'it was never lost';
    is $publish->('/pub?id=b', 'y' x 60_000), 200, 'a message of half the zone';
    is length $nginx->get('/poll?id=b.b1')->body, 60_000, 'is stored';

    my $impossible = $nginx->post('/pub?id=a', 'z' x 1_000_000);
    is $impossible->status, 507, 'what is larger than the zone cannot be stored';
    ok $impossible->header('Retry-After'), 'try again later';
    is $impossible->header('Content-Length'), 0, 'nothing else is said';
    is $publish->('/pub?id=a', 'small'), 200, 'what fits is accepted again';
    is $stream->chunk, 'small', 'and delivered';
    ok $nginx->wait_for_log(qr/push stream: shared zone is full, [1-9]\d* messages evicted \(0 of them undelivered\)/), 'the log says so';
};

done_testing;
