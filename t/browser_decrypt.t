# The sealed firehose of docs/examples, from the queue to a page that has the key and opens it with docs/examples/decrypt.js. What was tampered
# with does not open.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib", "$FindBin::Bin/browser";
use PushStream::Test;

use File::Temp ();
use JSON::PP qw(decode_json);
use PushStream::Program;
use PushStream::Redis;
use WebDriver;

my $top = "$FindBin::Bin/..";
my $program = "$top/target/release/push-stream-worker";
plan skip_all => 'scripts/build makes the worker' if !-x $program;
$ENV{TEST_WORKERS} //= '2';

my $page = <<'HTML';
<!doctype html><title>page</title><script type="module">
import { opener } from "/examples/decrypt.js";
const key = new Uint8Array(32).fill(7);
const open = await opener({ k7: key }), other = await opener({ k7: key.fill(8) });
const opened = [], refused = [];
const fails = (what, text, how = open) => how(text).then(() => 0, () => refused.push(what));
new EventSource("/sub?id=secure.forum.cnn").onmessage = async ({ data }) => {
    const envelope = JSON.parse(data);
    await fails("another key", data, other);
    await fails("another id", JSON.stringify({ ...envelope, id: "1-1" }));
    await fails("changed text", JSON.stringify({ ...envelope, data: "AAAA" + envelope.data.slice(4) }));
    await fails("unknown key", JSON.stringify({ ...envelope, kid: "k8" }));
    opened.push([data, await open(data)]);
};
window.seen = () => ({ opened, refused });
</script>
HTML

my $browser = WebDriver->new;

with_nginx <<'CONF' =~ s/%%EXAMPLES%%/$top\/docs/r, sub ($nginx) {
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_shared_memory_size 4m;
    push_stream_channels_path $arg_id;
    push_stream_store_messages on;
    types { text/html html; text/javascript js; }

    server {
        listen 127.0.0.1:%%PORT%%;
        listen unix:%%DIR%%/publish.sock;

        location = /page.html { root %%DIR%%; }
        location /examples/ { root %%EXAMPLES%%; }
        location /pub { push_stream_publisher admin; push_stream_batch_publish on; }
        location /sub { push_stream_subscriber eventsource; }
        location /status { push_stream_channels_statistics; }
    }
}
CONF
    my $dir = File::Temp->newdir('push-stream-test-XXXXXX', TMPDIR => 1);
    my %text = ("$dir/firehose.key" => chr(7) x 32, $nginx->dir . '/page.html' => $page);
    for my $path (keys %text) {
        open my $file, '>', $path or die $!;
        print {$file} $text{$path};
        close $file;
        chmod 0600, $path if $path =~ /key/;
    }
    my $redis = PushStream::Redis->start;
    local %ENV = (%ENV, REDIS => $redis->url, KEY => "$dir/firehose.key", PUBLISH => 'unix:' . $nginx->dir . '/publish.sock', STATE_DIR => "$dir/state");
    my $worker = PushStream::Program->start("$dir/worker.log", $program, 'run', "$top/docs/examples/json-secure-http.toml");
    $browser->open_url('http://127.0.0.1:' . $nginx->port . '/page.html');
    ok wait_until(sub { ($nginx->figures->{subscribers} // 0) == 1 }, 20), 'the page is there';

    $redis->command('XADD', 'posts', '*', 'body', qq({"id":"$_","forum":"cnn","thread":"9","author":{"id":"3"},"message":"secret no $_ \\u00fc"})) for 1 .. 3;
    ok wait_until(sub { @{ $browser->js('return seen().opened') } == 3 }, 30), 'three posts come';
    my $seen = $browser->js('return seen()');
    unlike join('', map { $_->[0] } @{ $seen->{opened} }), qr/secret/, 'nothing of them can be read on the way';
    is_deeply [ sort map { decode_json(_bytes($_->[1]))->{message} } @{ $seen->{opened} } ], [ map { "secret no $_ \x{fc}" } 1 .. 3 ],
        'the page can read them';
    my %refused;
    $refused{$_}++ for @{ $seen->{refused} };
    is_deeply \%refused, { map { $_ => 3 } 'another key', 'another id', 'changed text', 'unknown key' }, 'and nothing that is not as it was sealed';
    is $worker->end, 0, 'the worker ends well';
    diag qx{cat '$dir/worker.log'} unless Test::More->builder->is_passing;
    $browser->open_url('about:blank');
};

sub _bytes ($text) { utf8::encode($text); return $text }

done_testing;
