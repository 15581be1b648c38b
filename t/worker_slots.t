# The zone has a slot for each worker, and as many as a reload may bring; one that brings more is refused.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;

my $conf = <<'CONF';
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_shared_memory_size 1m;
    push_stream_channels_path $arg_id;
    push_stream_store_messages on;

    server {
        listen 127.0.0.1:%%PORT%% reuseport;

        location /pub { push_stream_publisher; }
        location /sub { push_stream_subscriber; }
        location /status { push_stream_channels_statistics; }
    }
}
CONF

with_nginx $conf, sub ($nginx) {
    my $few = $nginx->worker_count;
    is $nginx->post('/pub?id=a', 'before')->status, 200, 'a message is published';

    # More than any number of processors asks for.
    my $many = 4 * (2 * `nproc` + 64);
    my $refused = qr/\[emerg\].* push stream: zone "push_stream_module": it was made for (\d+) worker processes at most, and worker_processes is $many now/;
    $nginx->expect_in_log($refused);
    my %before = map { $_ => 1 } $nginx->worker_pids;
    $nginx->write_conf($conf =~ s/%%MAIN%%/%%MAIN%%\nREPLACED/r);
    my $text = do { local (@ARGV, $/) = ($nginx->dir . '/nginx.conf'); <> };
    my $set_workers = sub ($count) {
        open my $file, '>', $nginx->dir . '/nginx.conf' or die $!;
        print {$file} $text =~ s/REPLACED//r =~ s/worker_processes \d+;/worker_processes $count;/r;
        close $file;
    };
    $set_workers->($many);
    $nginx->signal('HUP');
    ok $nginx->wait_for_log($refused), 'a reload to far more workers is refused with the reason';
    my ($slots) = $nginx->log =~ $refused;
    cmp_ok $slots, '>=', 64, "there are $slots slots";
    is scalar(grep { $before{$_} } $nginx->worker_pids), $few, 'the old workers go on';
    is $nginx->get('/pub?id=a')->json->{stored_messages}, 1, 'with what they had';

    my $more = 24;
    $set_workers->($more);
    $nginx->{workers} = $more;
    $nginx->reload;
    ok wait_until(sub { $nginx->figures->{by_worker} && @{ $nginx->figures->{by_worker} } == $more }, 10), "$more workers have a slot each";
    is scalar(grep { $nginx->get('/pub?id=a')->status != 200 } 1 .. 100), 0, 'and all of them answer';
    unlike $nginx->log, qr/slots of the zone are taken/, 'none waits for one';
};

done_testing;
