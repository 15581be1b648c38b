# Publishing the same id again changes nothing, however often, from wherever, and whoever dies meanwhile.
#
# TEST_IDEMPOTENT_MESSAGES: how many; default 200.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;

use POSIX ();

my $conf = <<'CONF';
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_shared_memory_size 128m;
    push_stream_channels_path $arg_id;
    push_stream_store_messages on;
    push_stream_idempotent_window %%WINDOW%%;
    push_stream_max_messages_stored_per_channel 1000000;
    keepalive_requests 1000000;

    server {
        listen 127.0.0.1:%%PORT%% reuseport;

        location /pub { push_stream_publisher admin; push_stream_idempotent_publish on; push_stream_out_of_order store; }
        location /batch { push_stream_publisher; push_stream_idempotent_publish on; push_stream_batch_publish on; }
        location /often { push_stream_publisher; }
        location /sub { push_stream_subscriber; push_stream_message_template "~text~;"; }
        location /poll { push_stream_subscriber polling; push_stream_message_template "~text~;"; }
    }
}
CONF

with_nginx $conf =~ s/%%WINDOW%%/100/r, sub ($nginx) {
    my $publish = sub ($channels, $id, $text = $id) { $nginx->post("/pub?id=$channels", $text, 'Event-Id' => $id) };
    my $duplicates = sub ($answer) { $answer->status . ' ' . ($answer->header('X-Nginx-PushStream-Duplicate') // '-') };
    is $duplicates->($publish->('a/b', 'any form')), '200 -', 'an id is new';
    is $duplicates->($publish->('a', 'any form', 'another text')), '200 1', 'then it is known, whatever the text';
    my $answer = $publish->('c/a/b', 'any form');
    is $duplicates->($answer), '200 2', 'of several channels only the others get it';
    is_deeply [ map { $_->{published_messages} } @{ $answer->json->{infos} } ], [ 1, 1, 1 ], 'once each';
    is $duplicates->($publish->('a/a', 'twice')), '200 1', 'also of one that is named twice';
    is $duplicates->($nginx->post('/pub?id=a', 'x')), '200 -', 'a message without an id is always new';
    is $duplicates->($nginx->post('/pub?id=a', 'x')), '200 -', 'always';
    is $duplicates->($nginx->post('/often?id=a', 'x', 'Event-Id' => 'any form')), '200 -', 'where nothing is asked for nothing is known';

    my $newest = sub ($answer) { $answer->header('X-Nginx-PushStream-Event-Id') // '-' };
    is $newest->($nginx->post('/pub?id=n', 'x')), '-', 'a channel without ids has no newest one';
    $publish->(n => '7-1');
    is $newest->($nginx->post('/pub?id=n', 'x')), '7-1', 'a message without an id is answered with the newest that there is';
    is $newest->($nginx->get('/pub?id=n')), '7-1', 'as a question is';
    is $newest->($nginx->post('/pub?id=n/none', 'x')), '-', 'of several channels, that of the last';
    is $newest->($nginx->post('/often?id=n', 'x')), '-', 'where nothing is asked for nothing is told';

    $publish->(w => $_) for 1 .. 101;
    is $duplicates->($publish->(w => 2)), '200 1', 'the last hundred ids are known';
    is $duplicates->($publish->(w => 1)), '200 -', 'no more';

    my $line = '{"channels": ["l", "a"], "text": "x", "id": "any form"}';
    my $verdicts = $nginx->post('/batch', "$line\n$line\n", 'Content-Type' => 'application/x-ndjson')->body;
    my ($first, $second) = map { /"duplicate": (\d)/ ? $1 : '-' } split /\n/, $verdicts;
    is "$first $second", '1 2', 'lines of a batch are no different';

    $nginx->reload;
    is $duplicates->($publish->(a => 'twice')), '200 1', 'a reload forgets nothing';
    $nginx->delete('/pub?id=a');
    is $duplicates->($publish->(a => 'twice')), '200 -', 'a deleted channel takes what it knew along';
};

my $count = $ENV{TEST_IDEMPOTENT_MESSAGES} || 200;

# Two publishers send the same ids, each to a worker of its own, again and again until they have an answer; workers are killed.
# One may be far behind the other.
with_nginx $conf =~ s/%%WINDOW%%/$count/r, sub ($nginx) {
    my @publishers = map {
        my $number = $_;
        my $pid = fork // die;
        if (!$pid) {
            my ($client, $refused) = (undef, 0);
            for my $n (1 .. $count) {
                my $status = 0;
                for (1 .. 200) {
                    $client //= eval { $nginx->connect };
                    $status = eval {
                        $client->request(POST => '/pub?id=x/y', headers => { 'Event-Id' => "id $n" }, body => "m$n")->status;
                    } // 0;
                    last if $status == 200;
                    $client = undef;
                    sleep 0.005;
                }
                $refused++ if $status != 200;
            }
            POSIX::_exit($refused ? 1 : 0);
        }
        $pid;
    } 1, 2;
    my $kills = 0;
    my $gave_up = 0;
    my $running = sub {
        @publishers = grep {
            my $ended = waitpid $_, POSIX::WNOHANG;
            $gave_up++ if $ended && $?;
            !$ended;
        } @publishers;
        return scalar @publishers;
    };
    while ($running->()) {
        my @pids = $nginx->worker_pids;
        if (@pids) {
            $nginx->kill_worker($pids[ rand @pids ]);
            $kills++;
        }
        # A new worker has to come up in between, or nothing is published.
        sleep($count > 1000 ? 0.3 : 0.02);
    }
    is $gave_up, 0, "$kills workers were killed, and no publisher gave up";
    diag "$kills workers were killed" if $count > 1000;
    for my $channel (qw(x y)) {
        my @texts = $nginx->get("/poll?id=$channel.b1000000")->body =~ /(m\d+);/g;
        my %times;
        $times{$_}++ for @texts;
        is scalar(grep { ($times{"m$_"} // 0) == 1 } 1 .. $count), $count, "$channel: each message exactly once";
        is scalar(@texts), $count, "$channel: and nothing else";
    }
};

done_testing;
