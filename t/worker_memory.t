# Load after load of everything a client can do: when nobody is there any more, a worker has given back all the memory that it took.
#
# TEST_LOADS: how many loads of 2 seconds; default 3.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Malloc;
use PushStream::Test;
use PushStream::WebSocket;

only_over_plain_http1 'its clients speak nothing else';
plan skip_all => 'a sanitizer has an allocator of its own' if $ENV{TEST_SANITIZER};

use IO::Select;
use POSIX ();

my $loads = $ENV{TEST_LOADS} || 3;

my %lines = (headers => { 'Content-Type' => 'application/x-ndjson' });
my $malloc = PushStream::Malloc->new;
local $ENV{TEST_WORKERS} = 2;
my %environment = $malloc->environment;
local @ENV{ keys %environment } = values %environment;
with_nginx <<'CONF', sub ($nginx) {
%%MAIN%%
events { worker_connections 1024; }
http {
    %%HTTP%%
    access_log off;
    push_stream_shared_memory_size 2m;
    push_stream_on_full evict;
    push_stream_store_messages on;
    push_stream_message_ttl 2s;
    push_stream_channel_inactivity_time 2s;
    push_stream_channels_path $arg_id;
    push_stream_ping_message_interval 300ms;
    push_stream_dead_peer_timeout 5s;
    push_stream_subscriber_queue 64k;
    push_stream_longpolling_connection_ttl 500ms;
    client_header_timeout 1s;
    client_body_timeout 1s;
    server {
        listen 127.0.0.1:%%PORT%% sndbuf=32k;
        location /pub { push_stream_publisher admin; }
        location /batch { push_stream_publisher; push_stream_batch_publish on; }
        location /sub { push_stream_subscriber; }
        location /kept { push_stream_subscriber; push_stream_detach off; }
        location /ev { push_stream_subscriber eventsource; push_stream_slow_reader skip; push_stream_resume ordered; push_stream_gap_notice on; }
        location /burst { push_stream_subscriber eventsource; push_stream_subscriber_queue 1m; }
        location /ws { push_stream_subscriber websocket; push_stream_websocket_allow_publish on; }
        location /lp { push_stream_subscriber long-polling; }
        location /status { push_stream_channels_statistics; }
    }
}
CONF
    my $channel = sub { 'c' . int rand 20 };
    my %client = (
        publisher => sub {
            my $publisher = $nginx->connect;
            for (1 .. 50) {
                $publisher->request(POST => '/pub?id=' . join('/', map { $channel->() } 0 .. rand 3), body => 'x' x rand 5000);
                $publisher->request(POST => '/batch', %lines, body => join '', map { qq({"channels":["c$_"],"text":"batch"}\n) } 1 .. 5)->body !~ /explain/
                    or POSIX::_exit(1);
                $publisher->request(DELETE => '/pub?id=' . $channel->()) if rand() < 0.05;
                $publisher->request(GET => '/status?id=ALL');
            }
        },
        crowd => sub {
            my @crowd = map {
                my $client = $nginx->connect(rand() < 0.3 ? (receive_buffer => 4096) : ());
                my $uri = (qw(/sub /kept /ev /lp /ws))[ rand 5 ];
                $client->send_request(GET => "$uri?id=" . $channel->() . '/' . $channel->() . '.b3',
                    headers => $uri eq '/ws' ? { PushStream::WebSocket::handshake() } : {});
                $client;
            } 1 .. 30;
            for my $round (1 .. 10) {
                for my $socket (IO::Select->new(map { $_->socket } @crowd)->can_read(0.05)) {
                    sysread $socket, my $read, 1 + int rand 60_000 if rand() < 0.8;
                }
            }
            rand() < 0.5 ? $_->close : $_->reset for @crowd;
        },
        rubbish => sub {
            my $text = "POST /pub?id=a HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello" . PushStream::WebSocket::frame(1, 'x');
            substr $text, rand length $text, rand 9, chr rand 256;
            $nginx->connect->send($text)->close;
        },
    );
    my $load = sub ($number) {
        my $end = time + 2;
        my @pids = map {
            my $pid = fork // die;
            if (!$pid) {
                srand $number * 1000 + $$;
                while (time < $end) { eval { $client{$_}->() } }
                POSIX::_exit(0);
            }
            $pid;
        } sort keys %client;
        for (@pids) { waitpid $_, 0; die 'a batch is refused' if $? }
    };
    # Nobody but the one who asks is connected, nothing is stored or waits to be thrown away.
    my $rest = sub {
        wait_until(sub {
            my $zone = $nginx->figures;
            !grep { $zone->{$_} } qw(subscribers channels stored_messages messages_in_trash channels_in_trash channels_in_delete);
        }, 60) or die 'there is no rest';
        my %sockets;
        wait_until(sub {
            %sockets = map { my $pid = $_; $pid => scalar grep { (readlink $_ // '') =~ /socket/ } glob "/proc/$pid/fd/*" } $nginx->worker_pids;
            state %least;
            $least{$_} = $sockets{$_} < ($least{$_} // 1e9) ? $sockets{$_} : $least{$_} for keys %sockets;
            !grep { $sockets{$_} > $least{$_} } keys %sockets;
        }, 10);
        # By then a worker has found, too, that nothing came for a second.
        sleep 2.5;
        return map { $malloc->of($_) } sort { $a <=> $b } $nginx->worker_pids;
    };
    # More at once than any other message or batch of this test.
    my $burst = sub {
        my @readers = map { $nginx->connect->send_request(GET => '/burst?id=burst') } 1 .. 8;
        wait_until(sub { $nginx->figures->{subscribers} == @readers }) or die 'not all are there';
        my $text = 'x' x 20_000;
        my $answer = $nginx->connect->request(POST => '/batch', %lines, body => qq({"channels":["burst"],"text":"$text"}\n) x 10);
        unlike $answer->body, qr/explain/, 'a burst is taken';
        for my $reader (@readers) { $reader->event for 1 .. 10 }
        $_->close for @readers;
    };
    $load->($_) for 1, 2;
    my @before = $rest->();
    $load->(2 + $_) for 1 .. $loads;
    # Tables keep room for what they held last, so that between 754 and 767 kB are in use at a rest, however many loads came before.
    # What is lost grows with each load, and what a burst leaves is there after each: then it is too much every time.
    my @grown;
    for my $more (1 .. 4) {
        $burst->();
        my @after = $rest->();
        @grown = map { $after[$_] - $before[$_] } 0 .. $#before;
        last if !grep { $_ >= 10_000 } @grown;
        $load->(2 + $loads + $more);
    }
    cmp_ok $grown[$_], '<', 10_000, "worker $_, with $before[$_] bytes in use, after $loads loads: $grown[$_] more" for 0 .. $#before;
};

done_testing;
