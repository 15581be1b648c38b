# A full zone refuses what is new, harms nobody who is there, and is as good as new when it is empty again.

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
    push_stream_channels_path $arg_id;
    push_stream_store_messages on;
    push_stream_message_ttl 2s;
    push_stream_channel_inactivity_time 1s;
    keepalive_requests 100000;

    server {
        listen 127.0.0.1:%%PORT%%;

        location /pub { push_stream_publisher; }
        location /sub { push_stream_subscriber; }
        location /poll { push_stream_subscriber polling; }
        location /status { push_stream_channels_statistics; }
    }
}
CONF
    # nginx says so in its own words when a zone is full.
    my $is_empty = sub {
        my $zone = $nginx->figures;
        return !grep { $zone->{$_} } qw(stored_messages messages_in_trash channels_in_delete channels_in_trash);
    };
    my $fill = sub {
        my $publisher = $nginx->connect;
        for my $n (1 .. 5000) {
            my $answer = $publisher->request(POST => '/pub?id=a', body => "message $n");
            next if $answer->status == 200;
            is $answer->status, 500, 'when the zone is full a publish is refused';
            is $answer->header('Content-Length'), 0, 'with headers only';
            ok length($answer->explain // ''), 'that say why: ' . ($answer->explain // 'nothing');
            is $publisher->request(GET => '/pub?id=a')->status, 200, 'on a connection that goes on';
            return $n - 1;
        }
        return 5000;
    };

    my $keeper = $nginx->subscribe('/sub?id=a');
    my $first = $fill->();
    cmp_ok $first, '>', 100, "$first messages fit";
    cmp_ok $first, '<', 2000, 'and not any number';
    is $keeper->text_until(qr/message $first\b/), join('', map { "message $_" } 1 .. $first), 'who was there got every one of them';
    is $nginx->get('/status')->status, 200, 'statistics answer';
    like $nginx->get("/poll?id=a.b1")->body, qr/^message $first$/, 'stored messages can be read';
    is $nginx->post('/pub?id=new', 'x' x 1000)->status, 500, 'a new channel is refused';
    is $nginx->post('/pub?id=a/new', 'x' x 1000)->status, 500, 'so is a publish to several';
    is $nginx->get('/pub?id=a')->json->{published_messages}, $first, 'none of them gets it then';
    is $nginx->get('/pub?id=new')->status, 404, 'and none is created';
    my @readers = map { $nginx->subscribe('/sub?id=a') } 1 .. 50;
    is scalar(grep { $_->status == 200 } @readers), 50, 'readers of a channel that is there are let in';
    is $nginx->get('/sub?id=new')->status, 500, 'of a new one they are not';
    $_->close for @readers;

    ok wait_until(sub { $is_empty->() }, 25), 'after a while everything is gone';
    is $fill->(), $first, 'and exactly as much fits again';
    $keeper->text_until(qr/message $first\b/);
    $keeper->close;

    # A leak of any of these would show in what fits next.
    $nginx->kill_worker($_) for $nginx->worker_pids;
    $nginx->reload;
    ok wait_until(sub { $is_empty->() && $nginx->figures->{channels} == 0 }, 25), 'gone once more, also after kills and a reload';
    my $channels = sub {
        my $publisher = $nginx->connect;
        my $n = 0;
        $n++ while $n < 5000 && $publisher->request(POST => "/pub?id=c$n", body => 'x')->status == 200;
        return $n;
    };
    $first = $channels->();
    cmp_ok $first, '>', 100, "$first channels with a message each fit";
    $nginx->kill_worker(($nginx->worker_pids)[0]);
    ok wait_until(sub { $is_empty->() && $nginx->figures->{channels} == 0 }, 30), 'they go, too';
    is $channels->(), $first, 'and exactly as many fit again';
};

done_testing;
