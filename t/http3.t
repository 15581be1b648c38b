# Over HTTP/3 streams, polls and publishing work through nginx, several streams on one connection. They keep their requests: nginx's
# QUIC has buffers of a stream in its request's pool.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;

plan skip_all => 'an nginx without HTTP/3' if !PushStream::Nginx->has_module('http_v3');
plan skip_all => 'no curl that speaks HTTP/3' if `curl --version 2>/dev/null` !~ /HTTP3/;

with_nginx <<'CONF', sub ($nginx) {
%%MAIN%%
events {}
http {
    %%HTTP%%
    ssl_certificate %%CERTIFICATE%%;
    ssl_certificate_key %%KEY%%;
    push_stream_shared_memory_size 4m;
    push_stream_channels_path $arg_id;
    push_stream_store_messages on;
    push_stream_header_template "head\n";
    push_stream_message_template "~text~\n";
    push_stream_footer_template "foot\n";
    push_stream_ping_message_text ping;

    server {
        listen %%PORT%% quic reuseport;
        listen 127.0.0.1:%%PORT%% ssl;

        location /pub { push_stream_publisher admin; client_body_buffer_size 16k; client_max_body_size 1m; }
        location /sub { push_stream_subscriber; push_stream_ping_message_interval 10s; }
        location /ping { push_stream_subscriber; push_stream_ping_message_interval 200ms; }
        location /ev { push_stream_subscriber eventsource; push_stream_message_template ~text~; }
        location /poll { push_stream_subscriber polling; }
        location /wait { push_stream_subscriber long-polling; }
        location /status { push_stream_channels_statistics; }
        location /metrics { push_stream_channels_statistics; push_stream_statistics_format prometheus; }
    }
}
CONF
    my @curl = ('curl', '--silent', '--insecure', '--no-buffer', '--max-time', 20 * PushStream::Nginx::slowness(), '--http3-only');
    my $url = 'https://127.0.0.1:' . $nginx->port;
    my $ask = sub (@arguments) {
        open my $curl, '-|', @curl, '--write-out', '|%{http_version} %{http_code}', @arguments or die;
        local $/;
        return <$curl>;
    };
    my $figures = sub { ($ask->("$url/status") =~ /"subscribers": (\d+), "uptime": \d+, "by_worker"/)[0] };

    like $ask->('--data-binary', 'one', "$url/pub?id=a"), qr/"published_messages": 1.*\|3 200$/s, 'a message';
    open my $stream, '-|', @curl, "$url/sub?id=a.b1" or die;
    is scalar <$stream>, "head\n", 'a stream: the header';
    is scalar <$stream>, "one\n", 'an old message';
    # Two streams on one connection.
    open my $both, '-|', @curl, '--parallel', '--parallel-immediate', '--stderr', '/dev/null', "$url/ev?id=a", "$url/ev?id=b" or die;
    is scalar <$both>, ": head\n", 'an event stream';
    is scalar <$both>, ": head\n", 'and another one';
    is $figures->(), 3, 'three subscribers';
    like $ask->("$url/metrics"), qr/^push_stream_subscribers_attached\{reason="protocol"\} 3$/m, 'which keep their requests';

    $ask->('--data-binary', 'two', "$url/pub?id=a/b");
    is scalar <$stream>, "two\n", 'a live message';
    is join('', map { scalar <$both> } 1 .. 4), "data: two\n\n" x 2, 'on every stream';

    my $large = 'x' x 300_000;
    open my $body, '>', $nginx->dir . '/body' or die;
    print {$body} $large;
    close $body;
    like $ask->('--data-binary', '@' . $nginx->dir . '/body', "$url/pub?id=a"), qr/\|3 200$/, 'a large message';
    ok scalar <$stream> eq "$large\n", 'arrives in full';
    like $ask->('--data-binary', 'x', "$url/pub?id=ALL"), qr/\|3 403$/, 'a refused publish is answered';
    like $ask->("$url/poll?id=b.b1"), qr/^head\ntwo\nfoot\n\|3 200$/, 'polling';
    like $ask->("$url/poll?id=b"), qr/^\|3 304$/, 'with nothing new';

    open my $wait, '-|', @curl, "$url/wait?id=c" or die;
    ok wait_until { $figures->() == 4 }, 'long polling waits';
    $ask->('--data-binary', 'three', "$url/pub?id=c");
    is join('', <$wait>), "head\nthree\nfoot\n", 'and is answered';

    open my $pings, '-|', @curl, "$url/ping?id=d" or die;
    is join('', map { scalar <$pings> } 1 .. 3), "head\nping\nping\n", 'pings';

    $ask->('--request', 'DELETE', "$url/pub?id=a");
    is join('', <$stream>), "Channel deleted\nfoot\n", 'a deleted channel ends its stream';
    $nginx->signal('QUIT');
    like join('', <$both>), qr/: foot\n$/, 'quit ends the others';
    like join('', <$pings>), qr/^(?:ping\n)*foot\n$/, 'that with pings, too';
    is $nginx->wait_for_exit, 0, 'and nginx';
};

# Who vanishes without a word is noticed after keepalive_timeout, which is QUIC's idle timeout in nginx.
with_nginx <<'CONF', sub ($nginx) {
%%MAIN%%
events {}
http {
    %%HTTP%%
    ssl_certificate %%CERTIFICATE%%;
    ssl_certificate_key %%KEY%%;
    push_stream_shared_memory_size 4m;
    push_stream_header_template "head\n";
    push_stream_channels_path $arg_id;
    keepalive_timeout 2s;

    server {
        listen %%PORT%% quic reuseport;
        listen 127.0.0.1:%%PORT%% ssl;

        location /ping { push_stream_subscriber; push_stream_ping_message_interval 100ms; }
        location /status { push_stream_channels_statistics; }
    }
}
CONF
    my @curl = ('curl', '--silent', '--insecure', '--no-buffer', '--max-time', 20 * PushStream::Nginx::slowness(), '--http3-only');
    my $url = 'https://127.0.0.1:' . $nginx->port;
    my $subscribers = sub { (`@curl $url/status` =~ /"subscribers": (\d+), "uptime": \d+, "by_worker"/)[0] };

    my $pid = open my $stream, '-|', @curl, "$url/ping?id=a" or die;
    is scalar <$stream>, "head\n", 'a stream';
    is $subscribers->(), 1, 'one subscriber';
    kill KILL => $pid;
    close $stream;
    ok wait_until { $subscribers->() == 0 }, 'who vanishes is nobody in the end';
};

done_testing;
