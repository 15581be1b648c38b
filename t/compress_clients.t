# Compressed streams as programs read them that others wrote: each event at once, and a regular end without an error.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;
use PushStream::Program;
use File::Temp qw(tempdir);

only_over_plain_http1 'the programs are told nothing of certificates';

my $python = (grep { -x && !system "$_ -c 'import zstandard' 2>/dev/null" } '/usr/bin/python3', PushStream::Program->find('python3'))[0];
my %command = (
    curl => sub ($url) { PushStream::Program->find('curl') && "curl --silent --show-error --no-buffer --compressed --header 'Accept-Encoding: gzip' '$url'" },
    gzip => sub ($url) {
        PushStream::Program->find('curl') && PushStream::Program->find('gzip')
            && "curl --silent --no-buffer --header 'Accept-Encoding: gzip' '$url' | gzip --decompress --stdout";
    },
    python => sub ($url) {
        PushStream::Program->find('python3') && q{python3 -c '
import sys, urllib.request, zlib
request = urllib.request.Request(sys.argv[1], headers={"Accept-Encoding": "gzip"})
answer = urllib.request.urlopen(request)
assert answer.headers["Content-Encoding"] == "gzip"
inflate = zlib.decompressobj(31)
while piece := answer.read1(65536):
    sys.stdout.buffer.write(inflate.decompress(piece))
    sys.stdout.flush()
assert inflate.eof and not inflate.unused_data
' '} . "$url'";
    },
    node => sub ($url) {
        PushStream::Program->find('node') && q{node -e '
fetch(process.argv[1], { headers: { "Accept-Encoding": "gzip" } }).then(async (answer) => {
    for await (const piece of answer.body) process.stdout.write(piece);
}).catch((error) => { console.error(error); process.exit(1); });
' '} . "$url'";
    },
    'curl with zstd' => sub ($url) {
        `curl --version` =~ /^Features:.*\bzstd\b/m && "curl --silent --show-error --no-buffer --compressed --header 'Accept-Encoding: zstd' '$url'";
    },
    zstd => sub ($url) {
        PushStream::Program->find('curl') && PushStream::Program->find('zstd')
            && "curl --silent --no-buffer --header 'Accept-Encoding: zstd' '$url' | zstd -dcq";
    },
    # A frame ends where its group does, and the next one follows.
    'python with zstandard' => sub ($url) {
        $python && $python . q{ -c '
import sys, urllib.request, zstandard
request = urllib.request.Request(sys.argv[1], headers={"Accept-Encoding": "zstd"})
answer = urllib.request.urlopen(request)
assert answer.headers["Content-Encoding"] == "zstd"
frame, frames, open_at_end = zstandard.ZstdDecompressor().decompressobj(), 0, True
while piece := answer.read1(65536):
    while piece:
        sys.stdout.buffer.write(frame.decompress(piece))
        open_at_end = not frame.eof
        piece = frame.unused_data if frame.eof else b""
        if frame.eof:
            frame, frames = zstandard.ZstdDecompressor().decompressobj(), frames + 1
    sys.stdout.flush()
assert frames > 1 and not open_at_end
' '} . "$url'";
    },
    'node with zstd' => sub ($url) {
        PushStream::Program->find('node') && !system(q{node -e 'process.exit(require("zlib").createZstdDecompress ? 0 : 1)'}) && q{node -e '
require("http").get(process.argv[1], { headers: { "Accept-Encoding": "zstd" } }, (answer) => {
    answer.pipe(require("zlib").createZstdDecompress()).pipe(process.stdout);
});
' '} . "$url'";
    },
);

with_nginx <<'CONF', sub ($nginx) {
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_shared_memory_size 8m;
    push_stream_channels_path $arg_id;
    push_stream_compress zstd gzip;

    server {
        listen 127.0.0.1:%%PORT%%;

        location /pub { push_stream_publisher admin; }
        location /ev { push_stream_subscriber eventsource; push_stream_header_template "hello"; push_stream_footer_template "bye"; }
        location /status { push_stream_channels_statistics; }
    }
}
CONF
    my $dir = tempdir(CLEANUP => 1);
    my $url = 'http://127.0.0.1:' . $nginx->port . '/ev?id=a';
    my $read = sub ($path) { open my $file, '<', $path or return ''; local $/; return <$file> // '' };
    my %reader;
    for my $name (sort keys %command) {
        my $command = $command{$name}->($url) or next;
        # gzip and zstd buffer what they read or write.
        $reader{$name} = { live => $name !~ /^(?:gzip|zstd)$/, out => "$dir/$name" };
        $reader{$name}{pid} = fork // die "fork: $!";
        if (!$reader{$name}{pid}) {
            open STDOUT, '>', "$dir/$name";
            open STDERR, '>', "$dir/$name.err";
            exec 'bash', '-c', "set -o pipefail; $command";
        }
    }
    my $count = keys %reader;
    plan skip_all => 'none of the programs is here' if !$count;
    ok wait_until { ($nginx->figures('a')->{subscribers} // 0) == $count }, "$count readers";
    my $expected = ": hello\n";
    for my $n (1 .. 30) {
        my $text = sprintf '{"number":%d,"text":"%s"}', $n, 'as it was before ' x ($n % 7);
        $nginx->post('/pub?id=a', $text);
        $expected .= "data: $text\n\n";
        for my $name (grep { $reader{$_}{live} } sort keys %reader) {
            next if wait_until { index($read->($reader{$name}{out}), "\"number\":$n,") >= 0 } 5 * ($ENV{TEST_SLOWNESS} || 1);
            fail "$name reads event $n at once";
        }
    }
    $nginx->delete('/pub?id=a');
    for my $name (sort keys %reader) {
        waitpid $reader{$name}{pid}, 0;
        is $?, 0, "$name ends without an error" or diag $read->("$dir/$name.err");
        my $got = $read->($reader{$name}{out});
        is substr($got, 0, length $expected), $expected, "$name has read everything";
        like $got, qr/: bye\n\z/, 'to the end';
    }
};

done_testing;
