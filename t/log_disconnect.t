# push_stream_log_disconnect: what a stream got, how long it took, and why it ended.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;

only_over_plain_http1 'the bytes are counted';
use PushStream::WebSocket;

my $conf = <<'CONF';
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_handover off;
    push_stream_shared_memory_size 8m;
    push_stream_channels_path $arg_id;
    push_stream_store_messages on;
    push_stream_log_disconnect %%DIR%%/ends.log;

    server {
        listen 127.0.0.1:%%PORT%% sndbuf=16k;
        set_real_ip_from 127.0.0.1;
        real_ip_header X-Real-IP;
        client_max_body_size 1m;
        client_body_buffer_size 1m;
        send_timeout 500ms;

        location /pub { push_stream_publisher admin; }
        location /status { push_stream_channels_statistics; }
        location /ev { push_stream_subscriber eventsource; }
        location /attached { push_stream_detach off; push_stream_subscriber; }
        location /limited { limit_rate 1m; push_stream_subscriber; }
        location /ws { push_stream_subscriber websocket; }
        location /ttl { push_stream_subscriber; push_stream_subscriber_connection_ttl 300ms; }
        location /queue { push_stream_subscriber; push_stream_subscriber_queue 100k; }
        location /stuck { push_stream_subscriber; push_stream_subscriber_queue 100m; }
        location /other { push_stream_subscriber; push_stream_log_disconnect %%DIR%%/other.log; }
        location /off { push_stream_subscriber; push_stream_log_disconnect off; }
        location /wait { push_stream_subscriber long-polling; }
    }
}
CONF

refuses $conf =~ s/(push_stream_log_disconnect) off/$1 a; $1 b/r, '"push_stream_log_disconnect" directive is duplicate', 'twice in one place';
refuses $conf =~ s/(push_stream_log_disconnect) off/$1 ""/r, '"push_stream_log_disconnect" directive wants a file or off', 'no name';
refuses $conf =~ s{(push_stream_log_disconnect) off}{$1 /nowhere/at/all}r, 'open() "/nowhere/at/all" failed', 'a file that cannot be';

with_nginx $conf, sub ($nginx) {
    my $read = sub ($name = 'ends.log') {
        open my $file, '<', $nginx->dir . "/$name" or return '';
        local $/;
        return <$file> // '';
    };
    # The line of the stream of that channel, without its time, and its duration.
    my $line = sub ($id, $name = 'ends.log') {
        my $found = wait_until { ($read->($name) =~ /^(.* channels=\Q$id\E .*)$/m)[0] } or return '(none)';
        $found =~ s/^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d // or return "(no time) $found";
        my $seconds = $found =~ s/seconds=(\d+\.\d{3}) // ? $1 : -1;
        return wantarray ? ($found, $seconds) : $found;
    };

    $nginx->post('/pub?id=a', 'old');
    my $stream = $nginx->subscribe('/ev?id=a.b1/b', 'X-Real-IP' => '192.0.2.7');
    $nginx->post('/pub?id=b', 'live');
    $stream->text_until(qr/live/);
    sleep 0.5;
    is $read->(), '', 'nothing while it lasts';
    $stream->close;
    my ($text, $seconds) = $line->('a/b');
    # 11 + 12 bytes of text, and 5 of framing for each.
    is $text, 'client=192.0.2.7 mode=eventsource channels=a/b messages=2 bytes=33 reason=client_closed', 'EventSource, closed by its client'
        or diag $read->();
    cmp_ok $seconds, '>=', 0.5, 'after that time';
    cmp_ok $seconds, '<', 30, 'and not more';

    for my $case ([ attached => 14 ], [ limited => 9 ]) {
        my ($name, $bytes) = @$case;
        my $client = $nginx->subscribe("/$name?id=$name");
        $nginx->post("/pub?id=$name", 'something');
        $client->chunk;
        $client->close;
        like $line->($name), qr/^client=127.0.0.1 mode=streaming channels=$name messages=1 bytes=$bytes reason=client_closed$/, "with its request: $name";
    }
    my $deleted = $nginx->subscribe('/ev?id=gone');
    $nginx->delete('/pub?id=gone');
    $deleted->chunks_to_end;
    like $line->('gone'), qr/messages=1 .* reason=channel_deleted$/, 'a deleted channel';
    $nginx->subscribe('/ttl?id=short')->rest;
    ($text, $seconds) = $line->('short');
    like $text, qr/messages=0 .* reason=ttl$/, 'time is up';
    cmp_ok $seconds, '>=', 0.3, 'after it';

    my $socket = PushStream::WebSocket->new($nginx, '/ws?id=polite');
    $socket->send(PushStream::WebSocket::CLOSE, pack 'n', 1000);
    $socket->client->rest;
    like $line->('polite'), qr/mode=websocket .* reason=client_close_frame$/, 'a WebSocket says goodbye';
    PushStream::WebSocket->new($nginx, '/ws?id=rude')->send(PushStream::WebSocket::TEXT, 'x', rsv => 0x40)->client->rest;
    like $line->('rude'), qr/reason=protocol_error$/, 'or breaks the rules';
    $nginx->subscribe('/ev?id=s%20p%0Aq')->close;
    like $line->('s\x20p\x0Aq'), qr/reason=client_closed$/, 'an id cannot forge a line';

    my @slow = map {
        my $client = $nginx->connect(receive_buffer => 4096);
        $client->send_request(GET => "/$_?id=x/$_");
        $client->head;
        $client;
    } qw(queue stuck);
    $nginx->post('/pub?id=x', 'x' x 90_000) for 1 .. 50;
    like $line->('x/queue'), qr/reason=too_slow$/, 'too slow';
    like $line->('x/stuck'), qr/reason=timed_out$/, 'stuck';

    $nginx->subscribe('/other?id=o')->close;
    like $line->('o', 'other.log'), qr/mode=streaming channels=o/, 'a file of its own';
    $nginx->subscribe('/off?id=off')->close;
    my $poll = $nginx->open(GET => '/wait?id=poll');
    ok wait_until { ($nginx->figures('poll')->{subscribers} // 0) == 1 }, 'a long poll';
    $nginx->post('/pub?id=poll', 'x');
    $poll->response;

    rename $nginx->dir . '/ends.log', $nginx->dir . '/old.log';
    $nginx->signal('USR1');
    ok wait_until { -e $nginx->dir . '/ends.log' }, 'USR1 opens the file again';
    # Each worker has to.
    ok wait_until { $nginx->subscribe('/ev?id=new')->close; $read->() =~ /channels=new / }, 'and lines go there';
    unlike $read->() . $read->('old.log'), qr/channels=(?:off|poll) /, 'nothing of what is no stream, or off';

    my $last = $nginx->subscribe('/ev?id=last');
    my $reloaded = $nginx->subscribe('/ev?id=reloaded');
    $nginx->reload;
    like $line->('reloaded'), qr/reason=worker_exit$/, 'a reload';
    $last->rest;
    my $final = $nginx->subscribe('/ev?id=final');
    ok wait_until { ($nginx->figures('final')->{subscribers} // 0) == 1 }, 'another';
    $nginx->stop;
    like $line->('final'), qr/reason=worker_exit$/, 'and a stop';
};

done_testing;
