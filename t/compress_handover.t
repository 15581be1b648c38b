# A reload that no compressed reader notices: checksum or frame goes on in the new worker.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;
use PushStream::Decoder;

my $taken = PushStream::Nginx::transport() eq 'taken-tls';
only_over_plain_http1 'subscribers over HTTP/2 and with the TLS of OpenSSL end at a reload' if !$taken;

my $conf = <<'CONF';
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_shared_memory_size 16m;
    push_stream_channels_path $arg_id;
    push_stream_store_messages on;
    push_stream_compress zstd gzip;

    server {
        listen 127.0.0.1:%%PORT%%;

        location /pub { push_stream_publisher admin; push_stream_compress off; }
        location /sub { push_stream_subscriber; push_stream_message_template "~text~;"; push_stream_footer_template "foot"; }
        location /ev { push_stream_subscriber eventsource; }
        location /ordered { push_stream_subscriber eventsource; push_stream_resume ordered; }
        location /attached { push_stream_subscriber; push_stream_detach off; push_stream_footer_template "foot"; }
        location /status { push_stream_channels_statistics; }
        location /metrics { push_stream_channels_statistics; push_stream_statistics_format prometheus; }
    }
}
CONF

for my $coding (qw(gzip zstd)) {
    subtest $coding => sub { with_nginx $conf, sub ($nginx) { reloads($nginx, $coding) } };
}

sub reloads ($nginx, $coding) {
    my $open = sub ($uri) { PushStream::Decoder->new($nginx->subscribe($uri, 'Accept-Encoding' => $coding), $coding) };
    my $stream = $open->('/sub?id=a');
    my $other = $open->('/sub?id=a');
    my $event = $open->('/ev?id=a/b');
    my $ordered = $open->('/ordered?id=a');
    my $attached = $open->('/attached?id=a');
    my $slow = $open->('/sub?id=slow');
    my $id = 0;
    my $round = sub ($name) {
        my $wrong = 0;
        for (1 .. 12) {
            my $text = sprintf '{"round":"%s","number":%d,"text":"again and again the same words"}', $name, ++$id;
            $nginx->post('/pub?id=a', $text, 'Event-Id' => $id);
            for my $reader ($stream, $other) { $wrong++ if $reader->text(length($text) + 1) ne "$text;" }
            for my $reader ($event, $ordered) { $wrong++ if $reader->event->{data} ne $text }
        }
        is $wrong, 0, "all messages $name";
    };
    $round->('before the reload');

    ok wait_until { $nginx->get('/metrics')->body =~ /^push_stream_tls_taken_over_total 5$/m }, 'the TLS of all was taken over' if $taken;

    # Bytes on their way and others that wait.
    srand 7;
    my @large = map { "$_ " . join '', map { chr 97 + int rand 26 } 1 .. 60_000 } 1 .. 20;
    $nginx->post('/pub?id=slow', $_) for @large;
    $nginx->reload;
    like $attached->rest, qr/foot\z/, 'an attached stream ends, whole';
    ok wait_until { $nginx->figures->{subscribers} == 5 }, 'the others are subscribers of the new workers';
    ok wait_until { $nginx->get('/metrics')->body =~ /^push_stream_subscribers_handed_over_total 5$/m }, 'handed over';
    $round->('after it');
    $nginx->post('/pub?id=slow', 'after');
    $nginx->reload;
    $round->('after another');
    my @got = map { $slow->until(qr/;/) } 1 .. @large + 1;
    is_deeply \@got, [ map { "$_;" } @large, 'after' ], 'a slow reader gets all';
    $nginx->delete("/pub?id=$_") for qw(a b slow);
    is $stream->rest, 'Channel deleted;foot', 'the end is that of the whole stream';
    is $other->rest, 'Channel deleted;foot', 'for all';
    ok defined $event->rest, 'for an EventSource';
    ok defined $ordered->rest, 'in order';
    is $slow->rest, 'Channel deleted;foot', 'and for a slow reader';

    $stream = $open->('/sub?id=c');
    $nginx->reload($conf =~ s/push_stream_compress zstd gzip;//r);
    is $stream->rest, 'foot', 'if the new configuration does not compress, the stream ends as ever';
}

done_testing;
