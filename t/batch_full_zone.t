# A batch into a zone that is full: what came before stays, and no channel misses one message and gets a later one.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;

use JSON::PP ();

my %ndjson = ('Content-Type' => 'application/x-ndjson');

sub line ($channels, $length) {
    return JSON::PP::encode_json({ channels => $channels, text => 'x' x $length }) . "\n";
}

my $conf = <<'CONF';
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_shared_memory_size 128k;
    push_stream_on_full ON_FULL;
    push_stream_store_messages on;
    client_max_body_size 2m;

    server {
        listen 127.0.0.1:%%PORT%%;

        location = /pub {
            push_stream_publisher admin;
            push_stream_channels_path $arg_id;
            push_stream_batch_publish on;
            push_stream_batch_max_line 1m;
            push_stream_channel_info_on_publish off;
        }
        location = /status { push_stream_channels_statistics; push_stream_channels_path $arg_id; }
    }
}
CONF

with_nginx $conf =~ s/ON_FULL/refuse/r, sub ($nginx) {
    my $batch = sub (@lines) {
        return [ map { JSON::PP::decode_json($_) } split /\n/, $nginx->post('/pub', join('', @lines), %ndjson)->body ];
    };
    $batch->(line(['a'], 60), line(['b'], 60), line(['c'], 60));

    my $verdicts = $batch->(
        line(['a'], 60),
        line([ 'b', 'c' ], 200_000),
        line(['a'], 60),
        line(['b'], 60),
        line([ 'a', 'c' ], 60),
        line(['d'], 60),
        line(['a'], 60),
    );
    is_deeply [ map { $_->{status} } @$verdicts ], [ 200, 500, 200, 424, 424, 200, 424 ],
        'after a line that found no room, lines for its channels are not published';
    is $verdicts->[1]{explain}, 'Zone is full.', 'the first says why';
    is $verdicts->[3]{explain}, 'An earlier line for the same channel failed.', 'the others, too';
    is $nginx->figures('a')->{published_messages}, 3, 'what was before it and beside it is there';
    is $nginx->figures('b')->{published_messages}, 1, 'of the failed lines nothing is';

    my $count = 0;
    while (1) {
        my $verdicts = $batch->((line(['a'], 300)) x 100);
        my $accepted = grep { $_->{status} == 200 } @$verdicts;
        $count += $accepted;
        is_deeply [ map { $_->{status} } @$verdicts ], [ (200) x $accepted, 500, (424) x (99 - $accepted) ], 'the end of the zone' or last
            if $accepted < 100;
        last if $accepted < 100;
    }
    cmp_ok $count, '>', 100, 'a hundred messages and more fit';
    is $nginx->figures('a')->{stored_messages}, $count + 3, 'every line that got a 200 is stored';
};

with_nginx $conf =~ s/ON_FULL/evict/r, sub ($nginx) {
    $nginx->expect_in_log(qr/zone is full/);
    for (1 .. 5) {
        my $answer = $nginx->post('/pub', line(['a'], 300) x 1000, %ndjson, Prefer => 'return=minimal');
        is $answer->body, qq({"lines": 1000, "ok": 1000, "failed": 0}\n), 'a zone that evicts takes them all';
    }
    is $nginx->figures('a')->{published_messages}, 5000, 'each counts';
    my $lines = JSON::PP::decode_json((split /\n/, $nginx->post('/pub', line(['a'], 200_000), %ndjson)->body)[0]);
    is $lines->{status}, 507, 'only what no eviction makes room for is refused';
};

done_testing;
