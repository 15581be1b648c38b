# What the worker's doctor finds at a real nginx, and says to do about it.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;

use File::Temp ();

only_over_plain_http1 'its nodes are plain';

my $program = "$FindBin::Bin/../target/release/push-stream-worker";
plan skip_all => 'scripts/build makes the worker' if !-x $program;
$ENV{TEST_WORKERS} = '1';

with_nginx <<'CONF', sub ($nginx) {
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_shared_memory_size 1m;
    push_stream_channels_path $arg_id;

    server {
        listen 127.0.0.1:%%PORT%%;

        location /pub { push_stream_publisher admin; push_stream_batch_publish on; push_stream_idempotent_publish on; }
        location /single { push_stream_publisher; }
        location /closed { deny all; push_stream_publisher; }
        location /page { root %%DIR%%; try_files $uri =404; }
        location /status { push_stream_channels_statistics; }
    }
}
CONF
    my $dir = File::Temp->newdir('push-stream-test-XXXXXX', TMPDIR => 1);
    my $node = 'http://127.0.0.1:' . $nginx->port;
    # Its words, and whether it is content.
    my $doctor = sub ($sink) {
        open my $file, '>', "$dir/worker.toml" or die $!;
        print {$file} <<"END";
state_dir = "$dir/state"
[source]
posts = { type = "file", path = "$dir/posts" }
[stage]
parse = { type = "parse_json" }
route = { type = "route", channels = ["a"] }
[sink]
nginx = { type = "http_push", nodes = ["$node"], $sink }
[pipeline]
live = { from = "posts", stages = ["parse", "route"], to = ["nginx"] }
END
        close $file;
        my $said = qx{'$program' doctor '$dir/worker.toml' 2>&1};
        return ($said, $? == 0);
    };

    $nginx->post('/pub?id=a', 'x');
    my ($said, $is_well) = $doctor->('statistics = "/status"');
    ok $is_well, 'a node as it should be';
    like $said, qr{^ok +sink nginx: $node answers at /pub$}m, 'is there';
    like $said, qr{^ok +sink nginx: $node counts 1 published messages at /status$}m, 'with its figures';
    unlike $said, qr/^\w+ +sink nginx.*(?:takes one event|which memory|clock|only once)/m, 'and nothing to say against it';

    ($said, $is_well) = $doctor->('path = "/single?id="');
    ok $is_well, 'one without batches works, too';
    like $said, qr{^warning +sink nginx: .*push_stream_batch_publish on}m, 'and the advice is to switch them on';

    like $said, qr{^warning +sink nginx: .*push_stream_idempotent_publish on}m, 'and where duplicates are possible, to have them dropped';

    for my $case (
        [ 'path = "/elsewhere?id="', qr{40[45] [\w ]+ at /elsewhere: there is no push_stream_publisher; check "path"} ],
        [ 'path = "/page?id="', qr{40[45] [\w ]+ at /page: there is no push_stream_publisher} ],
        [ 'path = "/closed?id="', qr{403 Forbidden at /closed: let this machine in} ],
        [ 'statistics = "/pub?id=a"', qr{no figures at /pub\?id=a: no summary.*push_stream_channels_statistics} ],
        [ 'statistics = "/nowhere"', qr{no figures at /nowhere: it answers 404} ],
    ) {
        my ($sink, $pattern) = @$case;
        my ($said, $is_well) = $doctor->($sink);
        ok !$is_well, "$sink is an error";
        like $said, qr/^ERROR +sink nginx: \Q$node\E .*$pattern/m, 'with what to do about it';
    }
};

done_testing;
