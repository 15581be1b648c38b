# A worker that must leave and cannot yet, for one of its other connections is not done, costs nothing meanwhile, disturbs nobody, and goes
# when worker_shutdown_timeout says so.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;

only_over_plain_http1 'it holds a worker by a download that nobody reads';

with_nginx <<'CONF', sub ($nginx) {
%%MAIN%%
worker_shutdown_timeout 6s;
events {}
http {
    %%HTTP%%
    push_stream_handover off;
    push_stream_shared_memory_size 4m;
    push_stream_channels_path $arg_id;
    push_stream_ping_message_interval 200ms;

    server {
        listen 127.0.0.1:%%PORT%% sndbuf=16k;

        location /pub { push_stream_publisher admin; }
        location /ev { push_stream_subscriber eventsource; }
        location /status { push_stream_channels_statistics; }
        location /file { root %%DIR%%; send_timeout 10m; }
    }
}
CONF
    open my $file, '>', $nginx->dir . '/file' or die;
    print {$file} 'x' x 65536 for 1 .. 400;
    close $file;
    my @held = map {
        my $client = $nginx->connect(receive_buffer => 4096);
        $client->send_request(GET => '/file');
        $client->head;
        $client;
    } 1 .. 8;
    my @streams = map { $nginx->subscribe('/ev?id=a') } 1 .. 10;
    my %old = map { $_ => 1 } $nginx->worker_pids;
    $nginx->signal('HUP');
    my $start = time;
    is scalar(grep { eval { $_->chunks_to_end; 1 } } @streams), 10, 'all streams end at once';
    within time - $start, 2, 'really';
    ok wait_until { $nginx->worker_pids == $nginx->worker_count && !grep { $old{$_} } $nginx->worker_pids }, 'there are new workers';
    my @leaving = grep { $old{$_} } $nginx->worker_pids(leaving => 1);
    cmp_ok scalar @leaving, '>', 0, 'an old one is held';

    # In hundredths of a second, of all that leave.
    my $spent = sub {
        my $ticks = 0;
        for my $pid (@leaving) {
            my @fields = split ' ', PushStream::Nginx::_slurp("/proc/$pid/stat") =~ s/.*\) //r;
            $ticks += $fields[11] + $fields[12] if @fields;
        }
        return $ticks;
    };
    my ($before, $stream) = ($spent->(), $nginx->subscribe('/ev?id=a'));
    my $wrong = 0;
    for my $n (1 .. 300) {
        $nginx->post('/pub?id=a', "message $n");
        $wrong++ if $stream->event->{data} ne "message $n";
    }
    is $wrong, 0, '300 messages arrive';
    my @still = grep { PushStream::Nginx::is_alive($_) } @leaving;
    cmp_ok $spent->() - $before, '<', 10, 'which cost those who leave less than a tenth of a second' if @still;
    is_deeply [ map { $old{ $_->{pid} } ? 'old' : 'new' } grep { $_->{subscribers} } @{ $nginx->figures->{by_worker} } ], ['new'],
        'only a new one has subscribers';
    ok wait_until(sub { !grep { PushStream::Nginx::is_alive($_) } @leaving }, 12), 'in the end it goes';
    $nginx->post('/pub?id=a', 'the last');
    is $stream->event->{data}, 'the last', 'the others go on';
    $_->close for @held, $stream;
};

done_testing;
