# A real Prometheus with the configuration that we ship scrapes a real nginx under load; the alert rules hold, and every
# expression of the dashboard finds something.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;

only_over_plain_http1 'Prometheus scrapes plain HTTP here';

use File::Basename qw(dirname);
use File::Copy ();
use File::Temp ();
use IO::Socket::INET;
use JSON::PP ();

$ENV{TEST_WORKERS} //= 2;
my $kit = dirname($FindBin::Bin) . '/nginx-conf/metrics';

sub slurp ($file) { open my $in, '<', $file or die "$file: $!"; local $/; return scalar <$in> }

sub says ($command) {
    my $said = qx{cd $kit && promtool $command 2>&1};
    is $?, 0, "promtool $command" or diag $said;
}
says('check config prometheus.yml');
says('check rules --lint=all --lint-fatal alerts.yml');
says('test rules alerts.test.yml');

my $dashboard = JSON::PP::decode_json(slurp("$kit/dashboard.json"));
my @expressions = map { $_->{expr} } map { @{ $_->{targets} // [] } } @{ $dashboard->{panels} };
cmp_ok scalar @expressions, '>', 15, 'the dashboard asks for something';
my $rules = slurp("$kit/alerts.yml");

# A Prometheus of its own for this nginx; killed when it goes out of scope.
package Prometheus {
    sub start ($class, $nginx) {
        my $dir = File::Temp->newdir('push-stream-prometheus-XXXXXX', TMPDIR => 1);
        my $socket = IO::Socket::INET->new(LocalAddr => '127.0.0.1', Listen => 1) or die "no free port: $!\n";
        my $self = bless { dir => $dir, port => $socket->sockport, owner => $$ }, $class;
        close $socket;
        my $conf = main::slurp("$kit/prometheus.yml") =~ s/127\.0\.0\.1:9080/'127.0.0.1:' . $nginx->port/er =~ s/_interval: 15s/_interval: 100ms/gr;
        open my $out, '>', "$dir/prometheus.yml" or die $!;
        print {$out} $conf;
        close $out;
        File::Copy::copy("$kit/alerts.yml", "$dir/alerts.yml") or die $!;
        $self->{pid} = fork // die $!;
        if (!$self->{pid}) {
            open STDOUT, '>', "$dir/log";
            open STDERR, '>&', \*STDOUT;
            exec 'prometheus', "--config.file=$dir/prometheus.yml", "--storage.tsdb.path=$dir/data", "--web.listen-address=127.0.0.1:$self->{port}" or die $!;
        }
        return $self;
    }

    # Data of an API answer; undef while there is none.
    sub api ($self, $path) {
        my $client = eval { PushStream::Client->new($self->{port}) } // return undef;
        my $answer = eval { $client->request(GET => "/api/v1/$path")->json } // return undef;
        return $answer->{status} eq 'success' ? $answer->{data} : die "$path: $answer->{error}\n";
    }

    sub query ($self, $expression) {
        my $escaped = $expression =~ s/([^A-Za-z0-9_])/sprintf '%%%02x', ord $1/ger;
        my $data = $self->api("query?query=$escaped") // return [];
        return $data->{result};
    }

    sub DESTROY ($self) {
        return if $self->{owner} != $$;
        local $?;
        kill KILL => $self->{pid};
        waitpid $self->{pid}, 0;
    }
}

with_nginx <<'CONF', sub ($nginx) {
%%MAIN%%
events {}
http {
    log_format forms '$uri $sent_http_content_type';
    %%HTTP%%
    access_log %%DIR%%/forms.log forms;
    push_stream_shared_memory_size 32m;
    push_stream_store_messages on;

    server {
        listen 127.0.0.1:%%PORT%%;
        location = /pub { push_stream_publisher; push_stream_channels_path $arg_id; access_log off; }
        location = /sub { push_stream_subscriber eventsource; push_stream_channels_path $arg_id; }
        location = /metrics { push_stream_channels_statistics; push_stream_statistics_format prometheus; }
    }
}
CONF
    my $prometheus = Prometheus->start($nginx);
    my $publisher = $nginx->connect;
    my @readers = map { $nginx->subscribe('/sub?id=load') } 1 .. 20;
    my $published = 0;
    # Load while something is awaited.
    my $under_load = sub ($condition) {
        return wait_until {
            if (++$published % 900 == 0) { $publisher = $nginx->connect }
            $publisher->request(POST => '/pub?id=load', body => "message $published");
            $condition->();
        } 20;
    };

    ok $under_load->(sub { @{ $prometheus->query('up == 1') } }), 'it is scraped' or diag slurp("$prometheus->{dir}/log");
    ok $under_load->(sub { ($prometheus->query('sum(push_stream_messages_published_total)')->[0]{value}[1] // 0) > 100 }),
        'messages are counted';
    ok $under_load->(sub { ($prometheus->query('sum(rate(push_stream_messages_delivered_total[10s]))')->[0]{value}[1] // 0) > 0 }),
        'and their rate is known';
    like slurp($nginx->dir . '/forms.log'), qr{^/metrics application/openmetrics-text}m, 'as OpenMetrics';

    # What Grafana fills in.
    my @silent;
    for my $expression (map { s/\$__rate_interval/10s/gr =~ s/\$instance/.*/gr } @expressions) {
        push @silent, $expression if !$under_load->(sub { scalar @{ $prometheus->query($expression) } });
    }
    is_deeply \@silent, [], 'every expression of the dashboard finds something';

    my ($group) = @{ ($prometheus->api('rules') // {})->{groups} // [] };
    my @alerts = $rules =~ /- alert: (\w+)/g;
    is_deeply [ map { $_->{name} } @{ $group->{rules} } ], \@alerts, 'all alert rules are loaded';
    is_deeply [ grep { $_->{health} ne 'ok' } @{ $group->{rules} } ], [], 'and can be evaluated';
    is_deeply [ map { $_->{labels}{alertname} } @{ ($prometheus->api('alerts') // {})->{alerts} } ], [], 'none fires: all is well';

    $nginx->kill_worker(($nginx->worker_pids)[0]);
    # The old one may have gone with the worker.
    $publisher = $nginx->connect;
    ok $under_load->(sub {
        grep { $_->{labels}{alertname} eq 'PushStreamWorkerRestarts' } @{ ($prometheus->api('alerts') // {})->{alerts} };
    }), 'a worker that dies is an alert';
    my ($target) = @{ $prometheus->api('targets')->{activeTargets} };
    is $target->{lastError}, '', 'no scrape failed';
};

done_testing;
