# A configuration as it is found: gzip for everything, with proxies and old clients in mind.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;
use Compress::Raw::Zlib;

with_nginx <<'CONF', sub ($nginx) {
%%MAIN%%
events { worker_connections 1024; }
http {
    %%HTTP%%
    gzip              on;
    gzip_vary         on;
    gzip_proxied      any;
    gzip_comp_level   6;
    gzip_min_length   20;
    gzip_http_version 1.0;
    gzip_types        text/plain application/json text/event-stream application/javascript application/xml;
    gzip_disable      "MSIE [1-6]\.";
    push_stream_shared_memory_size 16m;

    server {
        listen 127.0.0.1:%%PORT%%;
        default_type text/plain;

        location /pub { push_stream_publisher admin; push_stream_channels_path $arg_id; push_stream_store_messages on; }
        location ~ ^/sub/(.*) { push_stream_subscriber; push_stream_channels_path $1; push_stream_header_template "begin\n"; push_stream_footer_template "end"; push_stream_message_template "~text~\n"; }
        location ~ ^/ev/(.*) { push_stream_subscriber eventsource; push_stream_channels_path $1; push_stream_ping_message_interval 300ms; }
        location ~ ^/poll/(.*) { push_stream_subscriber polling; push_stream_channels_path $1; }
        location /status { push_stream_channels_statistics; push_stream_channels_path $arg_id; }
    }
}
CONF
    my %packed = ('Accept-Encoding' => 'gzip, deflate, br');
    my $reads = sub ($client) {
        my ($inflate) = Compress::Raw::Zlib::Inflate->new(-WindowBits => WANT_GZIP);
        return sub ($pattern) {
            my $text = '';
            while ($text !~ $pattern) {
                my $chunk = $client->chunk;
                return $text if !length $chunk;
                $inflate->inflate($chunk, my $plain);
                $text .= $plain;
            }
            return $text;
        };
    };
    my %client = (stream => $nginx->subscribe('/sub/a', %packed), event => $nginx->subscribe('/ev/a', %packed));
    is $client{$_}->header('Content-Encoding') . ' ' . $client{$_}->header('Vary'), 'gzip Accept-Encoding', "$_: packed" for sort keys %client;
    my $old = $nginx->subscribe('/sub/a', %packed, 'User-Agent' => 'Mozilla/4.0 (compatible; MSIE 6.0)');
    is $old->header('Content-Encoding'), undef, 'not for clients that cannot';
    my %read = map { $_ => $reads->($client{$_}) } keys %client;
    is $read{stream}->(qr/begin/), "begin\n", 'the header can be read at once';
    like $read{event}->(qr/: -1\n/), qr/^: \n(?:: -1\n)+$/, 'so can pings';
    for my $text ('short', 'a longer text ' x 100, join '', map { chr 32 + $_ % 90 } 1 .. 50_000) {
        $nginx->post('/pub?id=a', $text);
        ok $read{stream}->(qr/\n$/) eq "$text\n", length($text) . ' bytes, streamed';
        ok $read{event}->(qr/data: .*\n\n/s) =~ s/: -1\n//gr eq "data: $text\n\n", 'and as an event';
        ok $old->text_until(qr/\Q@{[ substr $text, -5 ]}\E\n$/) =~ s/^begin\n//r eq "$text\n", 'and unpacked';
    }
    is $nginx->get('/poll/a.b1', %packed)->header('Etag') =~ m{^W/\d+$}, 1, 'a packed poll keeps its position';
    is $nginx->get('/status', %packed)->header('Content-Encoding'), 'gzip', 'statistics are packed';
    is $nginx->get('/pub?id=a', %packed, Accept => 'application/xml')->header('Content-Encoding'), 'gzip', 'in any format';
    $nginx->delete('/pub?id=a');
    is $read{stream}->(qr/never/), "Channel deleted\nend", 'to the end';
};

done_testing;
