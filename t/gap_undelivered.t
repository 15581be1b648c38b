# A zone that is much too small takes messages away that a reader was about to get: it is told, in front of what it gets next.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;
use PushStream::WebSocket;

use JSON::PP qw(decode_json);

# A worker is done with a batch before it looks at its own readers; another one would take messages away meanwhile.
$ENV{TEST_WORKERS} = '1';

with_nginx <<'CONF', sub ($nginx) {
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_shared_memory_size 256k;
    push_stream_on_full evict;
    push_stream_channels_path $arg_id;
    push_stream_store_messages on;
    push_stream_longpolling_connection_ttl 10s;
    push_stream_message_template "~event-id~|~channel~|~text~";
    push_stream_subscriber_queue 8m;
    push_stream_resume ordered;
    client_body_buffer_size 4m;
    client_max_body_size 4m;

    server {
        listen 127.0.0.1:%%PORT%%;

        location /pub {
            push_stream_publisher admin;
            push_stream_auto_event_id on;
            push_stream_batch_publish on;
            push_stream_batch_max_lines 100000;
        }
        location /silent { push_stream_subscriber eventsource; push_stream_message_template ~text~; }
        location /status { push_stream_channels_statistics; push_stream_statistics_format prometheus; }

        location /on/ {
            push_stream_gap_notice on;
            location /on/ev { push_stream_subscriber eventsource; push_stream_message_template ~text~; }
            location /on/sub { push_stream_subscriber; push_stream_message_template "~id~|~channel~|~text~;"; }
            location /on/ws { push_stream_subscriber websocket; push_stream_message_template "~id~|~channel~|~text~;"; }
            location /on/wait { push_stream_subscriber long-polling; push_stream_allowed_origins *; }
        }
    }
}
CONF
    my $count = 12_000;
    my $first = 0;
    # More than the zone holds in one request.
    my $flood = sub {
        my $body = '';
        for my $n ($first + 1 .. $first + $count) {
            $body .= sprintf qq({"channels": ["%s"], "text": "m%d"}\n), $n % 3 ? 'a' : 'b', $n;
        }
        $first += $count;
        my $answer = $nginx->post('/pub', $body, 'Content-Type' => 'application/x-ndjson', Prefer => 'return=minimal');
        is $answer->body, qq({"lines": $count, "ok": $count, "failed": 0}\n), 'more is published than there is room for';
    };
    # Goes through what a reader was told: `gap` and the channel, or the text of a message. Returns what is missing and was not told of,
    # and how many notices there were.
    my $explain = sub ($from, $channels, @told) {
        my (%gap, @silent, %next, $notices);
        for my $channel (split //, $channels) { $next{$channel} = [ grep { ($_ % 3 ? 'a' : 'b') eq $channel } $from + 1 .. $first ] }
        for (@told) {
            if (/^gap (\w)$/) { $gap{$1} = 1; $notices++; next }
            my ($n) = /^m(\d+)$/ or die "unexpected: $_";
            my $channel = $n % 3 ? 'a' : 'b';
            my $expected = $next{$channel};
            while (@$expected && $expected->[0] < $n) {
                my $missed = shift @$expected;
                push @silent, $missed if !$gap{$channel};
            }
            push @silent, "m$n twice" if !@$expected || shift @$expected != $n;
            delete $gap{$channel};
        }
        push @silent, map { @{ $next{$_} } } grep { !$gap{$_} } keys %next;
        return (join(' ', @silent[ 0 .. ($#silent > 9 ? 9 : $#silent) ]), $notices // 0);
    };
    my $events = $nginx->subscribe('/on/ev?id=a/b');
    my $silent = $nginx->subscribe('/silent?id=a');
    my $socket = PushStream::WebSocket->new($nginx, '/on/ws?id=b/a');
    my $stream = $nginx->subscribe('/on/sub?id=a');
    my $waiting = $nginx->open(GET => '/on/wait?id=a/b');
    ok wait_until { ($nginx->get('/pub?id=a')->json->{subscribers} // 0) == 5 }, 'all of them listen';
    my $answer = $nginx->post('/pub?id=a', 'm0');
    my $position = $answer->header('X-Nginx-PushStream-Event-Id');
    is $waiting->response->header('X-Nginx-PushStream-Gap'), undef, 'before that nothing is missing';
    $waiting = $nginx->open(GET => '/on/wait?id=a/b', headers => { 'Last-Event-Id' => $position });
    ok wait_until { $nginx->get('/pub?id=a')->json->{subscribers} == 5 }, 'the long poll comes back';
    my $read_event = sub ($client, $asked) {
        my $event = $client->event;
        return $event->{data} if ($event->{event} // '') ne 'gap';
        my $gap = decode_json($event->{data});
        ok !exists $event->{id}, 'a notice is no position';
        push @$asked, $gap;
        return "gap $gap->{channel}";
    };
    is $read_event->($events, []), 'm0', 'they have read';

    $flood->();
    my $last = "m$first";
    my (@told, @gaps);
    push @told, $read_event->($events, \@gaps) until @told && $told[-1] eq $last || @told > 2 * $count;
    my ($missing, $notices) = $explain->(0, 'ab', @told);
    is $missing, '', 'EventSource: what is missing was told of';
    cmp_ok $notices, '>=', 2, "both channels have lost messages, it was told $notices times";
    is_deeply [ map { $_->{asked} } @gaps ], [ ($position) x 2 ], 'with the position that the reader had';
    ok !(grep { !defined $_->{first} } @gaps), 'and the first id that there is';
    my $frames = sub ($next) {
        my @frames = split /;/, $next;
        return map { /^-4\|(\w)\|Messages lost$/ ? "gap $1" : /\|(m\d+)$/ ? $1 : die "unexpected: $_" } @frames;
    };
    # The last message of `a` alone is another one.
    my $last_a = 'm' . ($first % 3 ? $first : $first - 1);
    ($missing, $notices) = $explain->(0, 'a', grep { $_ ne 'm0' } $frames->($stream->text_until(qr/\|$last_a;/)));
    is $missing, '', 'streaming: the same';
    cmp_ok $notices, '>=', 1, "it was told $notices times";
    @told = ();
    push @told, grep { $_ ne 'm0' } $frames->($socket->text) until @told && $told[-1] eq $last;
    ($missing, $notices) = $explain->(0, 'ba', @told);
    is $missing, '', 'WebSocket: the same';
    cmp_ok $notices, '>=', 2, "it was told $notices times";

    my $polled = $waiting->response;
    my %gap = map { $_ => 1 } split /, /, $polled->header('X-Nginx-PushStream-Gap') // '';
    my ($channel, $n) = $polled->body =~ /\|(\w)\|m(\d+)/;
    ok $gap{$channel} || $n == ($channel eq 'a' ? 1 : 3), 'long polling: the first message, and the channels in which others were before';
    is_deeply [ sort keys %gap ], [qw(a b)], 'all of them';

    ok $silent->event->{data}, 'who did not ask is told nothing';
    my $counts = sub ($pattern) { wait_until { $nginx->get('/status')->body =~ $pattern } };
    ok $counts->(qr/^push_stream_messages_evicted_total\{reason="undelivered"\} [1-9]/m), 'it is counted';
    ok $counts->(qr/^push_stream_gap_notices_total [1-9]/m), 'and so are the notices';

    # Nobody is told of what was there before it came.
    my $new = $nginx->subscribe('/on/ev?id=a');
    like $new->chunk . $new->chunk, qr/^: \nid: [\d-]+\n\n$/, 'who comes later has missed nothing';
    $nginx->post('/pub?id=a', 'new');
    is $new->event->{data}, 'new', 'and gets what is new';
};

done_testing;
