# A panic in the module costs at most the request or the connections that it concerns: the client gets 500 or is cut off, the worker
# lives, the shared zone is as it was before, and everything goes on at once.
#
# The module of `scripts/build --faults` panics where a file tells it to; a release has none of that.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;
use PushStream::WebSocket;

my $release = PushStream::Nginx::module();
my $faulty = $ENV{PUSH_STREAM_FAULTY_MODULE} || "$FindBin::Bin/../target/faults/debug/libngx_http_push_stream_module.so";
plan skip_all => "there is no $faulty: scripts/build --faults makes it" if !-e $faulty;

my $slurp = sub ($file) { open my $in, '<:raw', $file or die "$file: $!"; local $/; return scalar <$in> };
like $slurp->($faulty), qr/injected fault/, 'a module that panics on demand';
unlike $slurp->($release), qr/injected fault/, 'the release does not';

local $ENV{PUSH_STREAM_MODULE} = $faulty;
with_nginx <<'CONF', sub ($nginx) {
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_shared_memory_size 4m;
    push_stream_store_messages on;
    push_stream_channels_path $arg_id;
    push_stream_message_template "~text~;";

    server {
        listen 127.0.0.1:%%PORT%% sndbuf=16k;

        location /pub { push_stream_publisher admin; }
        location /sub { push_stream_subscriber; push_stream_ping_message_interval 400ms; }
        location /ws { push_stream_subscriber websocket; }
        location /attached/sub { push_stream_subscriber; push_stream_detach off; }
        location /attached/ws { push_stream_subscriber websocket; push_stream_detach off; }
        location /lp { push_stream_subscriber long-polling; push_stream_longpolling_connection_ttl 10s; }
        location /short { push_stream_subscriber long-polling; push_stream_longpolling_connection_ttl 2s; }
        location /poll { push_stream_subscriber polling; }
        location /status { push_stream_channels_statistics; }
    }
}
CONF
    $nginx->expect_in_log(qr/push stream: panic in .*injected fault|panicked|subscribers closed after a panic/);
    my @pids = sort $nginx->worker_pids;
    my $panics = 0;

    my $arm = sub ($what) {
        my $file = $nginx->dir . '/fault';
        open my $out, '>', "$file.new" or die;
        print {$out} $what;
        close $out;
        rename "$file.new", $file or die;
    };
    my $has_happened = sub ($what) {
        ok wait_until { !-e $nginx->dir . '/fault' }, "$what: a panic";
        $panics++;
        ok wait_until { (() = $nginx->log =~ /push stream: panic in [^:]*: injected fault/g) == $panics }, "$what: the log says so";
    };
    my $goes_on = sub ($what) {
        is_deeply [ sort $nginx->worker_pids ], \@pids, "$what: the workers live";
        my $stream = $nginx->subscribe('/sub?id=on');
        is $nginx->post('/pub?id=on', $what)->status, 200, "$what: publishing goes on";
        # Pings may come before.
        is $stream->text_until(qr/\Q$what\E/) =~ s/^(?: ;)+//r, "$what;", "$what: and delivery";
        $stream->close;
        ok wait_until(sub { $nginx->figures->{subscribers} == 0 }, 3), "$what: nobody is counted who is gone"
            or diag $nginx->get('/status')->body;
    };

    # --- handlers: 500 ---
    $nginx->post('/pub?id=a', 'first');
    my %handlers = (
        publisher => sub { $nginx->post('/pub?id=a', 'lost') },
        publish => sub { $nginx->post('/pub?id=a', 'lost') },
        subscriber => sub { $nginx->get('/sub?id=a') },
        statistics => sub { $nginx->get('/status') },
    );
    for my $entry (sort keys %handlers) {
        $arm->($entry);
        is $handlers{$entry}->()->status, 500, "$entry: 500";
        $has_happened->($entry);
        $goes_on->($entry);
    }

    # --- inside a mutation of the shared zone: as if it had never begun ---
    my %all = ('If-Modified-Since' => 'Thu, 01 Jan 1970 00:00:00 GMT');
    for my $writes (0, 1, 3, 7, 12) {
        $arm->("store $writes");
        my $status = $nginx->post("/pub?id=a/new$writes", 'lost')->status;
        is $status, 500, "after $writes writes: 500";
        $has_happened->("after $writes writes");
        is $nginx->get('/poll?id=a', %all)->body, 'first;', "after $writes writes: nothing was published";
        is_deeply $nginx->figures("new$writes"), {}, "after $writes writes: no channel came into being";
        is $nginx->figures('a')->{published_messages}, 1, "after $writes writes: nothing was counted";
    }
    $goes_on->('the store');
    {
        # Somebody leaves: that must not stay undone.
        my $stream = $nginx->subscribe('/sub?id=leaving');
        $arm->('store 2');
        $stream->close;
        $has_happened->('leaving');
        $goes_on->('leaving');
    }

    # --- one connection ---
    for my $case ([ 'read event', '/attached/ws' ], [ 'read event of a detached subscriber', '/ws' ]) {
        my ($entry, $uri) = @$case;
        my $socket = PushStream::WebSocket->new($nginx, "$uri?id=a");
        $arm->($entry);
        $socket->send(PushStream::WebSocket::PING, 'x');
        ok $socket->client->is_closed, "$entry: the client is cut off";
        $has_happened->($entry);
        $goes_on->($entry);
    }
    for my $case ([ 'answer', '/lp', 1 ], [ 'time-out', '/short', 0 ]) {
        my ($entry, $uri, $publishes) = @$case;
        my $poll = $nginx->open(GET => "$uri?id=poll");
        ok wait_until { $nginx->figures('poll')->{subscribers} == 1 }, "$entry: a long poll";
        $arm->($entry);
        $nginx->post('/pub?id=poll', 'x') if $publishes;
        is $poll->response->status, 500, "$entry: 500";
        $has_happened->($entry);
        $goes_on->($entry);
    }
    {
        my $stream = $nginx->subscribe('/attached/sub?id=a');
        $arm->('request cleanup');
        $stream->close;
        $has_happened->('request cleanup');
        $goes_on->('request cleanup');
    }

    for my $case ([ 'write event', '/attached/sub' ], [ 'write event of a detached subscriber', '/sub' ]) {
        my ($entry, $uri) = @$case;
        my $slow = $nginx->connect(receive_buffer => 4096);
        $slow->send_request(GET => "$uri?id=slow");
        $slow->head;
        $nginx->post('/pub?id=slow', 'x' x 900_000);
        sleep 0.2;
        $arm->($entry);
        like eval { $slow->chunks_to_end; 1 } ? '' : $@, qr/ended/, "$entry: the client is cut off";
        $has_happened->($entry);
        $goes_on->($entry);
    }

    # --- what concerns all: they are cut off, for who got what is not known ---
    for my $entry ('delivery', 'render', 'hand out', 'timer wheel') {
        my @streams = map { $nginx->subscribe('/sub?id=all') } 1 .. 6;
        my $poll = $nginx->open(GET => '/lp?id=all');
        ok wait_until { $nginx->figures('all')->{subscribers} == 7 }, "$entry: seven subscribers";
        $arm->($entry);
        $nginx->post('/pub?id=all', 'x');
        $has_happened->($entry);
        my ($cut, $served) = (0, 0);
        for my $stream (@streams) {
            # Those of other workers are served.
            my $got = eval { $stream->text_until(qr/x;/, 2) } // '';
            if ($got =~ /x;/) { $served++ }
            else { $cut++ }
        }
        (eval { $poll->response(2)->body } // '') eq 'x;' ? $served++ : $cut++;
        is $cut + $served, 7, "$entry: $cut cut off, $served served";
        cmp_ok $cut, '>', 0, "$entry: nobody misses a message without noticing" if $entry ne 'timer wheel';
        $_->close for @streams, $poll;
        $goes_on->($entry);
    }

    # --- housekeeping ---
    {
        $arm->('tick');
        $has_happened->('tick');
        # The next one comes all the same, in every worker.
        for (1 .. $nginx->worker_count) {
            $arm->('tick');
            $has_happened->('tick');
            sleep 1.1;
        }
        $arm->('wake-up') if $nginx->worker_count > 1;
        $goes_on->('tick');
    }
    unlink $nginx->dir . '/fault';
};

done_testing;
