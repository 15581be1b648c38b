# An operator sends one subject away: all its connections end, in all workers, and nobody else's.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;
use PushStream::Token;
use PushStream::WebSocket;

use Time::HiRes qw(time);

tokens({ claims => {} });    # makes the key
write_file(key_dir . '/keys.json', key_set('secret'));
my $keys = key_dir;

my $locations = <<'CONF';
        location /pub { push_stream_publisher admin; }
        location /admin { push_stream_publisher admin; push_stream_admin_api on; add_header X-Pid $pid; }
        location /guarded { push_stream_publisher admin; push_stream_admin_api on; push_stream_token required; push_stream_token_claims mercure; }
        location /status { push_stream_channels_statistics; }
        location /metrics { push_stream_channels_statistics; push_stream_statistics_format prometheus; }
        location /ev { push_stream_subscriber eventsource; push_stream_token required; push_stream_footer_template "bye"; }
        location /attached { push_stream_subscriber eventsource; push_stream_token required; push_stream_detach off; push_stream_footer_template "bye"; }
        location /stream { push_stream_subscriber; push_stream_token required; push_stream_footer_template "bye"; }
        location /lp { push_stream_subscriber long-polling; push_stream_token required; }
        location /ws { push_stream_subscriber websocket; push_stream_token required; }
        location /open { push_stream_subscriber eventsource; }
CONF

my $conf = <<"CONF";
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_shared_memory_size 4m;
    push_stream_channels_path \$arg_id;
    push_stream_token_keys $keys/keys.json;
    push_stream_log_disconnect %%DIR%%/ends.log;
    push_stream_detach_tls on;

    server {
        listen 127.0.0.1:%%PORT%%;
$locations
    }
}
CONF

my $closed = qr/\A(?:: \n)?event: closed\ndata: \{"status":403,"reason":"dismissed"\}\n\n: bye\n+\z/;
my $slowness = PushStream::Nginx::slowness;

# Tokens of users, each with this claim.
sub users (@subjects) {
    my $push = { subscribe => [qw(a b1 b2 b3 c)] };
    return map { +{ Authorization => "Bearer $_" } } tokens(map { { claims => { (defined ? (sub => $_) : ()), exp => int(time) + 3600, push => $push } } } @subjects);
}

# Ends a subject; the answer, with the time that it took.
sub send_away ($nginx, $subject) {
    my $began = time;
    my $answer = $nginx->delete("/admin?subject=$subject");
    return ($answer, time - $began);
}

# What is about several workers.
sub with_four_workers ($body) {
    local $ENV{TEST_WORKERS} = 4;
    return with_nginx $conf, $body;
}

# Workers that have subscribers.
sub workers_used ($nginx) { return scalar grep { $_ > 0 } $nginx->get('/metrics')->body =~ /^push_stream_worker_subscribers\{.*\} (\d+)$/mg }

my $http1 = ($ENV{TEST_TRANSPORT} // '') ne 'http2';

with_nginx $conf, sub ($nginx) {
    my ($mine, $other, $nobody) = users('42', '4', undef);
    my (@mine, @others);
    for my $round (1 .. 6) {
        push @mine, map { [ $_, $nginx->subscribe("/$_?id=a", %$mine) ] } qw(ev attached stream);
        push @others, map { $nginx->subscribe("/$_?id=a", %$other) } qw(ev attached stream);
        push @others, $nginx->subscribe('/ev?id=a', %$nobody), $nginx->subscribe('/open?id=a');
    }
    my @polls = map { $nginx->open(GET => "/lp?id=b$_", headers => $mine) } 1 .. 3;
    my $poll = $nginx->open(GET => '/lp?id=c', headers => $other);
    my @sockets = $http1 ? map { PushStream::WebSocket->new($nginx, '/ws?id=a', headers => $mine) } 1 .. 3 : ();
    my $socket = $http1 ? PushStream::WebSocket->new($nginx, '/ws?id=a', headers => $other) : undef;
    my $all = @mine + @others + @polls + 1 + @sockets + ($http1 ? 1 : 0);
    ok wait_until { $nginx->figures->{subscribers} == $all }, 'all are there';
    cmp_ok workers_used($nginx), '>', 1, 'in several workers' if $nginx->worker_count > 1;

    my ($answer, $seconds) = send_away($nginx, '42');
    is $answer->status, 200, 'an operator sends a subject away' or diag $answer->explain;
    is_deeply $answer->json, { subscribers => @mine + @polls + @sockets, workers_unanswered => 0 }, '... and is told how many connections have ended';
    is $nginx->figures->{subscribers}, @others + 1 + ($http1 ? 1 : 0), 'they are gone by then';
    note sprintf 'answered after %.1f ms', 1000 * $seconds;

    my $wrong = 0;
    for my $stream (@mine) {
        my ($mode, $client) = @$stream;
        my $rest = join '', $client->chunks_to_end;
        $wrong++ if $rest !~ ($mode eq 'stream' ? qr/\Abye\z/ : $closed);
        diag "$mode: $rest" if $wrong == 1;
    }
    is $wrong, 0, 'streams are told why, then come footer and end';
    is scalar(grep { $_->response->status == 304 } @polls), 3, 'polls are answered';
    is scalar(grep { $_->close_payload eq pack('n', 3001) . 'dismissed' } @sockets), @sockets, 'WebSockets are closed with a code of their own';

    $nginx->post('/pub?id=a', 'go on');
    $nginx->post('/pub?id=c', 'go on');
    is scalar(grep { $_->text_until(qr/go on/) } @others), @others, 'all others go on';
    is $poll->response->body, 'go on', '... a poll, too';
    is $socket->text, 'go on', '... and a WebSocket' if $socket;

    ($answer) = send_away($nginx, '42');
    is_deeply $answer->json, { subscribers => 0, workers_unanswered => 0 }, 'nothing is left of it';
    my $again = $nginx->subscribe('/ev?id=a', %$mine);
    is $again->status, 200, 'it may come back, as its token says';
    ($answer) = send_away($nginx, '42');
    is $answer->json->{subscribers}, 1, '... and be sent away again';

    my $log = sub { open my $file, '<', $nginx->dir . '/ends.log' or return ''; join '', <$file> };
    my $ended = @mine + @sockets + 1;
    ok wait_until { (() = $log->() =~ /reason=subject_dismissed$/mg) == $ended }, 'the log of disconnects has the reason' or diag $log->();
    ok wait_until { $nginx->get('/metrics')->body =~ /^push_stream_subscribers_closed_total\{reason="subject_dismissed"\} $ended$/m }, 'they are counted';

    for my $case (
        [ '/admin?subject=', 400, 'Argument subject is empty.' ],
        [ '/admin?subject=4&id=a', 400, 'Argument subject does not go with channels.' ],
        [ '/admin?subject=4&prefix=a', 400, 'Argument subject goes with no other.' ],
        [ '/admin?subject=4&only=subscribers', 400, 'Argument subject goes with no other.' ],
        [ '/admin?subject=%FF', 400, 'Argument subject is no text.' ],
        [ '/guarded?subject=4', 401, 'No token.' ],
        )
    {
        my ($uri, $status, $explain) = @$case;
        my $refusal = $nginx->delete($uri);
        is_deeply [ $refusal->status, $refusal->explain ], [ $status, $explain ], "$uri is refused";
    }
    my ($few, $operator) = map { +{ Authorization => "Bearer $_" } } tokens(map { { claims => { mercure => { publish => [$_] } } } } 'a*', '*');
    is $nginx->delete('/guarded?subject=4', %$few)->status, 403, 'whoever sends away may publish everywhere';
    is $nginx->delete('/guarded?subject=4', %$operator)->status, 200, '... as this one may';
    ok wait_until { $nginx->figures->{subscribers} == 12 }, 'only those without the subject are left';
};

# A worker that is stopped does not answer; one that dies has no connections any more.
with_four_workers(sub ($nginx) {
    my ($mine) = users('42');
    my @streams = map { $nginx->subscribe('/ev?id=a', %$mine) } 1 .. 24;
    ok wait_until { $nginx->figures->{subscribers} == 24 }, 'all are there';
    cmp_ok workers_used($nginx), '>', 1, 'in several workers';
    # Another one than that which is asked.
    my $operator = $nginx->connect;
    my $asked = $operator->request(DELETE => '/admin?subject=none')->header('X-Pid');
    my ($stopped) = grep { $_ != $asked } $nginx->worker_pids;
    $nginx->signal('STOP', $stopped);
    my $began = time;
    my $answer = $operator->request(DELETE => '/admin?subject=42');
    my $seconds = time - $began;
    is $answer->status, 504, 'a worker that does not answer is not waited for without end';
    is $answer->json->{workers_unanswered}, 1, '... and named';
    is $answer->explain, 'Not all workers have answered.', '... and explained';
    cmp_ok $seconds, '>=', 1.9, 'after two seconds';
    my $ended = $answer->json->{subscribers};
    cmp_ok $ended, '<=', 24, "$ended of 24 have ended";
    $nginx->signal('CONT', $stopped);
    my $rest = $operator->request(DELETE => '/admin?subject=42')->json;
    is_deeply $rest, { subscribers => 24 - $ended, workers_unanswered => 0 }, 'the others end when it goes on and is asked again';
    is scalar(grep { join('', $_->chunks_to_end) =~ $closed } @streams), 24, 'all were told why';

    @streams = map { $nginx->subscribe('/ev?id=a', %$mine) } 1 .. 24;
    $nginx->signal('STOP', $stopped);
    $operator->send_request(DELETE => '/admin?subject=42');
    $nginx->kill_worker($stopped);
    $answer = $operator->response;
    is $answer->status, 200, 'a worker that dies has no connections any more' or diag $answer->body;
    is scalar(grep { eval { $_->rest; 1 } || $@ =~ /ended/ } @streams), 24, '... so that all have ended';
    ok wait_until { $nginx->figures->{subscribers} == 0 }, '... also for the statistics';
});

if (($ENV{TEST_TRANSPORT} // '') ne '') {
    done_testing;
    exit;
}

# Subjects go with readers to the workers of a reload.
with_nginx $conf, sub ($nginx) {
    my ($mine, $other) = users('42', '43');
    my @mine = map { $nginx->subscribe('/ev?id=a', %$mine) } 1 .. 5;
    my $socket = PushStream::WebSocket->new($nginx, '/ws?id=a', headers => $mine);
    my $stays = $nginx->subscribe('/ev?id=a', %$other);
    ok wait_until { $nginx->get('/metrics')->body =~ /^push_stream_connections\{.*state="detached".*\} [1-9]/m || $nginx->figures->{subscribers} == 7 }, 'all are there';
    $nginx->reload;
    my ($answer) = send_away($nginx, '42');
    is_deeply $answer->json, { subscribers => 6, workers_unanswered => 0 }, 'those that were handed over end, each once' or diag $answer->body;
    is scalar(grep { join('', $_->chunks_to_end) =~ $closed } @mine), 5, '... and are told why';
    is $socket->close_payload, pack('n', 3001) . 'dismissed', '... a WebSocket, too';
    $nginx->post('/pub?id=a', 'go on');
    like $stays->text_until(qr/go on\n\n/), qr/go on/, 'the other one goes on';
};

# In the middle of a reload: whichever worker has a reader, it ends once.
with_nginx $conf, sub ($nginx) {
    my ($mine, $other) = users('42', '43');
    my (@mine, @others);
    for (1 .. 60) {
        push @mine, $nginx->subscribe('/ev?id=a', %$mine);
        push @others, $nginx->subscribe('/ev?id=a', %$other) if $_ % 4 == 0;
    }
    my $old = join ' ', $nginx->worker_pids;
    $nginx->signal('HUP');
    my $ended = 0;
    for (1 .. 3) {
        my ($answer) = send_away($nginx, '42');
        is $answer->status, 200, 'during a reload' or diag $answer->explain;
        $ended += $answer->json->{subscribers};
    }
    is $ended, 60, 'all have ended, none twice';
    is scalar(grep { join('', $_->chunks_to_end) =~ $closed } @mine), 60, '... and were told why';
    ok wait_until { join(' ', $nginx->worker_pids) ne $old }, 'new workers';
    $nginx->post('/pub?id=a', 'go on');
    is scalar(grep { $_->text_until(qr/go on\n\n/) } @others), 15, 'the others go on';
};

# TLS, taken over from OpenSSL or not.
if (PushStream::Nginx->has_module('http_ssl')) {
    my $tls = $conf =~ s/listen 127.0.0.1:%%PORT%%;/listen 127.0.0.1:%%PORT%% ssl; ssl_certificate %%CERTIFICATE%%; ssl_certificate_key %%KEY%%; ssl_protocols TLSv1.3;/r;
    with_nginx $tls, sub ($nginx) {
        my ($mine, $other) = users('42', '43');
        my $connect = sub { PushStream::Client->new($nginx->port, tls => ['http/1.1']) };
        my $subscribe = sub ($uri, $headers) {
            my $client = $connect->();
            $client->send_request(GET => $uri, headers => $headers);
            $client->head;
            return $client;
        };
        my @mine = map { $subscribe->("/$_?id=a", $mine) } ('ev', 'attached') x 4;
        my $stays = $subscribe->('/ev?id=a', $other);
        my $answer = $connect->()->request(DELETE => '/admin?subject=42');
        is_deeply $answer->json, { subscribers => 8, workers_unanswered => 0 }, 'readers over TLS end';
        is scalar(grep { join('', $_->chunks_to_end) =~ $closed } @mine), 8, '... and are told why';
        $connect->()->request(POST => '/pub?id=a', body => 'go on');
        like $stays->text_until(qr/go on\n\n/), qr/go on/, 'the other one goes on';
    };
}

# How long it takes.
with_four_workers(sub ($nginx) {
    my @names = map { "user$_" } 1 .. 8;
    my %tokens;
    @tokens{@names} = users(@names);
    my @streams = map { my $name = $_; map { $nginx->subscribe('/ev?id=a', %{ $tokens{$name} }) } 1 .. 5 } @names;
    my @seconds = map { my ($answer, $seconds) = send_away($nginx, $_); is $answer->json->{subscribers}, 5, "$_ is sent away"; $seconds } @names;
    @seconds = sort { $a <=> $b } @seconds;
    note 'milliseconds: ' . join ' ', map { sprintf '%.1f', 1000 * $_ } @seconds;
    cmp_ok $seconds[ @seconds / 2 ], '<', 0.1 * $slowness, 'within 100 ms';
});

done_testing;
