# What the console says of faults: each is provoked, and stands there in words, with what to do. By key events alone, where something is done.
#
# TEST_SCREENSHOTS: a directory for pictures of it.

use v5.36;
use utf8;
use FindBin;
use lib "$FindBin::Bin/lib", "$FindBin::Bin/browser";
use PushStream::Test;

use File::Temp ();
use HTTP::Tiny ();
use MIME::Base64 qw(decode_base64);
use PushStream::Program;
use WebDriver;

binmode Test::More->builder->$_, ':utf8' for qw(output failure_output todo_output);
only_over_plain_http1 'the browser would have to be told of the certificate';
my $program = "$FindBin::Bin/../target/release/push-stream-worker";
plan skip_all => 'scripts/build makes the worker' if !-x $program;

my $http = <<'CONF';
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_shared_memory_size 1m;
    push_stream_channels_path $arg_id;
    push_stream_store_messages on;
    push_stream_max_messages_stored_per_channel 100000;
    push_stream_subscriber_queue 64k;
    keepalive_requests 1000000;
    client_body_buffer_size 64k;
    server {
        listen 127.0.0.1:%%PORT%% sndbuf=16k;
        location /pub { push_stream_publisher admin; push_stream_batch_publish on; push_stream_idempotent_publish on; }
        location /passing { push_stream_publisher; push_stream_store_messages off; }
        location /sub { push_stream_subscriber eventsource; }
        location /skip { push_stream_subscriber eventsource; push_stream_slow_reader skip; }
        CONSOLE
    }
}
CONF
my $other = PushStream::Nginx->start($http =~ s/CONSOLE/location = \/console { push_stream_console; }/r, workers => 1);
my ($admin, $intake) = map { PushStream::Program->free_port } 1 .. 2;
my $console = <<"CONF";
location = /console {
            push_stream_console;
            push_stream_admin_api on;
            push_stream_console_worker glue /glue/;
            push_stream_console_node east /east;
        }
        location /glue/ { internal; proxy_pass http://127.0.0.1:$admin/; }
        location = /east { internal; proxy_pass http://127.0.0.1:@{[ $other->port ]}/console; }
CONF
my $nginx = PushStream::Nginx->start($http =~ s/CONSOLE\n/$console/r, workers => 2);
$nginx->expect_in_log(qr/connect\(\) failed .* while connecting to upstream/);
$nginx->expect_in_log(qr/upstream prematurely closed connection|recv\(\) failed|upstream timed out/);

my $dir = File::Temp->newdir('push-stream-test-XXXXXX', TMPDIR => 1);
my $configure = sub ($channel, $retry = 'retry = true') {
    open my $file, '>', "$dir/worker.toml" or die $!;
    print {$file} <<"END";
state_dir = "$dir/state"
[admin]
listen = "127.0.0.1:$admin"
$retry
[source]
posts = { type = "http_in", listen = "127.0.0.1:$intake", path = "/in" }
[stage]
parse = { type = "parse_json" }
route = { type = "route", channels = ["$channel"] }
[sink]
nginx = { type = "http_push", nodes = ["http://127.0.0.1:@{[ $nginx->port ]}", "http://127.0.0.1:@{[ $other->port ]}"], timeout = "500ms" }
[pipeline]
live = { from = "posts", stages = ["parse", "route"], to = ["nginx"] }
END
    close $file;
};
my $start = sub () { PushStream::Program->start("$dir/worker.log", $program, 'run', "$dir/worker.toml") };
my $is_up = sub () { HTTP::Tiny->new(timeout => 5)->get("http://127.0.0.1:$admin/ready")->{success} };
my $post = sub ($event) { HTTP::Tiny->new(timeout => 30)->post("http://127.0.0.1:$intake/in", { content => $event })->{status} };
$configure->('thread.{thread}');
my $worker = $start->();
ok wait_until(sub { $is_up->() }, 20), 'a worker';

my $browser = WebDriver->new;
# axe takes its time on a busy machine.
$browser->call(POST => '/timeouts', { script => 300_000 });
# It looks every two seconds, of which the test waits for many.
$browser->devtools('Page.addScriptToEvaluateOnNewDocument', { source => 'const later = setTimeout; window.setTimeout = (what, ms) => later(what, ms / 5);' });
my ($ENTER, $TAB, $SPACE) = ("\x{e007}", "\x{e004}", ' ');
my $type = sub (@keys) { $browser->call(POST => '/actions', { actions => [ { type => 'key', id => 'keys', actions => [ map { { type => 'keyDown', value => $_ }, { type => 'keyUp', value => $_ } } @keys ] } ] }) };
my $health = sub () { $browser->js('return document.getElementById("health").innerText') };
my $says = sub ($pattern, $name, $provoke = undef) {
    ok wait_until(sub { $provoke->() if $provoke; $health->() =~ $pattern }, 30), $name or diag 'health: ' . $health->();
};
my $is_over = sub ($pattern, $name) {
    ok wait_until(sub { $health->() !~ $pattern }, 30), $name or diag 'health: ' . $health->();
};
# Presses Tab until what has the focus says so.
my $tab_to = sub ($words) {
    for (1 .. 60) {
        $type->($TAB);
        return 1 if $browser->js('const at = document.activeElement; return (at.getAttribute("aria-label") ?? at.textContent).trim()') =~ $words;
    }
    return 0;
};
my $axe = do { local (@ARGV, $/) = "$FindBin::Bin/../clients/js/node_modules/axe-core/axe.min.js"; -e $ARGV[0] ? <> : undef };
my $clean = sub ($name) {
    SKIP: {
        skip 'axe-core is not installed (scripts/test --only client)', 1 if !$axe;
        $browser->js($axe);
        my $found = $browser->call(POST => '/execute/async', { args => [], script =>
            'const done = arguments[0]; axe.run({ resultTypes: ["violations"] }).then(({ violations }) => done(violations.map(({ id, nodes }) => `${id}: ${nodes.map((node) => node.target).join(", ")}`)), (error) => done([String(error)]))' });
        is_deeply $found, [], "$name: axe finds nothing";
    }
};
my $picture = sub ($name) {
    my $directory = $ENV{TEST_SCREENSHOTS} or return;
    open my $file, '>:raw', "$directory/console-$name.png" or die $!;
    print {$file} decode_base64($browser->call(GET => '/screenshot'));
};

$browser->open_url('http://127.0.0.1:' . $nginx->port . '/console');
$says->(qr/^All well: 0 subscribers/, 'all is well');
ok wait_until(sub { $browser->js('return document.getElementById("node-rows").innerText') =~ /^this one\tanswers\t0\t.*\neast\tanswers\t0\t/ }, 20), 'both nodes'
    or diag $browser->js('return document.getElementById("node-rows").innerText');
ok wait_until(sub { $browser->js('return document.getElementById("pipelines").innerText') =~ /^Worker glue\s+Up \d+ s\. Source posts: works.*Nodes: \S+ answers, \S+ answers\./m }, 20), 'the worker'
    or diag $browser->js('return document.getElementById("pipelines").innerText');

subtest 'readers that are too slow' => sub {
    for my $case ([ '/sub?id=close', qr/Too slow, so closed: [\d.]+ readers?(?: in the last minute|\/s)\..*push_stream_subscriber_queue/ ], [ '/skip?id=skip', qr/Readers too slow, so they skip [\d.,]+[KM]? messages?.*push_stream_subscriber_queue/ ]) {
        my ($uri, $words) = @$case;
        my ($channel) = $uri =~ /id=(.*)/;
        my $slow = $nginx->connect(receive_buffer => 4096);
        $slow->send_request(GET => $uri);
        $slow->head;
        my $publisher = $nginx->connect;
        $says->($words, "$channel: in words", sub { $publisher->request(POST => "/passing?id=$channel", body => 'x' x 4000) for 1 .. 50 });
    }
};

subtest 'an nginx worker dies' => sub {
    my ($victim) = $nginx->worker_pids;
    $nginx->kill_worker($victim);
    $says->(qr/An nginx worker has died, and was started again\..*exited on signal.*error log/, 'in words');
};

subtest 'a pipeline parks' => sub {
    cmp_ok $post->('{"no":1}'), '>=', 400, 'an event that nobody can route';
    $says->(qr/Worker glue: [\d.,]+[KM]? events?(?:\/s parked| parked in the last minute) at route\. .*reasons under Pipelines.*push-stream-worker park retry/, 'in words');
    ok $tab_to->(qr/^Show parked events$/), 'to the button';
    $type->($ENTER);
    my $events = sub () { $browser->js('return document.querySelector("#pipelines ol").innerText') };
    ok wait_until(sub { $events->() =~ /^posts · \S+ · \S+: stage route: no channel: .*\n\{"no":1\}\n/ }, 20), 'the event, with its reason' or diag $events->();
};

subtest 'a node goes away' => sub {
    $other->signal(KILL => $_) for $other->master, $other->worker_pids;
    ok wait_until(sub { !$other->is_running }, 20), 'it is killed';
    $says->(qr/Node east is away \(no answer\): its readers are cut off.*Start nginx there/, 'in words');
    my $waiting = PushStream::Program->start("$dir/post.log", sub { $post->('{"thread":1}') });
    my $address = '127.0.0.1:' . $other->port;
    $says->(qr/Worker glue: node http:\/\/\Q$address\E\S* \(sink nginx\) does not answer, so its readers get nothing new\. Start its nginx/, 'the worker says so, too');
    like $browser->js('return document.getElementById("node-rows").innerText'), qr/^east\tno answer/m, 'the table, too';
    $clean->('with faults, and parked events');
    $picture->('parked');
    $browser->js('scrollTo(0, 0)');
    $picture->('faults');
    $other->launch_again;
    $is_over->(qr/east|sink nginx/, 'it is back');
    ok wait_until(sub { $waiting->has_ended }, 30), 'with what was published meanwhile';
};

subtest 'parked events are retried' => sub {
    my $said = sub () { $browser->js('return document.querySelector("#pipelines [role=status]").innerText') };
    ok $tab_to->(qr/^Retry all$/), 'to another button';
    $type->($SPACE);
    ok wait_until(sub { $said->() =~ /1 still parked/ }, 30), 'not mended, so still there' or diag $said->();
    $configure->('mended');
    ok $tab_to->(qr/^Retry \S+$/), 'to the one of the event' or diag $browser->js('return document.activeElement.outerHTML');
    $type->($ENTER);
    ok wait_until(sub { $said->() =~ /^1 of 1 done\. Nothing is parked\.$/ }, 30), 'retried' or diag $said->();
    is $nginx->get('/pub?id=mended')->json->{published_messages}, 1, 'its readers have it';
    is $browser->js('return document.activeElement.textContent'), 'Worker glue', 'the focus is not lost';
};

# Whoever gets to the worker's own address.
my $asks = sub ($method, $path, %headers) { my $answer = HTTP::Tiny->new(timeout => 30)->request($method, "http://127.0.0.1:$admin$path", { headers => \%headers }); "$answer->{status} $answer->{content}" };
my %FROM_CONSOLE = ('X-Nginx-PushStream-Console' => 1);
subtest 'at the address of the worker' => sub {
    like $asks->(POST => '/parked/retry'), qr/^403 .*needs the header/, 'no page of another origin retries';
    like $asks->(GET => '/parked/retry', %FROM_CONSOLE), qr/^405 /, 'looking changes nothing';
    like $asks->(POST => '/parked', %FROM_CONSOLE), qr/^405 /, 'nor is more offered';
    like $asks->(POST => '/parked/retry?--all', %FROM_CONSOLE), qr/^200 .*no dead letter has the id --all/, 'an id is no option';
    like $asks->(POST => '/parked/retry?%ff', %FROM_CONSOLE), qr/^400 /, 'nor anything but text';
    is $asks->(GET => '/parked'), qq(200 {"total":0,"events":[]}\n), 'nothing is parked';
};

subtest 'the worker dies' => sub {
    $worker->end('KILL');
    $configure->('mended', '');
    $says->(qr/Worker glue does not answer \(no answer\): nothing new comes from it.*Start it/, 'in words');
    $worker = $start->();
    $is_over->(qr/Worker glue does not answer/, 'it is back');
    like $asks->(POST => '/parked/retry', %FROM_CONSOLE), qr/^403 .*retry = true is not set/, 'retries only if it is told that it may';
};

subtest 'the zone is full' => sub {
    my $client = $nginx->connect;
    $says->(qr/Zone (?:9\d|100) % full, refusing [\d.,]+[KM]? requests.*raise push_stream_shared_memory_size.*push_stream_on_full evict/, 'here', sub { $client->request(POST => '/pub?id=flood', body => 'x' x 4000) for 1 .. 100 });
    my $there = $other->connect;
    $says->(qr/Node east: Zone (?:9\d|100) % full, refusing [\d.,]+[KM]? requests/, 'at the other node', sub { $there->request(POST => '/pub?id=flood', body => 'x' x 4000) for 1 .. 100 });
    $nginx->expect_in_log(qr/shared zone is full/);
    $other->expect_in_log(qr/shared zone is full/);
};

$browser->open_url('about:blank');
is $worker->end, 0, 'the worker ends well';
for my $one ($nginx, $other) {
    $one->stop;
    is join('', $one->complaints), '', 'nothing alarming in the error log';
}
done_testing;
