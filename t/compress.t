# Compressed streams: decoded live, whole at their end, and the same bytes for all readers of a channel.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;
use PushStream::Gunzip;

my $conf = <<'CONF';
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_shared_memory_size 8m;
    push_stream_channels_path $arg_id;
    push_stream_store_messages on;
    push_stream_compress gzip;
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
    my $metric = sub ($name) { $nginx->get('/metrics')->body =~ /^\Q$name\E (\S+)/m ? $1 : undef };
    my $gunzip = sub ($uri, %headers) {
        return PushStream::Gunzip->new($nginx->open(GET => $uri, headers => { 'Accept-Encoding' => 'gzip, deflate, br', %headers }));
    };

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
    my $off = $nginx->open(GET => '/off?id=neg', headers => { 'Accept-Encoding' => 'gzip' });
    is $off->head->header($_), undef, "without the directive there is no $_" for qw(Content-Encoding Vary);

    # Live.
    my $stream = $gunzip->('/sub?id=a');
    is_deeply [ $stream->client->head->headers('Vary') ], ['Accept-Encoding'], 'one Vary';
    is $stream->text(5), 'head;', 'the header template comes with the head';
    my @readers = ($stream, map { $gunzip->($_) } '/sub?id=a', '/attached?id=a', '/ev?id=a', '/alone?id=a');
    my $event_source = $readers[3];
    is $readers[1]->text(5), 'head;', 'another reader';
    is $event_source->until(qr/\n/), ": hello\n", 'an EventSource';
    my $as_it_is = $nginx->subscribe('/off?id=a');
    my $wrong = 0;
    for my $n (1 .. 60) {
        my $text = post_text($n);
        $nginx->post('/pub?id=a', $text);
        push @readers, $gunzip->('/sub?id=a') if $n == 20;
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
    ok wait_until { $metric->('push_stream_compressed_deliveries_total{context="alone"}') >= 60 }, 'deliveries are counted';
    ok wait_until { $metric->('push_stream_compressed_deliveries_total{context="group"}') > 60 }, 'aligned ones, too';
    cmp_ok $metric->('push_stream_compressed_bytes_total{coding="gzip",stage="in"}'), '>',
        $metric->('push_stream_compressed_bytes_total{coding="gzip",stage="out"}'), 'bytes';
    cmp_ok $metric->('push_stream_compress_groups'), '>=', 1, 'and groups';
    cmp_ok $metric->('push_stream_compress_seconds_total'), '>', 0, 'and the time';

    # Several channels: what comes from the other one lies between.
    my $both = $gunzip->('/sub?id=a/b');
    $both->text(5);
    $wrong = 0;
    for my $n (1 .. 40) {
        my $text = post_text($n);
        $nginx->post($n % 3 ? '/pub?id=a' : '/pub?id=b', $text);
        $wrong++ if $both->text(length($text) + 1) ne "$text;";
    }
    is $wrong, 0, 'a reader of two channels reads all';

    # History.
    my $old = $gunzip->('/ev?id=b', 'Last-Event-Id' => '', 'If-Modified-Since' => 'Thu, 01 Jan 1970 00:00:01 GMT');
    is $old->until(qr/\n/), ": hello\n", 'a reader of stored messages';
    is $old->event->{data}, post_text($_ * 3), "stored message $_" for 1 .. 13;
    $nginx->post('/pub?id=b', $_), is $old->event->{data}, $_, "then $_" for 'short', 'x' x 300_000, 'y' x 100;
    $both->until(qr/y{100};/);

    # Regular ends.
    $nginx->delete('/pub?id=a');
    $nginx->delete('/pub?id=b');
    like $stream->rest, qr/foot\z/, 'a deleted channel ends the stream, which is whole';
    like $readers[1]->rest, qr/foot\z/, 'another one';
    like $readers[2]->rest, qr/foot\z/, 'attached';
    like $event_source->rest, qr/bye\n\z/, 'an EventSource';
    ok defined $readers[4]->rest, 'without groups';
    like $readers[5]->rest, qr/foot\z/, 'one that came later';
    like $both->rest, qr/foot\z/, 'with two channels';
    like $old->rest, qr/bye\n\z/, 'and after stored messages';

    # Pings.
    my $ping = $gunzip->('/ping?id=p');
    my $seen = $gunzip->('/seen?id=p');
    $wrong = 0;
    for my $n (1 .. 6) {
        my $text = post_text($n);
        my ($before) = $ping->sizes;
        $nginx->post('/pub?id=p', $text);
        $wrong++ if $ping->event->{data} ne $text;
        my $got = $seen->until(qr/\Q$text\E;/);
        $wrong++ if $got !~ /^(?: ;)*\Q$text\E;\z/;
        $seen->until(qr/ ;/) if $n % 2;
    }
    is $wrong, 0, 'pings are in nobody\'s way';
    my ($wire_before, $text_before) = $ping->sizes;
    $ping->_read(PushStream::Client::SECONDS) while ($ping->sizes)[0] == $wire_before;
    is +($ping->sizes)[1], $text_before, 'a ping of an EventSource decodes to nothing';
    my $aligned = $metric->('push_stream_compressed_deliveries_total{context="group"}');
    $nginx->post('/pub?id=p', 'after the ping');
    is $ping->event->{data}, 'after the ping', 'and a message follows';
    ok wait_until { $metric->('push_stream_compressed_deliveries_total{context="group"}') > $aligned }, 'in the group';

    # Order and gaps.
    my $ordered = $gunzip->('/ordered?id=o');
    $nginx->post('/pub?id=o', post_text($_), 'Event-Id' => $_), is $ordered->event->{id}, $_, "ordered id $_" for 1 .. 5;
    $nginx->delete('/pub?id=o');
    ok defined $ordered->rest, 'an ordered stream ends whole';
};

done_testing;
