# Subscribers come and go by the thousand, in every way there is: nothing of them is left.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;

with_nginx <<'CONF', sub ($nginx) {
%%MAIN%%
events { worker_connections 1024; }
http {
    %%HTTP%%
    push_stream_shared_memory_size 4m;
    push_stream_channels_path $arg_id;
    push_stream_channel_inactivity_time 1s;
    push_stream_ping_message_interval 100ms;

    server {
        listen 127.0.0.1:%%PORT%% reuseport;

        location /pub { push_stream_publisher admin; }
        location /sub { push_stream_subscriber; }
        location /ev { push_stream_subscriber eventsource; }
        location /wait { push_stream_subscriber long-polling; }
        location /short { push_stream_subscriber; push_stream_subscriber_connection_ttl 50ms; }
        location /status { push_stream_channels_statistics; }
    }
}
CONF
    my $resident = sub {
        my $sum = 0;
        for my $pid ($nginx->worker_pids) {
            open my $file, '<', "/proc/$pid/smaps_rollup" or next;
            my ($kib) = map { /^Private_Dirty:\s+(\d+)/ } <$file>;
            $sum += $kib;
        }
        return $sum;
    };
    my $publisher = $nginx->connect;
    my $storm = sub ($rounds) {
        for my $round (1 .. $rounds) {
            my @clients = map {
                my $uri = (qw(/sub /ev /wait /short))[ $_ % 4 ];
                $nginx->open(GET => "$uri?id=a$_/b/c" . $_ % 7);
            } 1 .. 40;
            $publisher->request(POST => '/pub?id=b', body => 'x' x 500);
            # Some before their response, some within, some after their end.
            for my $n (reverse 0 .. $#clients) {
                $n % 3 == 0 ? $clients[$n]->close : $n % 3 == 1 ? $clients[$n]->reset : eval { $clients[$n]->head(0.01) };
            }
            $publisher->request(DELETE => '/pub?id=b') if $round % 5 == 0;
        }
        return wait_until { $nginx->figures->{subscribers} == 0 };
    };
    ok $storm->(15), '600 clients: all of them are noticed to be gone';
    my $before = $resident->();
    ok $storm->(75), '3000 more';
    my $grown = $resident->() - $before;
    # A sanitizer keeps what was freed, to find out who uses it.
    cmp_ok $grown, '<', 2048, "no memory is left behind: $grown KiB" if !$ENV{TEST_SANITIZER};
    ok wait_until(sub { $nginx->figures->{channels} == 0 }, 10), 'no channel either';
    my $stream = $nginx->subscribe('/sub?id=b');
    $nginx->post('/pub?id=b', 'hello');
    like $stream->text_until(qr/hello/), qr/^ *hello$/, 'and everything works';
};

done_testing;
