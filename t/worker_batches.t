# Batches between the worker and a real node, in order and without: a node that takes them, that takes few lines, that takes some of them, and
# one that changes its mind while the worker runs.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;

use File::Temp ();
use IO::Socket::INET;
use PushStream::Program;

# What belongs together goes to one channel: a channel takes ids only in their order.
use constant KEYS => 50;

only_over_plain_http1 'the publisher listens on a unix socket';

my $program = "$FindBin::Bin/../target/release/push-stream-worker";
plan skip_all => 'scripts/build makes the worker' if !-x $program;

my $conf = <<'CONF';
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_shared_memory_size 16m;
    push_stream_channels_path $arg_id;
    push_stream_store_messages on;
    push_stream_max_channel_id_length 20;

    server {
        listen 127.0.0.1:%%PORT%%;
        listen unix:%%DIR%%/publish.sock;

        location /pub {
            push_stream_publisher admin;
            push_stream_idempotent_publish on;
            client_body_buffer_size 1m;
            push_stream_batch_publish on;
        }
        location /status { push_stream_channels_statistics; }
    }
}
CONF

sub metrics ($port) {
    my $socket = IO::Socket::INET->new(PeerAddr => "127.0.0.1:$port") or return '';
    print {$socket} "GET /metrics HTTP/1.0\r\nHost: x\r\n\r\n";
    return join '', <$socket>;
}

for my $ordered (qw(true false)) {
    with_nginx $conf, sub ($nginx) {
        my $dir = File::Temp->newdir('push-stream-test-XXXXXX', TMPDIR => 1);
        my $admin = PushStream::Program->free_port;
        my $publish = $nginx->dir . '/publish.sock';
        open my $file, '>', "$dir/worker.toml" or die $!;
        print {$file} <<"END";
state_dir = "$dir/state"
[admin]
listen = "127.0.0.1:$admin"
[source]
posts = { type = "file", path = "$dir/posts", start = "beginning" }
[stage]
parse = { type = "parse_json" }
route = { type = "route", channels = ["{to}.{key}"], order_by = "key" }
[sink]
nginx = { type = "http_push", nodes = ["unix:$publish"], ordered = $ordered, retry = { initial = "10ms", max = "200ms" } }
[pipeline]
live = { from = "posts", stages = ["parse", "route"], to = ["nginx"] }
END
        close $file;
        open my $posts, '>>', "$dir/posts" or die $!;
        $posts->autoflush(1);
        my $worker = PushStream::Program->start("$dir/worker.log", $program, 'run', "$dir/worker.toml");
        ok wait_until(sub { metrics($admin) =~ /push_stream_worker_component_received/ }, 20), "ordered = $ordered: the worker is there";

        my %sent;
        my $write = sub ($to, $count) {
            $sent{$to} += $count;
            # At once, so that they can go together.
            print {$posts} join '', map { sprintf qq({"n":%d,"to":"%s","key":%d}\n), $_, $to, $_ % KEYS } 1 .. $count;
        };
        my $published = sub ($to) {
            my $all = 0;
            $all += $nginx->figures("$to.$_")->{published_messages} // 0 for 0 .. KEYS - 1;
            return $all;
        };
        my $arrives = sub ($to) { wait_until { $published->($to) == $sent{$to} } 30 };
        my $takes_batches = sub { metrics($admin) =~ /push_stream_worker_node_takes_batches\{[^}]*\} (\d)/ ? $1 : '' };
        my $requests = sub ($code) { metrics($admin) =~ /push_stream_worker_sink_requests_total\{[^}]*code="$code"[^}]*\} (\d+)/ ? $1 : 0 };

        # As nginx counts them.
        my $post_count = sub { open my $log, '<', $nginx->dir . '/access.log' or die $!; return scalar grep { m{"POST /pub} } <$log> };
        $write->(on => 500);
        ok $arrives->('on'), 'with batches everything comes';
        is $takes_batches->(), 1, 'they are known to be offered';
        cmp_ok $post_count->(), '<', 250, 'and used';

        $nginx->reload($conf =~ s/(batch_publish on;)/$1 push_stream_batch_max_lines 3;/r);
        $write->(few => 300);
        ok $arrives->('few'), 'a node that takes no more than three lines gets everything, too';
        cmp_ok $requests->(413), '>', 0, 'after it has refused more';

        $nginx->reload($conf =~ s/batch_publish on;/batch_publish off;/r);
        $write->(off => 300);
        ok $arrives->('off'), 'so does one that takes no batches any more';
        ok wait_until(sub { $takes_batches->() eq '0' }), 'which is known by now';

        $nginx->reload($conf);
        $write->(again => 300);
        ok $arrives->('again'), 'and one that takes them again';

        # Lines of one batch with fates of their own.
        print {$posts} join '', map { qq({"n":$_,"to":"much-too-long-for-an-id","key":$_}\n{"n":$_,"to":"rest","key":$_}\n) } 1 .. 5;
        $sent{rest} = 5;
        ok $arrives->('rest'), 'what is good comes';
        my $parked = sub { open my $in, '<', "$dir/state/parked.ndjson" or return ''; join '', <$in> };
        ok wait_until(sub { 5 == grep { /much-too-long/ } split /\n/, $parked->() }, 20), 'what is not is parked' or diag $parked->();
        like $parked->(), qr/"reason":[^\n]*400/, 'with the reason';
        is $published->($_), $sent{$_}, "$_: each once" for sort keys %sent;
        is $worker->end, 0, 'the worker ends well';
        diag qx{cat '$dir/worker.log'} unless Test::More->builder->is_passing;
    };
}

done_testing;
