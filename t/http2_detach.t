# push_stream_detach over HTTP/2: a stream gives its request back to nginx, and a stub is left in its place. Frames, windows,
# RST_STREAM and GOAWAY are nginx's as before.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;
use PushStream::Frames;

only_over_http1 'it speaks HTTP/2 by itself';

sub slurp ($file) { open my $in, '<', $file or return ''; local $/; return scalar <$in> }

my $guards = PushStream::Nginx->has_module('http_auth_request');
my $guarded = $guards ? '
        location /guarded { auth_request /auth; push_stream_subscriber eventsource; }
        location /refused { auth_request /deny; push_stream_subscriber eventsource; error_page 403 = @no; }' : '';

with_nginx <<'CONF' =~ s/%GUARDED%/$guarded/r, sub ($nginx) {
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_shared_memory_size 4m;
    push_stream_channels_path $arg_id;
    push_stream_header_template "head\n";
    push_stream_footer_template "foot";
    limit_conn_zone $host zone=streams:1m;
    log_format short '$status $uri $server_protocol $http_x_who $sent_http_content_type';
    access_log %%DIR%%/short.log short;

    server {
        listen 127.0.0.1:%%PORT%%;
        access_log off;
        location /pub { push_stream_publisher admin; client_max_body_size 2m; }
        location /status { push_stream_channels_statistics; }
        location = /yes { return 204; }
    }
    server {
        listen unix:%%DIR%%/h2.sock http2;
        location /ev { push_stream_subscriber eventsource; }
        location /stream { push_stream_subscriber; push_stream_ping_message_interval 1s; }
        location /ttl { push_stream_subscriber eventsource; push_stream_subscriber_connection_ttl 300ms; }
        location /off { push_stream_detach off; push_stream_subscriber eventsource; }
        location /counted { limit_conn streams 2; push_stream_subscriber eventsource; }
        location /zip { gzip on; gzip_min_length 1; gzip_types text/event-stream; push_stream_subscriber eventsource; }
        location /small { push_stream_subscriber eventsource; push_stream_subscriber_queue 40k; push_stream_log_disconnect %%DIR%%/gone.log; }
        location /stuck { push_stream_subscriber eventsource; send_timeout 300ms; }
        %GUARDED%
        location = /auth { internal; access_log off; proxy_pass http://127.0.0.1:%%PORT%%/yes; }
        location = /deny { internal; access_log off; return 403; }
        location @no { return 200 no; }
        location /ok { return 200 ok; }
    }
}
CONF
    $nginx->expect_in_log(qr/client (?:timed out|canceled stream)|slow subscriber closed/);
    my $http2 = sub (%settings) { PushStream::Frames->new($nginx->dir . '/h2.sock', %settings) };
    my $log = sub { slurp($nginx->dir . '/short.log') };
    my $lines = sub ($uri) { scalar(() = $log->() =~ /^\d+ $uri /mg) };
    my $subscribers = sub ($id) { $nginx->figures($id)->{subscribers} // 0 };

    subtest 'streams of one connection give their requests back' => sub {
        my $client = $http2->();
        my @streams = map { $client->get('/ev?id=a', headers => { 'x-who' => "reader$_" }) } 1 .. 4;
        ok $client->has($_, ": head\n"), 'the header' for @streams;
        for my $reader (1 .. 4) {
            ok wait_until { $log->() =~ m{^200 /ev HTTP/2\.0 reader$reader text/event-stream}m }, 'logged, with its own variables';
        }
        is $subscribers->('a'), 4, 'and counted';
        $nginx->post('/pub?id=a', "text $_") for 1 .. 5;
        my $all = ": head\n" . join '', map { "data: text $_\n\n" } 1 .. 5;
        ok $client->has($_, $all), 'each gets all messages, in order' for @streams;
        $client->frame(PushStream::Frames::PING, 0, 0, 'pingpong');
        ok $client->until_true(sub { ($client->{pong} // '') eq 'pingpong' }), 'PING is answered';

        my $reset = shift @streams;
        $client->frame(PushStream::Frames::RST_STREAM, 0, $reset, pack 'N', 8);
        ok wait_until { $subscribers->('a') == 3 }, 'RST_STREAM ends one';
        $nginx->post('/pub?id=a', 'later');
        ok $client->has($_, "${all}data: later\n\n"), 'the others go on' for @streams;
        is $client->{data}{$reset}, $all, 'and it gets nothing more';

        my $other = $client->get('/ok');
        ok $client->has($other, 'ok'), 'the connection serves other requests, too';
        $nginx->delete('/pub?id=a');
        for my $stream (@streams) {
            ok $client->until_true(sub { $client->{ended}{$stream} }), 'END_STREAM';
            is $client->{data}{$stream}, "${all}data: later\n\ndata: Channel deleted\n\n: foot\n", 'behind notice and footer';
        }
        is scalar(keys %{ $client->{reset} }), 0, 'nothing was reset by nginx';
        my $after = $client->get('/ok');
        ok $client->has($after, 'ok'), 'and after all of them';
        is $lines->('/ev'), 4, 'one line for each in the access log';
    };

    subtest 'windows' => sub {
        # SETTINGS_INITIAL_WINDOW_SIZE.
        my $client = $http2->(4 => 100);
        my ($narrow, $other) = map { $client->get("/ev?id=w$_") } 1 .. 2;
        ok $client->has($narrow, ": head\n"), 'a stream';
        ok $client->has($other, ": head\n"), 'another one';
        ok wait_until { $lines->('/ev') == 6 }, 'both have given their requests back';
        my $message = 'm' x 5000;
        $nginx->post('/pub?id=w1', $message);
        ok $client->until_true(sub { length $client->{data}{$narrow} == 100 }), 'as much as the window allows';
        $nginx->post('/pub?id=w2', 'short');
        ok $client->has($other, ": head\ndata: short\n\n"), 'the other one is not held up';
        $nginx->post('/pub?id=w1', 'behind');
        my $all = ": head\ndata: $message\n\ndata: behind\n\n";
        for my $step (1, 399, 1500, 10_000) {
            my $before = length $client->{data}{$narrow};
            $client->frame(PushStream::Frames::WINDOW_UPDATE, 0, $narrow, pack 'N', $step);
            my $want = $before + $step < length $all ? $before + $step : length $all;
            ok $client->until_true(sub { length $client->{data}{$narrow} >= $want }), "$step bytes more";
            is length $client->{data}{$narrow}, $want, 'and no more than that';
        }
        is $client->{data}{$narrow}, $all, 'all in order';
        # The window of all streams may change under a waiting one.
        $nginx->post('/pub?id=w2', 'n' x 500);
        ok $client->until_true(sub { length $client->{data}{$other} == 100 }), 'the next window is used up';
        $client->frame(PushStream::Frames::SETTINGS, 0, 0, pack 'nN', 4, 65_535);
        ok $client->has($other, ": head\ndata: short\n\ndata: " . 'n' x 500 . "\n\n"), 'a setting opens it';

        my $wide = $http2->(4 => 1_000_000);
        my @both = map { $wide->get('/ev?id=c') } 1 .. 2;
        ok $wide->has($_, ": head\n"), 'a stream' for @both;
        $nginx->post('/pub?id=c', 'c' x 50_000);
        my $sum = sub { my $bytes = 0; $bytes += length $wide->{data}{$_} for @both; $bytes };
        ok $wide->until_true(sub { $sum->() == 65_535 }), "the connection's window";
        $wide->frame(PushStream::Frames::WINDOW_UPDATE, 0, 0, pack 'N', 200_000);
        ok $wide->has($_, ": head\ndata: " . 'c' x 50_000 . "\n\n"), 'opens for both' for @both;
        $nginx->post('/pub?id=c', 'd' x 300_000);
        $wide->frame(PushStream::Frames::WINDOW_UPDATE, 0, 0, pack 'N', 600_000);
        ok $wide->has($_, ": head\ndata: " . 'c' x 50_000 . "\n\ndata: " . 'd' x 300_000 . "\n\n"), 'a large message' for @both;
    };

    subtest 'those that do not read' => sub {
        my $client = $http2->(4 => 1000);
        my $slow = $client->get('/small?id=s');
        ok $client->has($slow, ": head\n"), 'a stream';
        ok wait_until { $lines->('/small') == 1 }, 'without its request';
        for (1 .. 100) {
            $nginx->post('/pub?id=s', 'x' x 2000);
            last if !$subscribers->('s');
        }
        ok $client->until_true(sub { defined $client->{reset}{$slow} }), 'is reset when its queue is full';
        like slurp($nginx->dir . '/gone.log'), qr/mode=eventsource channels=s .*reason=too_slow/, 'so says the log of disconnects'
            if wait_until { -s $nginx->dir . '/gone.log' };
        my $stuck = $client->get('/stuck?id=t');
        ok $client->has($stuck, ": head\n"), 'another one';
        $nginx->post('/pub?id=t', 'x' x 2000);
        ok $client->until_true(sub { defined $client->{reset}{$stuck} }), 'is reset after send_timeout';
        ok wait_until { $subscribers->('t') == 0 }, 'and gone';
        my $after = $client->get('/ok');
        ok $client->has($after, 'ok'), 'their connection goes on';
    };

    subtest 'pings and time limits' => sub {
        my $client = $http2->();
        my ($stream, $ttl) = ($client->get('/stream?id=p'), $client->get('/ttl?id=p'));
        ok $client->has($stream, "head\n "), 'a ping';
        ok $client->until_true(sub { $client->{ended}{$ttl} }), 'an end after its time';
        is $client->{data}{$ttl}, ": head\n: foot\n", 'with the footer';
        close $client->{socket};
        ok wait_until { $subscribers->('p') == 0 }, 'a connection that is closed takes its streams with it';
    };

    subtest 'who needs the request keeps it' => sub {
        my $client = $http2->();
        my %attached = (off => {}, counted => {}, zip => { 'accept-encoding' => 'gzip' });
        for my $name (sort keys %attached) {
            my $stream = $client->get("/$name?id=k$name", headers => $attached{$name});
            ok $client->until_true(sub { length($client->{data}{$stream} // '') }), "$name: the header";
            my $length = length $client->{data}{$stream};
            $nginx->post("/pub?id=k$name", 'text');
            ok $client->until_true(sub { length $client->{data}{$stream} > $length }), 'a message';
            is $lines->("/$name"), 0, 'not logged';
            $nginx->delete("/pub?id=k$name");
            ok $client->until_true(sub { $client->{ended}{$stream} }), 'until its end';
            ok wait_until { $lines->("/$name") == 1 }, 'logged then';
        }
        my @two = map { $client->get('/counted?id=k') } 1 .. 2;
        ok $client->has($_, ": head\n"), 'one of two' for @two;
        my $third = $client->get('/counted?id=k');
        ok $client->until_true(sub { $client->{ended}{$third} }), 'limit_conn still counts';
        $client->frame(PushStream::Frames::RST_STREAM, 0, $two[0], pack 'N', 8);
        ok wait_until { $subscribers->('k') == 1 }, 'one goes';
        my $fourth = $client->get('/counted?id=k');
        ok $client->has($fourth, ": head\n"), 'and leaves its place';

        if ($guards) {
            my $behind = $client->get('/guarded?id=g');
            ok $client->has($behind, ": head\n"), 'behind a subrequest';
            ok wait_until { $lines->('/guarded') == 1 }, 'it is given back';
            $nginx->post('/pub?id=g', 'text');
            ok $client->has($behind, ": head\ndata: text\n\n"), 'and served';
            my $refused = $client->get('/refused?id=g');
            ok $client->has($refused, 'no'), 'error_page';
        }

        my $sending = $client->get('/ev?id=b', open => 1);
        ok $client->has($sending, ": head\n"), 'a request whose body is to come';
        $nginx->post('/pub?id=b', 'early');
        ok $client->has($sending, ": head\ndata: early\n\n"), 'is served';
        $client->frame(PushStream::Frames::DATA, 1, $sending, 'body');
        $nginx->post('/pub?id=b', 'late');
        ok $client->has($sending, ": head\ndata: early\n\ndata: late\n\n"), 'then and later';
    };

    subtest 'reload and quit' => sub {
        my $client = $http2->();
        my @streams = map { $client->get("/ev?id=r$_") } 1 .. 3;
        ok $client->has($_, ": head\n"), 'a stream' for @streams;
        $nginx->signal('HUP');
        ok $client->until_true(sub { $client->{goaway} }), 'GOAWAY';
        for my $stream (@streams) {
            ok $client->until_true(sub { $client->{ended}{$stream} }), 'and the end of the stream';
            is $client->{data}{$stream}, ": head\n: foot\n", 'with its footer';
        }
        ok $client->until_true(sub { $client->{closed} }), 'then of the connection';
        close $client->{socket};
        my $again = $http2->();
        my $stream = $again->get('/ev?id=q');
        ok $again->has($stream, ": head\n"), 'the new workers serve';
        $nginx->signal('QUIT');
        ok $again->until_true(sub { $again->{ended}{$stream} }), 'until they quit';
        close $again->{socket};
        is $nginx->wait_for_exit, 0, 'without an alert';
    };
};

done_testing;
