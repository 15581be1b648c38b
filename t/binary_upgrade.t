# An upgrade of nginx's binary (USR2, WINCH, QUIT), one that is taken back, and a full restart. The new nginx begins with an empty zone:
# streams of the old one end as they should, with nothing in them that was not theirs.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;
use PushStream::WebSocket;

my $conf = <<'CONF';
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_shared_memory_size 4m;
    push_stream_store_messages on;
    push_stream_channels_path $arg_id;
    push_stream_message_template "<~id~:~text~>";
    push_stream_footer_template "footer";
    push_stream_longpolling_connection_ttl 60s;

    server {
        listen 127.0.0.1:%%PORT%%;

        location /pub { push_stream_publisher admin; }
        location /sub { push_stream_subscriber; }
        location /ev { push_stream_subscriber eventsource; push_stream_message_template "~id~:~text~"; }
        location /ws { push_stream_subscriber websocket; }
        location /lp { push_stream_subscriber long-polling; }
        location /status { push_stream_channels_statistics; }
    }
}
CONF

# Some of each kind, all on channel a.
my $audience = sub ($nginx) {
    return {
        streams => [ map { $nginx->subscribe('/sub?id=a') } 1 .. 8 ],
        events => [ map { $nginx->subscribe('/ev?id=a') } 1 .. 4 ],
        sockets => [ map { PushStream::WebSocket->new($nginx, '/ws?id=a') } 1 .. 4 ],
        polls => [ map { $nginx->open(GET => '/lp?id=a') } 1 .. 4 ],
    };
};
my $count = 20;

# Each connection ends as its kind does; returns what the streams got before.
my $ends_clean = sub ($audience, $when) {
    my @got;
    my $clean = eval {
        push @got, join '', $_->chunks_to_end for @{ $audience->{streams} };
        for my $stream (@{ $audience->{events} }) {
            push @got, join '', map { "<$_>" } map { /^data: (.*)$/mg } $stream->chunks_to_end;
        }
        for my $socket (@{ $audience->{sockets} }) {
            my $text = '';
            while (1) {
                my ($opcode, $payload) = $socket->next_frame;
                last if $opcode == 8;
                $text .= $payload;
            }
            push @got, $text;
        }
        1;
    };
    ok $clean, "$when: every stream ends as it should" or diag $@;
    # With 304 if there was no message.
    for my $poll (@{ $audience->{polls} }) {
        my $answer = eval { $poll->response } or do { fail "$when: a long poll is answered: $@"; next };
        like $answer->status, qr/^(?:200|304)$/, "$when: a long poll is answered";
        push @got, $answer->body;
    }
    return map { s/(?:<footer>|footer)+\z//r } @got;
};

subtest 'upgrade' => sub {
    my @workers = split ' ', $ENV{TEST_WORKERS} // '1 4';
    for my $workers (@workers) {
        my $nginx = PushStream::Nginx->start($conf, workers => $workers, daemon => 1);
        my $ended = eval {
            my $old = $nginx->master;
            my $all = $audience->($nginx);
            ok wait_until { $nginx->figures->{subscribers} == $count }, "$workers workers: $count subscribers";

            $nginx->signal('USR2');
            ok wait_until { my $new = $nginx->follow_pid_file; $new && $new != $old && $nginx->worker_pids == $workers },
                'the new nginx runs beside the old one';
            # Both accept; each has its own zone, and a message reaches the subscribers of one of them.
            my @published = map { $nginx->post('/pub?id=a', "both $_")->json->{published_messages} . ":both $_" } 1 .. 20;
            $nginx->signal(WINCH => $old);
            my @got = $ends_clean->($all, 'WINCH');
            my %published = map { $_ => 1 } @published;
            my @foreign;
            for my $got (@got) {
                my @messages = $got =~ /<([^<>]*)>/g;
                my ($last, @wrong) = (0);
                for my $message (@messages) {
                    my ($n) = $message =~ /both (\d+)/;
                    push @wrong, $message if !$published{$message} || $n <= $last;
                    $last = $n // $last;
                }
                push @foreign, $got if $got ne join '', map { "<$_>" } @messages;
                push @foreign, @wrong;
            }
            is "@foreign", '', 'what they got is what was published, each once, in order';
            ok wait_until { $nginx->figures->{subscribers} == 0 }, 'the new nginx starts with nobody';

            my $stream = $nginx->subscribe('/sub?id=b');
            is $nginx->post('/pub?id=b', 'new')->json->{published_messages}, 1, 'and with nothing';
            is $stream->chunk, '<1:new>', 'and delivers';
            $nginx->signal(QUIT => $old);
            ok wait_until { !PushStream::Nginx::is_alive($old) }, 'the old one ends';
            is $nginx->post('/pub?id=b', 'alone')->json->{published_messages}, 2, 'the new one goes on';
            is $stream->chunk, '<2:alone>', 'and still delivers';
            1;
        };
        ok $ended, 'the test ran to its end' or diag $@;
        $nginx->stop;
        is join('', $nginx->complaints), '', 'nothing alarming in the error log';
    }
};

subtest 'an upgrade that is taken back' => sub {
    my $nginx = PushStream::Nginx->start($conf, workers => 2, daemon => 1);
    my $ended = eval {
        my $old = $nginx->master;
        my @leaving = $nginx->worker_pids;
        $nginx->post('/pub?id=a', "kept $_") for 1 .. 3;
        $nginx->signal('USR2');
        ok wait_until { my $new = $nginx->follow_pid_file; $new && $new != $old && $nginx->worker_pids == 2 }, 'a new nginx';
        $nginx->signal(WINCH => $old);
        # Until then they accept connections, too.
        ok wait_until { !grep { PushStream::Nginx::is_alive($_) } @leaving }, 'the workers of the old one end';
        is $nginx->figures->{stored_messages}, 0, 'it has a zone of its own';
        my $all = $audience->($nginx);
        ok wait_until { $nginx->figures->{subscribers} == $count }, 'whom its audience goes to';
        $nginx->signal(HUP => $old);
        my $new = $nginx->master;
        $nginx->signal(QUIT => $new);
        $ends_clean->($all, 'QUIT of the new one');
        ok wait_until { !PushStream::Nginx::is_alive($new) && ($nginx->follow_pid_file // 0) == $old }, 'the old one is back';
        ok wait_until { $nginx->worker_pids == 2 }, 'with workers';
        my $stream = $nginx->subscribe('/sub?id=a.b3');
        is $stream->text_until(qr/kept 3/), '<1:kept 1><2:kept 2><3:kept 3>', 'and all that was stored in it';
        $nginx->post('/pub?id=a', 'on');
        is $stream->chunk, '<4:on>', 'and delivers';
        1;
    };
    ok $ended, 'the test ran to its end' or diag $@;
    $nginx->stop;
    is join('', $nginx->complaints), '', 'nothing alarming in the error log';
};

with_nginx $conf, sub ($nginx) {
    my $all = $audience->($nginx);
    ok wait_until { $nginx->figures->{subscribers} == $count }, "$count subscribers";
    $nginx->post('/pub?id=b', 'other');
    is $nginx->quit, 0, 'nginx ends';
    my @got = $ends_clean->($all, 'a restart');
    is join('', @got), '', 'with nothing in their streams';
    $nginx->launch_again;
    is $nginx->figures->{stored_messages}, 0, 'the next nginx starts with an empty zone';
    my $stream = $nginx->subscribe('/sub?id=b.b9');
    $nginx->post('/pub?id=b', 'again');
    is $stream->chunk, '<1:again>', 'and works';
};

done_testing;
