# What a line of a batch costs nginx, beside a request of its own for the same text.
#
# TEST_BATCH_LINES: how many lines; with it the ratios are judged, which wants a quiet machine. 1000000 is a good number.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;

only_over_plain_http1 'it measures nginx alone';
my $judges = $ENV{TEST_BATCH_LINES};
my $lines = $judges || 5_000;
my $singles = int $lines / 10;
$ENV{TEST_WORKERS} = '1';

with_nginx <<'CONF', sub ($nginx) {
%%MAIN%%
events {}
http {
    %%HTTP%%
    # What leaves a channel keeps its memory for ten seconds: room for all of it.
    push_stream_shared_memory_size 2g;
    push_stream_channels_path $arg_id;
    push_stream_store_messages on;
    push_stream_max_messages_stored_per_channel 100;
    push_stream_channel_info_on_publish off;
    client_body_buffer_size 1m;
    keepalive_requests 100000000;

    server {
        listen 127.0.0.1:%%PORT%%;

        location = /auto { push_stream_publisher; push_stream_auto_event_id on; push_stream_batch_publish on; }
        location = /brought { push_stream_publisher; push_stream_idempotent_publish on; push_stream_batch_publish on; }
        location = /status { push_stream_channels_statistics; }
    }
}
CONF
    my ($worker) = $nginx->worker_pids;
    # Nanoseconds on a processor.
    my $cpu = sub {
        open my $file, '<', "/proc/$worker/schedstat" or die $!;
        return (split ' ', <$file>)[0];
    };
    my $text = substr 'A text of sixty-four bytes, as short as comments are, no more ... ', 0, 64;
    my $client = $nginx->connect;
    my $last = 0;
    my $each = sub ($count, $body) {
        my $done = 0;
        my $before = $cpu->();
        $done += $body->() while $done < $count;
        return ($cpu->() - $before) / $done / 1000;
    };
    my $batch = sub ($uri, $brings) {
        return $each->($lines, sub {
            my $body = '';
            for (1 .. 1000) {
                $last++;
                my ($name, $id) = $brings ? ('b', qq(, "id": "$last")) : ('a', '');
                $body .= sprintf qq({"channels": ["%s%d"], "text": "%s"%s}\n), $name, $last % 1000, $text, $id;
            }
            my $answer = $client->request(
                POST => $uri, body => $body, headers => { 'Content-Type' => 'application/x-ndjson', Prefer => 'return=minimal' },
            );
            $answer->body eq qq({"lines": 1000, "ok": 1000, "failed": 0}\n) or die $answer->body;
            return 1000;
        });
    };
    my $single = sub ($uri, $brings) {
        return $each->($singles, sub {
            $last++;
            my %headers = $brings ? ('Event-Id' => $last) : ();
            my $name = $brings ? 'b' : 'a';
            my $answer = $client->request(POST => "$uri?id=$name" . $last % 1000, body => $text, headers => \%headers);
            $answer->status == 200 or die $answer->status;
            return 1;
        });
    };
    for my $case ([ '/auto', 0, 'ids of the zone' ], [ '/brought', 1, 'ids of the publisher, accepted once' ]) {
        my ($uri, $brings, $name) = @$case;
        # Channels, and as many messages as they keep, before anything is measured.
        $batch->($uri, $brings);
        my $of_line = $batch->($uri, $brings);
        my $of_request = $single->($uri, $brings);
        diag sprintf '%s: %.2f us a line (%d a second of CPU), %.2f us a request: 1/%.1f',
            $name, $of_line, 1_000_000 / $of_line, $of_request, $of_request / $of_line
            if $judges;
        next if !$judges;
        cmp_ok $of_line, '<=', 2, "$name: 500,000 lines in a second of CPU";
        cmp_ok $of_line * 6, '<=', $of_request, "$name: a line costs no more than a sixth of a request";
    }
    is $nginx->figures->{published_messages}, $last, 'all of them are published';
    is $nginx->figures->{channels}, 2000, 'in a thousand channels each';
};

done_testing;
