# gzip works on a stream: every message can be unpacked when it arrives.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;

use Compress::Raw::Zlib;

with_nginx <<'CONF', sub ($nginx) {
%%MAIN%%
events {}
http {
    %%HTTP%%
    gzip on;
    gzip_types text/event-stream application/json;
    gzip_min_length 0;
    default_type text/html;
    push_stream_shared_memory_size 4m;
    push_stream_channels_path $arg_id;
    push_stream_store_messages on;
    push_stream_header_template "header";
    push_stream_footer_template "footer";

    server {
        listen 127.0.0.1:%%PORT%%;

        location /pub { push_stream_publisher admin; }
        location /sub { push_stream_subscriber; }
        location /ev { push_stream_subscriber eventsource; }
        location /poll { push_stream_subscriber polling; }
        location /wait { push_stream_subscriber long-polling; }
        location /status { push_stream_channels_statistics; }
    }
}
CONF
    # Unpacks chunk by chunk.
    my $unpacking = sub ($client) {
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
    my $stream = $nginx->subscribe('/sub?id=a', 'Accept-Encoding' => 'gzip');
    is $stream->header('Content-Encoding'), 'gzip', 'a packed stream';
    my $events = $nginx->subscribe('/ev?id=a', 'Accept-Encoding' => 'gzip');
    is $events->header('Content-Encoding'), 'gzip', 'a packed event stream';
    my $plain = $nginx->subscribe('/sub?id=a');
    is $plain->header('Content-Encoding'), undef, 'beside one that is not';
    my ($unpacked, $unpacked_events) = map { $unpacking->($_) } $stream, $events;
    is $unpacked->(qr/header/), 'header', 'the header arrives';
    is $unpacked_events->(qr/header\n/), ": header\n", 'here too';
    is $plain->chunk, 'header', 'and there';

    my $large = join '', map { "line $_ of a large message\n" } 1 .. 20_000;
    for my $text ('one', 'two', $large, 'three') {
        $nginx->post('/pub?id=a', $text);
        my $name = length $text > 10 ? 'a large message' : "message $text";
        my $last = quotemeta substr $text, -20;
        ok $unpacked->(qr/$last$/) eq $text, "$name arrives";
        my $data = join('', map { "data: $_\n" } split /\n/, $text, -1) . "\n";
        ok $unpacked_events->(qr/\n\n$/) eq $data, "$name as an event";
        ok(($plain->chunks_as($text))[0] eq $text, "$name unpacked");
    }
    $nginx->delete('/pub?id=a');
    is $unpacked->(qr/never/), 'Channel deletedfooter', 'the stream ends as any other';

    $nginx->post('/pub?id=b', 'stored');
    my $poll = $nginx->get('/poll?id=b.b1', 'Accept-Encoding' => 'gzip');
    is $poll->header('Content-Encoding'), 'gzip', 'a packed answer to a poll';
    like $poll->header('Etag'), qr{^W/\d+$}, 'keeps its weak tag';
    my ($inflate) = Compress::Raw::Zlib::Inflate->new(-WindowBits => WANT_GZIP);
    $inflate->inflate($poll->body, my $text);
    is $text, 'headerstoredfooter', 'and says what it has to';

    my $statistics = $nginx->get('/status', 'Accept-Encoding' => 'gzip');
    is $statistics->header('Content-Encoding'), 'gzip', 'statistics are packed as well';
};

done_testing;
