# Over HTTP/2 streams and publishing work through nginx, several on one connection.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;

plan skip_all => 'no curl that speaks HTTP/2' if `curl --version 2>/dev/null` !~ /HTTP2/;

with_nginx <<'CONF', sub ($nginx) {
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_shared_memory_size 4m;
    push_stream_channels_path $arg_id;
    push_stream_store_messages on;
    push_stream_header_template "head\n";
    push_stream_message_template "~text~\n";
    push_stream_footer_template "foot\n";

    server {
        listen 127.0.0.1:%%PORT%% http2;

        location /pub { push_stream_publisher admin; client_body_buffer_size 16k; client_max_body_size 1m; }
        location /sub { push_stream_subscriber; push_stream_ping_message_interval 10s; }
        location /ev { push_stream_subscriber eventsource; push_stream_message_template ~text~; }
        location /poll { push_stream_subscriber polling; }
        location /wait { push_stream_subscriber long-polling; }
        location /status { push_stream_channels_statistics; }
    }
}
CONF
    # This nginx speaks nothing else on its port.
    $nginx->expect_in_log(qr/client sent invalid/);
    my @curl = ('curl', '--silent', '--no-buffer', '--max-time', 20, '--http2-prior-knowledge');
    my $url = 'http://127.0.0.1:' . $nginx->port;
    my $ask = sub (@arguments) {
        open my $curl, '-|', @curl, '--write-out', '|%{http_version} %{http_code}', @arguments or die;
        local $/;
        return <$curl>;
    };
    my $figures = sub { ($ask->("$url/status") =~ /"subscribers": (\d+), "uptime": \d+, "by_worker"/)[0] };

    like $ask->('--data-binary', 'one', "$url/pub?id=a"), qr/"published_messages": 1.*\|2 200$/s, 'a message';
    open my $stream, '-|', @curl, "$url/sub?id=a.b1" or die;
    is scalar <$stream>, "head\n", 'a stream: the header';
    is scalar <$stream>, "one\n", 'an old message';
    # Two streams on one connection.
    open my $both, '-|', @curl, '--parallel', '--parallel-immediate', '--stderr', '/dev/null', '--max-time', 20, "$url/ev?id=a", "$url/ev?id=b" or die;
    is scalar <$both>, ": head\n", 'an event stream';
    is scalar <$both>, ": head\n", 'and another one';
    is $figures->(), 3, 'three subscribers';

    $ask->('--data-binary', 'two', "$url/pub?id=a/b");
    is scalar <$stream>, "two\n", 'a live message';
    is join('', map { scalar <$both> } 1 .. 4), "data: two\n\n" x 2, 'on every stream';

    my $large = 'x' x 300_000;
    open my $body, '>', $nginx->dir . '/body' or die;
    print {$body} $large;
    close $body;
    like $ask->('--data-binary', '@' . $nginx->dir . '/body', "$url/pub?id=a"), qr/\|2 200$/, 'a large message';
    ok scalar <$stream> eq "$large\n", 'arrives in full';

    # Awaited, and then answered: a reset behind the answer is allowed (RFC 9113 §8.1), but curl 7.88 may take it for an error.
    my @answers = map { $ask->('--data-binary', 'x', "$url/pub?id=ALL") } 1 .. 10;
    is scalar(grep { $_ ne '|2 403' } @answers), 0, 'refused publishes are answered';
    like $ask->('--data-binary', '@' . $nginx->dir . '/body', "$url/pub?id=ALL"), qr/\|2 403$/, 'large ones too';
    like $ask->("$url/pub?id=ALL"), qr/^\|2 403$/, 'a refused request without a body';
    like $ask->("$url/poll?id=b.b1"), qr/^head\ntwo\nfoot\n\|2 200$/, 'polling';
    like $ask->("$url/poll?id=b"), qr/^\|2 304$/, 'with nothing new';

    open my $wait, '-|', @curl, "$url/wait?id=c" or die;
    ok wait_until { $figures->() == 4 }, 'long polling waits';
    $ask->('--data-binary', 'three', "$url/pub?id=c");
    is join('', <$wait>), "head\nthree\nfoot\n", 'and is answered';

    $ask->('--request', 'DELETE', "$url/pub?id=a");
    is join('', <$stream>), "Channel deleted\nfoot\n", 'a deleted channel ends its stream';
    $nginx->signal('QUIT');
    like join('', <$both>), qr/: foot\n$/, 'quit ends the others';
    is $nginx->wait_for_exit, 0, 'and nginx';
};

done_testing;
