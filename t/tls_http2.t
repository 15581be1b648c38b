# Over TLS, with HTTP/1.1 and HTTP/2 on one port: nothing waits in TLS's buffer for what comes next.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;
use PushStream::Http2;

with_nginx <<'CONF', sub ($nginx) {
%%MAIN%%
events {}
http {
    %%HTTP%%
    ssl_certificate %%CERTIFICATE%%;
    ssl_certificate_key %%KEY%%;
    push_stream_shared_memory_size 4m;
    push_stream_ping_message_text "ping";
    push_stream_channels_path $arg_id;
    push_stream_store_messages on;

    server {
        listen 127.0.0.1:%%PORT%% ssl http2;

        location /pub { push_stream_publisher admin; }
        location /sub { push_stream_subscriber; }
        location /ev { push_stream_subscriber eventsource; push_stream_footer_template "bye"; }
        location /ping { push_stream_subscriber; push_stream_ping_message_interval 200ms; }
        location /wait { push_stream_subscriber long-polling; push_stream_longpolling_connection_ttl 200ms; }
        location /ws { push_stream_subscriber websocket; push_stream_websocket_allow_publish on; }
    }
}
CONF
    my %connect = (
        'HTTP/1.1' => sub { PushStream::Client->new($nginx->port, tls => ['http/1.1']) },
        'HTTP/2' => sub { PushStream::Http2->new($nginx->port) },
    );
    for my $version (sort keys %connect) {
        my $ask = sub ($method, $uri, %options) { $connect{$version}->()->request($method => $uri, %options) };
        my $client = $connect{$version}->();
        is $client->request(POST => '/pub?id=a', body => 'old')->status, 200, "$version: a message";
        is $client->request(GET => '/wait?id=a')->status, 304, 'a poll on the same connection';

        $client->send_request(GET => '/sub?id=a');
        is $client->status, 200, 'and a stream: its head comes at once, with nothing behind it';
        $ask->(POST => '/pub?id=a', body => 'new');
        is $client->chunk, 'new', 'a message';

        my $events = $connect{$version}->();
        $events->send_request(GET => '/ev?id=a.b1');
        is join('', $events->chunks_as(": \n", "data: new\n\n")), ": \ndata: new\n\n", 'an event stream, and what is stored';
        my $ping = $connect{$version}->();
        $ping->send_request(GET => '/ping?id=b');
        is join(' ', $ping->chunks_as('ping', 'ping')), 'ping ping', 'pings';

        # A record of TLS holds 16 KiB, a frame of HTTP/2 8 KiB.
        for my $length (1, 8191, 8192, 8193, 16384, 16385, 300_000) {
            my $text = join '', map { chr 33 + $_ % 90 } 1 .. $length;
            $ask->(POST => '/pub?id=a', body => $text);
            ok(($client->chunks_as($text))[0] eq $text, "$length bytes") or last;
        }
        $ask->(DELETE => '/pub?id=a');
        is join('', $client->chunks_to_end), 'Channel deleted', 'the notice of the deletion, and the end';
        is $client->request(GET => '/wait?id=a')->status, 304, 'the connection goes on' if $version eq 'HTTP/2';
    }
};

done_testing;
