# The worker before a real nginx, as in nginx-conf/cluster: a queue on Redis, one formatter, a log, and a feeder beside the node. A node that
# is restarted has its memory filled again before the feeder says that it is ready.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;

use File::Temp ();
use IO::Socket::INET;
use PushStream::Program;
use PushStream::Redis;

only_over_plain_http1 'the publisher listens on a unix socket';

my $top = "$FindBin::Bin/..";
my $worker = "$top/target/release/push-stream-worker";
plan skip_all => 'scripts/build makes the worker' if !-x $worker;
plan skip_all => 'scripts/setup test installs redis-server' if !PushStream::Program->find('redis-server');

# As a producer with the Thoonk library does it: in one transaction, for an id without its body is passed over.
sub put ($redis, $id, $body) {
    $redis->commands(
        ['MULTI'],
        [ LPUSH => 'feed.ids:posts', $id ],
        [ INCR => 'feed.publishes:posts' ],
        [ HSET => 'feed.items:posts', $id, $body ],
        [ ZADD => 'feed.published:posts', int(time * 1000), $id ],
        ['EXEC'],
    );
}

sub post ($n) { return qq({"id":"$n","forum":"cnn","thread":"9","author":{"name":"Ann","ip":"192.0.2.7"},"message":"<script>x</script>hi $n"}) }

sub answer ($port, $path) {
    my $socket = IO::Socket::INET->new(PeerAddr => "127.0.0.1:$port") or return '';
    print {$socket} "GET $path HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    return join '', <$socket>;
}

with_nginx <<'CONF', sub ($nginx) {
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_shared_memory_size 8m;
    push_stream_channels_path $arg_id;
    push_stream_store_messages on;

    server {
        listen 127.0.0.1:%%PORT%%;
        listen unix:%%DIR%%/publish.sock;

        location /pub {
            push_stream_publisher admin;
            push_stream_batch_publish on;
            push_stream_idempotent_publish on;
            client_max_body_size 1m;
            client_body_buffer_size 1m;
        }
        location /sub { push_stream_subscriber eventsource; push_stream_resume ordered; }
        location /status { push_stream_channels_statistics; }
    }
}
CONF
    my $dir = File::Temp->newdir('push-stream-test-XXXXXX', TMPDIR => 1);
    my $redis = PushStream::Redis->start;
    my ($formatter_admin, $feeder_admin) = map { PushStream::Program->free_port } 1 .. 2;
    my %common = (REDIS => $redis->url, PUBLISH => 'unix:' . $nginx->dir . '/publish.sock');
    my $start = sub ($name, $admin) {
        local %ENV = (%ENV, %common, ADMIN => "127.0.0.1:$admin", STATE_DIR => "$dir/$name");
        return PushStream::Program->start("$dir/$name.log", $worker, 'run', "$top/nginx-conf/cluster/$name.toml");
    };
    my $formatter = $start->('formatter', $formatter_admin);
    my $feeder = $start->('feeder', $feeder_admin);
    ok wait_until(sub { answer($feeder_admin, '/ready') =~ /200 OK/ }), 'the feeder is ready';

    my $browser = $nginx->subscribe('/sub?id=thread.9');
    put $redis, "job$_", post($_) for 1 .. 300;
    my @events = map { $browser->event(20) } 1 .. 300;
    is scalar(grep { /hi (\d+)/ } map { $_->{data} } @events), 300, 'everything comes';
    is join(' ', map { $_->{data} =~ /hi (\d+)/ } @events), join(' ', 1 .. 300), 'in order';
    unlike $events[0]{data}, qr/script|192/, 'clean';
    like $events[0]{id}, qr/^\d+-\d+$/, 'with the ids of the log';
    my $metrics = answer $feeder_admin, '/metrics';
    like $metrics, qr/push_stream_worker_node_takes_batches\{.*\} 1/, 'in batches';

    # nginx comes back with an empty memory.
    $nginx->stop;
    put $redis, "late$_", post($_) for 301 .. 310;
    ok wait_until(sub { answer($feeder_admin, '/ready') =~ /503/ }), 'without nginx the feeder is not ready';
    $nginx->launch_again;
    ok wait_until(sub { answer($feeder_admin, '/ready') =~ /200 OK/ }, 20), 'with it, it is again';
    is $nginx->figures('thread.9')->{stored_messages}, 310, 'and everything is there again';

    # Also when nothing comes meanwhile.
    $nginx->stop;
    ok wait_until(sub { answer($feeder_admin, '/ready') =~ /503/ }), 'the feeder notices by itself that nginx is gone';
    $nginx->launch_again;
    ok wait_until(sub { answer($feeder_admin, '/ready') =~ /200 OK/ }, 20), 'and that it is back';
    is $nginx->figures('thread.9')->{stored_messages}, 310, 'with everything';

    # An upgrade of nginx's binary: somebody always listens, and the new one begins with nothing.
    my $old = $nginx->master;
    $nginx->signal('USR2');
    ok wait_until(sub { my $new = $nginx->follow_pid_file; $new && $new != $old && $nginx->worker_pids == $nginx->worker_count }, 20), 'a new nginx';
    $nginx->signal(QUIT => $old);
    ok wait_until(sub { !PushStream::Nginx::is_alive($old) }, 20), 'and the old one is gone';
    ok wait_until(sub { (eval { $nginx->figures('thread.9')->{stored_messages} } // 0) == 310 }, 20), 'the new one is filled';
    put $redis, 'last', post(311);
    ok wait_until(sub { (eval { $nginx->figures('thread.9')->{stored_messages} } // 0) == 311 }, 20), 'and goes on';

    is $feeder->end, 0, 'the feeder ends well';
    is $formatter->end, 0, 'so does the formatter';
}, daemon => 1;

done_testing;
