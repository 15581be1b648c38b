# Clients that mean ill or are broken: slow senders, endless senders, liars about lengths, peers that vanish without a word, crowds that
# never read. None of them harms anybody else, and what they can cost is bounded.
#
# TEST_CROWD: how many connections never read; default 400.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;

only_over_plain_http1 'its clients speak nothing else';
use PushStream::WebSocket;

use Socket qw(SOL_SOCKET);

my $crowd = $ENV{TEST_CROWD} || 400;

# From now on the kernel drops all that comes for this socket, as if the cable were cut: a filter that accepts no byte.
sub vanish ($client) {
    state $program = pack 'S C C L', 0x06, 0, 0, 0;
    my $so_attach_filter = 26;
    setsockopt $client->socket, SOL_SOCKET, $so_attach_filter, pack('S x6 J', 1, unpack 'J', pack 'P', $program)
        or die "cannot attach a filter: $!";
}

sub private_kib ($nginx) {
    my $most = 0;
    for my $pid ($nginx->worker_pids) {
        open my $file, '<', "/proc/$pid/smaps_rollup" or next;
        my ($kib) = map { /^Private_Dirty:\s+(\d+)/ } <$file>;
        $most = $kib if $kib > $most;
    }
    return $most;
}

# Under a sanitizer nothing freed is used again.
my $memory_bound = sub ($kib) { return $ENV{TEST_SANITIZER} ? 1 << 20 : $kib };

my $conf = <<'CONF';
%%MAIN%%
worker_rlimit_nofile %%CONNECTIONS%%;
events { worker_connections %%CONNECTIONS%%; }
http {
    %%HTTP%%
    push_stream_shared_memory_size 4m;
    push_stream_on_full evict;
    push_stream_store_messages on;
    push_stream_max_messages_stored_per_channel 5;
    push_stream_channels_path $arg_id;
    push_stream_subscriber_queue 64k;
    client_header_timeout 1s;
    client_body_timeout 1s;
    client_max_body_size 1m;
    keepalive_requests 100000;

    server {
        listen 127.0.0.1:%%PORT%% sndbuf=16k backlog=2048;

        location /pub { push_stream_publisher admin; }
        location /sub { push_stream_subscriber; }
        location /ev {
            push_stream_subscriber eventsource; push_stream_ping_message_interval 500ms; push_stream_dead_peer_timeout 1s; }
        location /quiet { push_stream_subscriber eventsource; push_stream_dead_peer_timeout 1s; }
        location /ws { push_stream_subscriber websocket; push_stream_dead_peer_timeout 1s; }
        location /wspub {
            push_stream_subscriber websocket; push_stream_websocket_allow_publish on;
            push_stream_websocket_max_message_size 1m; }
        location /patient { push_stream_subscriber eventsource; push_stream_ping_message_interval 500ms; }
        location /status { push_stream_channels_statistics; }
    }
}
CONF

$conf =~ s/%%CONNECTIONS%%/$crowd + 2000/ge;

with_nginx $conf, sub ($nginx) {
    my $works = sub ($when) {
        my $start = time;
        my $stream = $nginx->subscribe('/sub?id=control');
        is $nginx->post('/pub?id=control', "while $when")->status, 200, "$when: publishing works";
        is $stream->chunk, "while $when", "$when: and delivery";
        within time - $start, 0.5, "$when: at once";
        $stream->close;
    };
    my $before = private_kib($nginx);

    # --- peers that vanish ---
    {
        my @followed = (
            [ '/ev?id=dead', 'its pings are not acknowledged' ],
            [ '/ws?id=dead', 'nor messages over a WebSocket' ],
            [ '/quiet?id=dead', 'nor those without a ping' ],
        );
        my @gone = map { $nginx->subscribe($_->[0], $_->[0] =~ /ws/ ? PushStream::WebSocket::handshake() : ()) } @followed;
        my $patient = $nginx->subscribe('/patient?id=alive');
        my $reader = $nginx->subscribe('/ev?id=alive');
        ok wait_until { $nginx->figures->{subscribers} == 5 }, 'five subscribers';
        vanish($_) for @gone, $patient;
        my $start = time;
        ok wait_until(sub { $nginx->figures('dead')->{subscribers} == 2 }, 5), 'one that vanished is noticed by its ping';
        $nginx->post('/pub?id=dead', 'anybody?');
        ok wait_until(sub { $nginx->figures('dead')->{subscribers} == 0 }, 5), 'the others by a message';
        is $nginx->figures('alive')->{subscribers}, 2, 'who acknowledges stays, and who may take its time';
        $_->close for @gone, $patient, $reader;
    }

    # --- slow senders ---
    {
        my @slow = map {
            my $client = $nginx->connect;
            $client->send("POST /pub?id=slow HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n" . 'x' x 100);
        } 1 .. 100;
        push @slow, map { $nginx->connect->send("GET /sub?id=slow HTTP/1.1\r\nHost: loc") } 1 .. 100;
        my $figures = $nginx->figures;
        $works->('200 requests are half sent');
        is_deeply $nginx->figures('slow'), {}, 'half a request creates nothing';
        $_->send('x') for @slow[ 0 .. 49 ];
        my $ended = grep { eval { $_->rest; 1 } } @slow;
        is $ended, scalar @slow, 'they are all cut off in time';
        is_deeply $nginx->figures('slow'), {}, 'and published nothing';
    }

    # --- endless senders ---
    {
        # Pings: its end waits behind what nobody reads.
        my $stream = $nginx->subscribe('/patient?id=endless');
        $stream->socket->blocking(0);
        my $sent = 0;
        for (1 .. 400) {
            my $part = syswrite $stream->socket, 'GET / HTTP/1.1' x 5000;
            last if !defined $part && !$!{EAGAIN} && !$!{EWOULDBLOCK};
            $sent += $part // 0;
        }
        $works->("a subscriber has sent $sent bytes");
        $stream->close;
        my $socket = PushStream::WebSocket->new($nginx, '/ws?id=endless');
        my $frames = PushStream::WebSocket::frame(PushStream::WebSocket::TEXT, 'x' x 60_000);
        $socket->send_bytes($frames) for 1 .. 200;
        $works->('a WebSocket client sends without end');
        $socket->client->close;
    }

    # --- liars ---
    {
        # 1 GiB announced, and not sent: by clients that may only listen, and by clients that may publish.
        my @liars = map { my $uri = $_; map { PushStream::WebSocket->new($nginx, "$uri?id=liar") } 1 .. 10 } qw(/ws /wspub);
        $_->send_bytes("\x81\xff" . pack('Q>', 1 << 30) . 'mask' . 'x' x 1000) for @liars;
        # A long message in many frames that never ends.
        my @endless = map { PushStream::WebSocket->new($nginx, '/wspub?id=liar') } 1 .. 5;
        for my $socket (@endless) {
            eval { $socket->send($_ == 1 ? 1 : 0, 'x' x 60_000, more => 1) for 1 .. 30; 1 };
        }
        $works->('WebSocket clients lie about lengths');
        my $grown = private_kib($nginx) - $before;
        cmp_ok $grown, '<', $memory_bound->(24 << 10), "and cost $grown KiB";
        $_->client->close for @liars, @endless;
        ok wait_until { $nginx->figures->{subscribers} == 0 }, 'they are gone';
    }

    # --- crowds ---
    {
        my @crowd = map {
            my $client = $nginx->connect(receive_buffer => 4096);
            $client->send_request(GET => (qw(/sub /patient))[ $_ % 2 ] . '?id=crowd');
            $client;
        } 1 .. $crowd;
        ok wait_until { $nginx->figures->{subscribers} == $crowd }, "a crowd of $crowd that never reads";
        my $with_crowd = private_kib($nginx);
        my $publisher = $nginx->connect;
        my $quick = $nginx->subscribe('/sub?id=crowd');
        my ($wrong, $most) = (0, 0);
        for my $n (1 .. 200) {
            my $text = sprintf('%06d', $n) . chr(97 + $n % 26) x 20_000;
            $wrong++ if $publisher->request(POST => '/pub?id=crowd', body => $text)->status != 200;
            $wrong++ if $quick->chunk ne $text;
        }
        is $wrong, 0, 'who reads gets everything';
        my $grown = private_kib($nginx) - $with_crowd;
        # They share the messages; each has a queue of pointers to them.
        cmp_ok $grown, '<', $memory_bound->(4096 + 2 * $crowd), "4 MB for each of them: a worker grew by $grown KiB";
        ok wait_until { $nginx->figures->{subscribers} == 1 }, 'those who fell behind by more than the queue are cut off';
        $_->close for @crowd;
        $quick->close;
    }
    {
        for my $round (1 .. 5) {
            my @storm = map { $nginx->open(GET => ('/sub?id=storm', '/ev?id=storm.b3', '/poll?id=storm')[ $_ % 3 ]) } 1 .. 100;
            $_->reset for @storm;
        }
        ok wait_until { $nginx->figures->{subscribers} == 0 }, 'a storm of resets leaves nobody';
        $works->('that is over');
    }
};

with_nginx $conf =~ s/dead_peer_timeout 1s/dead_peer_timeout 0/gr, sub ($nginx) {
    my $gone = $nginx->subscribe('/ev?id=dead');
    vanish($gone);
    $nginx->post('/pub?id=dead', 'anybody?');
    sleep 2.5;
    is $nginx->figures('dead')->{subscribers}, 1, 'push_stream_dead_peer_timeout 0: the kernel is patient';
    $gone->close;
};

done_testing;
