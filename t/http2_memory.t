# What an idle reader over HTTP/2 costs a worker, and what messages leave behind.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;
use PushStream::Frames;

only_over_http1 'it speaks HTTP/2 by itself';
plan skip_all => 'a sanitizer takes memory of its own' if $ENV{TEST_SANITIZER};

use constant { CONNECTIONS => 60, STREAMS => 20 };

with_nginx <<'CONF', sub ($nginx) {
%%MAIN%%
events { worker_connections 1024; }
http {
    %%HTTP%%
    access_log off;
    push_stream_shared_memory_size 8m;
    push_stream_channels_path $arg_id;
    push_stream_channel_info_on_publish off;

    server {
        listen 127.0.0.1:%%PORT%%;
        location /pub { push_stream_publisher admin; }
        location /status { push_stream_channels_statistics; }
    }
    server {
        listen unix:%%DIR%%/h2.sock http2 backlog=4096;
        location /ev { push_stream_subscriber eventsource; push_stream_ping_message_interval 1h; }
        location /attached { push_stream_detach off; push_stream_subscriber eventsource; }
    }
}
CONF
    # Bytes of its own; the zone is not among them.
    my $private = sub {
        my $sum = 0;
        for my $pid ($nginx->worker_pids) {
            open my $file, '<', "/proc/$pid/smaps_rollup" or next;
            my ($kib) = map { /^Anonymous:\s+(\d+)/ } <$file>;
            $sum += $kib * 1024;
        }
        return $sum;
    };
    my @clients = map { PushStream::Frames->new($nginx->dir . '/h2.sock', 4 => 1 << 30) } 1 .. CONNECTIONS;
    $_->frame(PushStream::Frames::WINDOW_UPDATE, 0, 0, pack 'N', 1 << 30) for @clients;
    my $open = sub ($uri, $count) {
        for my $client (@clients) {
            my @streams = map { $client->get($uri) } 1 .. $count;
            for my $stream (@streams) {
                $client->until_true(sub { length($client->{data}{$stream} // '') }) or die 'no header';
                $client->{data}{$stream} = '';
            }
            push @{ $client->{streams} }, @streams if $uri =~ /id=a/;
        }
    };
    my $publish = sub ($from, $to) {
        for my $n ($from .. $to) {
            $nginx->post('/pub?id=a', "message $n.");
            next if $n % 50;
            for my $client (@clients) {
                for my $stream (@{ $client->{streams} }) {
                    $client->until_true(sub { $client->{data}{$stream} =~ /message $n\.\n/ }) or die "no message $n";
                    $client->{data}{$stream} = '';
                }
                $client->{frames} = [];
            }
        }
    };
    # What is needed only once is there after this.
    $open->('/ev?id=a', STREAMS / 4);
    $publish->(1, 50);
    # The measure would show it.
    my $before = $private->();
    $open->('/attached?id=b', STREAMS / 4);
    my $each = ($private->() - $before) / (CONNECTIONS * STREAMS / 4);
    cmp_ok $each, '>', 6000, sprintf 'a stream with its request takes %d bytes', $each;

    $before = $private->();
    $open->('/ev?id=a', STREAMS);
    $each = ($private->() - $before) / (CONNECTIONS * STREAMS);
    cmp_ok $each, '<', 3300, sprintf 'without it %d bytes', $each;

    $publish->(51, 100);
    my $loaded = $private->();
    $publish->(101, 1100);
    my $grown = $private->() - $loaded;
    cmp_ok $grown, '<', 262_144, "a thousand messages leave $grown bytes with all of them";
};

done_testing;
