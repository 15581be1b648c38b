# Compressed streams: decoded live, whole at their end, and the same bytes for all readers of a channel.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;
use PushStream::Decoder;

my $conf = <<'CONF';
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_shared_memory_size 32m;
    push_stream_channels_path $arg_id;
    push_stream_store_messages on;
    push_stream_compress zstd gzip;
    gzip on;
    gzip_types *;
    gzip_min_length 1;
    keepalive_requests 100000;

    server {
        listen 127.0.0.1:%%PORT%%;

        location /pub { push_stream_publisher admin; push_stream_compress off; gzip off; }
        location /sub { push_stream_subscriber; push_stream_message_template "~text~;"; push_stream_header_template "head;"; push_stream_footer_template "foot"; }
        location /ev { push_stream_subscriber eventsource; push_stream_header_template "hello"; push_stream_footer_template "bye"; }
        location /ordered { push_stream_subscriber eventsource; push_stream_resume ordered; push_stream_gap_notice on; }
        location /attached { push_stream_subscriber; push_stream_detach off; push_stream_message_template "~text~;"; push_stream_footer_template "foot"; }
        location /alone { push_stream_subscriber; push_stream_message_template "~text~;"; push_stream_compress_context message; }
        location /ping { push_stream_subscriber eventsource; push_stream_ping_message_interval 200ms; }
        location /seen { push_stream_subscriber; push_stream_message_template "~text~;"; push_stream_ping_message_interval 200ms; }
        location /off { push_stream_subscriber; push_stream_compress off; gzip off; push_stream_message_template "~text~;"; }
        location /status { push_stream_channels_statistics; gzip off; }
        location /metrics { push_stream_channels_statistics; push_stream_statistics_format prometheus; gzip off; }
    }
}
CONF

sub post_text ($n) {
    my $noise = $n * 2654435761 % 2**32;
    return sprintf '{"id":%d,"author":"reader%d","body":"It is not quite clear to me what %x is about, but %d agree","likes":%d}',
        $n, $noise % 997, $noise, $noise % 89, $noise % 13;
}

with_nginx $conf, sub ($nginx) {
    # Negotiation.
    my $plain = $nginx->open(GET => '/sub?id=neg', headers => { 'Accept-Encoding' => 'br' });
    is $plain->head->header('Content-Encoding'), undef, 'who asks for something else gets it as it is';
    is $plain->head->header('Vary'), 'Accept-Encoding', 'and is told that others do not';
    is join('', $plain->chunks_as('head;')), 'head;', 'the text as it is';
    # The client for HTTP/2 cannot send an empty value.
    for my $odd ('gzip;q=0', 'identity', 'gzip;q=2', over_http2() ? () : '') {
        my $client = $nginx->open(GET => '/sub?id=neg', headers => { 'Accept-Encoding' => $odd });
        is $client->head->header('Content-Encoding'), undef, "\"$odd\" asks for nothing";
    }
    for ([ 'gzip, deflate, br, zstd' => 'zstd' ], [ 'zstd;q=0.5, gzip' => 'gzip' ], [ 'gzip' => 'gzip' ], [ '*' => 'zstd' ], [ 'zstd;q=0, *' => 'gzip' ]) {
        my ($accepted, $coding) = @$_;
        my $client = $nginx->open(GET => '/sub?id=neg', headers => { 'Accept-Encoding' => $accepted });
        is $client->head->header('Content-Encoding'), $coding, "\"$accepted\" gets $coding";
    }
    my $off = $nginx->open(GET => '/off?id=neg', headers => { 'Accept-Encoding' => 'gzip' });
    is $off->head->header($_), undef, "without the directive there is no $_" for qw(Content-Encoding Vary);
};

for my $coding (qw(gzip zstd)) {
    subtest $coding => sub { with_nginx $conf, sub ($nginx) { streams($nginx, $coding) } };
}

sub streams ($nginx, $coding) {
    my $metric = sub ($name) { $nginx->get('/metrics')->body =~ /^\Q$name\E (\S+)/m ? $1 : undef };
    my $decode = sub ($uri, %headers) {
        return PushStream::Decoder->new($nginx->open(GET => $uri, headers => { 'Accept-Encoding' => $coding, %headers }), $coding);
    };
    my ($in_group, $alone_count) = map { "push_stream_compressed_deliveries_total{context=\"$_\"}" } qw(group alone);
    my ($group_before, $alone_before) = map { $metric->($_) } $in_group, $alone_count;

    # Live.
    my $stream = $decode->("/sub?id=a-$coding");
    is_deeply [ $stream->client->head->headers('Vary') ], ['Accept-Encoding'], 'one Vary';
    is $stream->text(5), 'head;', 'the header template comes with the head';
    my @readers = ($stream, map { $decode->($_) } "/sub?id=a-$coding", "/attached?id=a-$coding", "/ev?id=a-$coding", "/alone?id=a-$coding");
    my $event_source = $readers[3];
    is $readers[1]->text(5), 'head;', 'another reader';
    is $event_source->until(qr/\n/), ": hello\n", 'an EventSource';
    my $as_it_is = $nginx->subscribe("/off?id=a-$coding");
    my $wrong = 0;
    for my $n (1 .. 60) {
        my $text = post_text($n);
        $nginx->post("/pub?id=a-$coding", $text);
        push @readers, $decode->("/sub?id=a-$coding") if $n == 20;
        if ($n == 20) { $readers[-1]->text(5) }
        $wrong++ if $readers[3]->event->{data} ne $text;
        for my $reader (@readers[ 0 .. 2, 4 ], $n > 20 ? $readers[5] : ()) {
            $wrong++ if $reader->text(length($text) + 1) ne "$text;";
        }
        $wrong++ if join('', $as_it_is->chunks_as("$text;")) ne "$text;";
    }
    is $wrong, 0, 'everybody reads each message at once';
    my ($wire, $length) = $stream->sizes;
    cmp_ok $wire, '<', 0.5 * $length, "the same context makes it short: $wire of $length bytes";
    my ($alone, $same) = $readers[4]->sizes;
    cmp_ok $alone, '>', 1.2 * $wire, 'and a context for each message does not';
    cmp_ok $alone, '<', $same, 'but does something';
    ok wait_until { $metric->($alone_count) >= $alone_before + 60 }, 'deliveries are counted';
    ok wait_until { $metric->($in_group) > $group_before + 60 }, 'aligned ones, too';
    my ($bytes_in, $bytes_out) = map { $metric->("push_stream_compressed_bytes_total{coding=\"$coding\",stage=\"$_\"}") } qw(in out);
    cmp_ok $bytes_in, '>', $bytes_out, 'bytes';
    cmp_ok $bytes_out, '>', 0, 'of this coding';
    cmp_ok $metric->('push_stream_compress_groups'), '>=', 1, 'and groups';
    cmp_ok $metric->('push_stream_compress_seconds_total'), '>', 0, 'and the time';

    # Several channels: what comes from the other one lies between.
    my $both = $decode->("/sub?id=a-$coding/b-$coding");
    $both->text(5);
    $wrong = 0;
    for my $n (1 .. 40) {
        my $text = post_text($n);
        $nginx->post($n % 3 ? "/pub?id=a-$coding" : "/pub?id=b-$coding", $text);
        $wrong++ if $both->text(length($text) + 1) ne "$text;";
    }
    is $wrong, 0, 'a reader of two channels reads all';

    # History.
    my $old = $decode->("/ev?id=b-$coding", 'Last-Event-Id' => '', 'If-Modified-Since' => 'Thu, 01 Jan 1970 00:00:01 GMT');
    is $old->until(qr/\n/), ": hello\n", 'a reader of stored messages';
    is $old->event->{data}, post_text($_ * 3), "stored message $_" for 1 .. 13;
    $nginx->post("/pub?id=b-$coding", $_), is $old->event->{data}, $_, "then $_" for 'short', 'x' x 300_000, 'y' x 100;
    $both->until(qr/y{100};/);

    # Regular ends.
    $nginx->delete("/pub?id=a-$coding");
    $nginx->delete("/pub?id=b-$coding");
    like $stream->rest, qr/foot\z/, 'a deleted channel ends the stream, which is whole';
    like $readers[1]->rest, qr/foot\z/, 'another one';
    like $readers[2]->rest, qr/foot\z/, 'attached';
    like $event_source->rest, qr/bye\n\z/, 'an EventSource';
    ok defined $readers[4]->rest, 'without groups';
    like $readers[5]->rest, qr/foot\z/, 'one that came later';
    like $both->rest, qr/foot\z/, 'with two channels';
    like $old->rest, qr/bye\n\z/, 'and after stored messages';

    # Pings.
    my $ping = $decode->("/ping?id=p-$coding");
    my $seen = $decode->("/seen?id=p-$coding");
    $wrong = 0;
    for my $n (1 .. 6) {
        my $text = post_text($n);
        my ($before) = $ping->sizes;
        $nginx->post("/pub?id=p-$coding", $text);
        $wrong++ if $ping->event->{data} ne $text;
        my $got = $seen->until(qr/\Q$text\E;/);
        $wrong++ if $got !~ /^(?: ;)*\Q$text\E;\z/;
        $seen->until(qr/ ;/) if $n % 2;
    }
    is $wrong, 0, 'pings are in nobody\'s way';
    my ($wire_before, $text_before) = $ping->sizes;
    $ping->_read(PushStream::Client::SECONDS) while ($ping->sizes)[0] == $wire_before;
    is +($ping->sizes)[1], $text_before, 'a ping of an EventSource decodes to nothing';
    my $aligned = $metric->($in_group);
    $nginx->post("/pub?id=p-$coding", 'after the ping');
    is $ping->event->{data}, 'after the ping', 'and a message follows';
    ok wait_until { $metric->($in_group) > $aligned }, 'in the group';

    # Order and gaps.
    my $ordered = $decode->("/ordered?id=o-$coding");
    $nginx->post("/pub?id=o-$coding", post_text($_), 'Event-Id' => $_), is $ordered->event->{id}, $_, "ordered id $_" for 1 .. 5;
    $nginx->delete("/pub?id=o-$coding");
    ok defined $ordered->rest, 'an ordered stream ends whole';
}

done_testing;
