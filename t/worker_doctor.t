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

# The module that is tested, and the nginx that it is tested in: they fit. Another nginx stands in by what it says of itself.
subtest 'does a module fit an nginx' => sub {
    my $dir = File::Temp->newdir('push-stream-test-XXXXXX', TMPDIR => 1);
    my $nginx = qx{PATH=\$PATH:/usr/sbin; command -v @{[PushStream::Nginx->binary]}} =~ s/\n//r;
    my $module = PushStream::Nginx->module;
    my $doctor = sub (@arguments) {
        my $said = qx{'$program' doctor @arguments 2>&1};
        return ($said, $? == 0);
    };
    my ($version) = qx{'$nginx' -v 2>&1} =~ m{nginx/([\d.]+)};
    my ($said, $is_well) = $doctor->('--nginx', $nginx, '--module', $module);
    ok $is_well, 'it does';
    like $said, qr{^ok +nginx \Q$nginx\E is \Q$version\E$}m, 'the version of nginx';
    like $said, qr{^ok +module \Q$module\E fits it: version [\d.]+, commit \S+$}m, 'and of the module';

    my $pretend = sub ($version, $signature) {
        open my $file, '>', "$dir/nginx" or die $!;
        print {$file} "#!/bin/sh\necho 'nginx version: nginx/$version' >&2\necho 'configure arguments: --modules-path=$dir' >&2\n";
        print {$file} "exit\n\0$signature\0" if $signature;
        close $file;
        chmod 0755, "$dir/nginx";
    };
    $pretend->('1.2.3', '');
    ($said, $is_well) = $doctor->('--nginx', "$dir/nginx", '--module', $module);
    ok !$is_well, 'another version does not';
    like $said, qr{^ERROR +module \S+ is for nginx \Q$version\E, and this is 1\.2\.3: (?:install|build) }m, 'with a remedy';

    $pretend->($version, '4,4,4,' . '1' x 34);
    ($said, $is_well) = $doctor->('--nginx', "$dir/nginx", '--module', $module);
    ok !$is_well, 'nor do other options';
    like $said, qr{^ERROR +module \S+ is for an nginx \Q$version\E with other options}m, 'also with a remedy';

    ($said, $is_well) = $doctor->('--nginx', "$dir/nginx");
    ok !$is_well, 'without a module';
    like $said, qr{^ERROR +no module in \Q$dir\E: }m, 'where it was looked for';

    ($said, $is_well) = $doctor->('--nginx', "$dir/nginx", '--module', $program);
    like $said, qr{^ERROR +module \S+: says nothing of itself}m, 'any other file';
};

done_testing;
