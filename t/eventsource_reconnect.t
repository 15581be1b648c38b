# A browser that was cut off asks with Last-Event-Id, and misses nothing.

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

        location /pub { push_stream_publisher admin; }
        location /ev { push_stream_subscriber eventsource; }
    }
}
CONF
    my $id = 0;
    my $publish = sub ($count) {
        for (1 .. $count) {
            $id++;
            $nginx->post('/pub?id=a', "message $id", 'Event-Id' => "e$id");
        }
    };
    my $reads = sub ($events, $first, $last, $name) {
        my @got = map { $events->event->{data} } $first .. $last;
        is "@got", join(' ', map { "message $_" } $first .. $last), $name;
    };

    my $events = $nginx->subscribe('/ev?id=a');
    $publish->(3);
    $reads->($events, 1, 3, 'a browser reads three messages');
    $events->reset;

    $publish->(5);
    $events = $nginx->subscribe('/ev?id=a', 'Last-Event-Id' => 'e3');
    $reads->($events, 4, 8, 'after a break it gets exactly what came meanwhile');
    $publish->(2);
    $reads->($events, 9, 10, 'then it goes on live');

    $events = $nginx->subscribe('/ev?id=a', 'last-event-id' => 'e10');
    ok $events->chunk eq ": \n" && $events->is_quiet, 'who has everything gets nothing again';
    $events = $nginx->subscribe('/ev?id=a', 'Last-Event-Id' => 'unknown');
    ok $events->chunk eq ": \n" && $events->is_quiet, 'an unknown id gives nothing';
    $events = $nginx->subscribe('/ev?id=a');
    ok $events->chunk eq ": \n" && $events->is_quiet, 'no id gives nothing';
    $events = $nginx->subscribe('/ev?id=a.b1', 'Last-Event-Id' => 'e3');
    $reads->($events, 10, 10, 'a backtrack in the path wins over the id');

    # Nobody may fall between replay and live: a client that comes back while messages pour in.
    for my $round (1 .. 20) {
        my $last = $id;
        my $publisher = $nginx->connect;
        my $send = sub ($n) { $publisher->send_request(POST => '/pub?id=a', headers => { 'Event-Id' => "e$n" }, body => "message $n") };
        $send->(++$id) for 1 .. 10;
        my $client = $nginx->open(GET => '/ev?id=a', headers => { 'Last-Event-Id' => "e$last" });
        $send->(++$id) for 1 .. 10;
        $publisher->response for 1 .. 20;
        my @got = map { $client->event->{data} } 1 .. 20;
        my @expected = map { "message $_" } $last + 1 .. $last + 20;
        is "@got", "@expected", "round $round: each message once, in order" or last;
    }
};

done_testing;
