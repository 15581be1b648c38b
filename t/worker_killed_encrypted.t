# Workers are killed while readers of all modes listen over TLS, with HTTP/2 and HTTP/1.1 on one port: each goes on with
# Last-Event-Id and has every message that was answered with 200, whole, once, in order, and nothing else.
#
# TEST_KILLS: how many workers to kill; default 8.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;
use PushStream::WebSocket;

only_over_plain_http1 'it speaks TLS and HTTP/2 by itself';

use POSIX ();

my $kills = $ENV{TEST_KILLS} || 8;

my $conf = <<'CONF';
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_shared_memory_size 64m;
    push_stream_channels_path $arg_id;
    push_stream_store_messages on;
    push_stream_max_messages_stored_per_channel 100000;
    push_stream_ping_message_interval 300ms;
    keepalive_requests 100000;

    server {
        listen 127.0.0.1:%%PORT%% reuseport;

        location /pub { push_stream_publisher; }
        location /status { push_stream_channels_statistics; }
        location /ev { push_stream_subscriber eventsource; }
        location /attached/ev { push_stream_subscriber eventsource; push_stream_detach off; }
        location /ws { push_stream_subscriber websocket; push_stream_message_template "<~event-id~:~text~>"; }
        location /st { push_stream_subscriber; push_stream_message_template "<~event-id~:~text~>"; }
        location /lp { push_stream_subscriber long-polling; push_stream_message_template "<~event-id~:~text~>"; }
    }
}
CONF

# Some are longer than a record of TLS and a frame of HTTP/2, so that deaths cut them anywhere.
sub text ($n) { return chr(97 + $n % 26) x (1 + $n * 7919 % ($n % 10 ? 300 : 40_000)) }

# Each mode: a function that subscribes behind the event id given and returns one that reads: a list of [event id, text].
sub events ($client) {
    return sub { my $event = $client->event; return [ $event->{id}, $event->{data} ] };
}
sub marked ($buffer) {
    my @messages;
    # A ping has no id and no text.
    while ($$buffer =~ s/\A\s*<(\d*):([a-z ]*)>//) { push @messages, [ $1, $2 ] if length $1 }
    die "foreign: $$buffer\n" if $$buffer !~ /\A\s*(?:<\d*(?::[a-z ]*)?)?\z/;
    return @messages;
}
my %reader = (
    'EventSource over HTTP/2' => sub ($nginx, @from) { return events($nginx->subscribe('/ev' . $from[0], @from[ 1 .. $#from ])) },
    'EventSource over TLS' => sub ($nginx, $uri, %headers) {
        return events($nginx->connect->send_request(GET => "/ev$uri", headers => \%headers));
    },
    'EventSource that keeps its request' => sub ($nginx, $uri, %headers) {
        return events($nginx->connect->send_request(GET => "/attached/ev$uri", headers => \%headers));
    },
    'WebSocket over TLS' => sub ($nginx, $uri, %headers) {
        my $socket = PushStream::WebSocket->new($nginx, "/ws$uri", headers => \%headers);
        return sub {
            my ($opcode, $text) = $socket->next_frame;
            return if $opcode == PushStream::WebSocket::PING;
            die "the socket was closed\n" if $opcode == PushStream::WebSocket::CLOSE;
            return marked(\$text);
        };
    },
    'streaming over HTTP/2' => sub ($nginx, $uri, %headers) {
        my ($client, $buffer) = ($nginx->subscribe("/st$uri", %headers), '');
        return sub {
            my $chunk = $client->chunk;
            die "the stream ended\n" if !length $chunk;
            $buffer .= $chunk;
            return marked(\$buffer);
        };
    },
    'long polling over HTTP/2' => sub ($nginx, $uri, %headers) {
        return sub {
            die "one answer for each request\n" if !defined $uri;
            my $body = $nginx->open(GET => "/lp$uri", headers => \%headers)->response->body;
            $uri = undef;
            return marked(\$body);
        };
    },
);

# The end of a connection is none of a reader's faults; silence and foreign bytes are.
sub listen_to_end ($nginx, $subscribe, $log) {
    my ($last, $last_text) = (0, '');
    while (1) {
        my $read = eval { $subscribe->($nginx, $last ? ('/?id=a', 'Last-Event-Id' => $last) : '/?id=a.b100000') };
        sleep 0.01 if !$read;
        while ($read) {
            my @messages = eval { $read->() };
            if ($@) {
                print {$log} "wrong: $@" if $@ =~ /foreign|in time/;
                last;
            }
            for my $message (@messages) {
                ($last, my $text) = @$message;
                print {$log} $text eq text($last) || $text eq 'end' ? "$last\n" : "wrong: $last with " . length($text) . " bytes\n";
                return if $text eq 'end';
            }
        }
    }
}

local $ENV{TEST_TRANSPORT} = 'http2';
with_nginx $conf, sub ($nginx) {
    my @children;
    my $child = sub ($body) {
        my $pid = fork // die;
        if (!$pid) { eval { $body->() }; POSIX::_exit($@ ? 1 : 0) }
        push @children, $pid;
    };
    my $lines = sub ($name) { open my $file, '<', $nginx->dir . "/$name" or return; chomp(my @lines = <$file>); return @lines };
    my $log = sub ($name) { open my $file, '>', $nginx->dir . "/$name" or die; $file->autoflush(1); return $file };

    my @names = map { my $name = $_; map { "$name, $_" } 1, 2 } sort keys %reader;
    for my $name (@names) {
        $child->(sub { listen_to_end($nginx, $reader{ $name =~ s/,.*//r }, $log->($name =~ s/\W/-/gr)) });
    }
    $child->(sub {
        my $accepted = $log->('accepted');
        my ($client, $n) = (undef, 0);
        my $publish = sub ($text) {
            $n++;
            my $status = eval {
                $client //= $nginx->connect;
                $client->request(POST => '/pub?id=a', headers => { 'Event-Id' => $n }, body => $text)->status;
            };
            if (!$status) { $client = undef }
            print {$accepted} "$n\n" if ($status // 0) == 200;
            return ($status // 0) == 200;
        };
        while (!-e $nginx->dir . '/stop') { $publish->(text($n + 1)); sleep 0.005 }
        1 until $publish->('end');
    });

    ok wait_until(sub { @names == grep { $lines->($_ =~ s/\W/-/gr) } @names }, 20), scalar @names . ' readers hear something';
    my $cut_short = 0;
    for (1 .. $kills) {
        my $before = $lines->('accepted');
        $cut_short++ if !wait_until { $lines->('accepted') >= $before + 10 };
        sleep rand 0.1;
        my @pids = $nginx->worker_pids;
        $nginx->kill_worker($pids[ rand @pids ]);
    }
    is $cut_short, 0, "messages are accepted again after each of $kills kills";
    $log->('stop');
    my %ended;
    ok wait_until(sub { $ended{$_} = 1 for grep { !$ended{$_} && waitpid($_, POSIX::WNOHANG) } @children; keys %ended == @children }, 30),
        'all of them come to the end';
    kill KILL => grep { !$ended{$_} } @children;

    my @accepted = $lines->('accepted');
    note scalar @accepted, ' messages were accepted';
    for my $name (@names) {
        my @read = $lines->($name =~ s/\W/-/gr);
        my @wrong = grep { /wrong/ } @read;
        is "@wrong[0 .. ($#wrong < 4 ? $#wrong : 4)]", '', "$name: nothing wrong";
        @read = grep { !/wrong/ } @read;
        my %read = map { $_ => 1 } @read;
        my @missing = grep { !$read{$_} } @accepted;
        is "@missing[0 .. ($#missing < 9 ? $#missing : 9)]", '', "$name: nothing lost";
        is scalar(grep { $read[$_] <= $read[ $_ - 1 ] } 1 .. $#read), 0, "$name: each once, in order";
    }
    my $left = time;
    ok wait_until { $nginx->figures->{subscribers} == 0 }, 'nobody is counted who is gone';
    within time - $left, 1, 'within a second';
    is_deeply [ sort map { $_->{pid} } @{ $nginx->figures->{by_worker} } ], [ sort $nginx->worker_pids ], 'and no worker';
};

done_testing;
