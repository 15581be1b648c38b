# Compressed readers that read too slowly: what they miss is dropped before it is compressed, so that the rest decodes.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;
use PushStream::Decoder;

with_nginx <<'CONF', sub ($nginx) {
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_shared_memory_size 16m;
    push_stream_channels_path $arg_id;
    push_stream_subscriber_queue 100k;
    push_stream_message_template "~text~;";
    push_stream_footer_template "foot";
    push_stream_compress zstd gzip;
    keepalive_requests 100000;

    server {
        listen 127.0.0.1:%%PORT%% sndbuf=16k;

        location /pub { push_stream_publisher admin; }
        location /skip { push_stream_subscriber; push_stream_slow_reader skip; }
        location /latest { push_stream_subscriber; push_stream_slow_reader latest; }
        location /close { push_stream_subscriber; }
        location /ordered {
            push_stream_subscriber;
            push_stream_slow_reader skip;
            push_stream_resume ordered;
            push_stream_gap_notice on;
            push_stream_gap_message_text "gap";
        }
        location /status { push_stream_channels_statistics; }
    }
}
CONF
    for my $coding (qw(gzip zstd)) {
        subtest $coding => sub { slow_readers($nginx, $coding) };
    }
};

sub slow_readers ($nginx, $coding) {
    # Most messages are noise, which cannot be compressed, and repeat after more than a window.
    srand 7;
    my $noise = join '', map { chr 33 + int rand 90 } 1 .. 200_000;
    my $message = sub ($n) { sprintf('%06d:', $n) . ($n % 4 ? substr $noise, $n * 6007 % 190_000, 6000 : 'a' x 3000) =~ tr/;/,/r };
    my $open = sub ($uri, @options) {
        my $client = $nginx->connect(@options);
        $client->send_request(GET => $uri, headers => { 'Accept-Encoding' => $coding });
        return PushStream::Decoder->new($client, $coding);
    };
    my %slow = map { ($_ => $open->("/$_?id=a-$coding", receive_buffer => 4096)) } qw(skip latest close ordered);
    my $quick = $open->("/skip?id=a-$coding");

    my ($publisher, $count) = ($nginx->connect, 800);
    my $wrong = 0;
    for my $n (1 .. $count) {
        $publisher->request(POST => "/pub?id=a-$coding", body => $message->($n), headers => { 'Event-Id' => $n });
        $wrong++ if $quick->text(length($message->($n)) + 1) ne $message->($n) . ';';
    }
    is $wrong, 0, 'who reads misses nothing';
    ok wait_until { $nginx->figures("a-$coding")->{subscribers} == 4 }, 'one of the slow ones was cut off';

    my $check = sub ($name, $client) {
        my (@numbers, $gaps);
        while (1) {
            my $text = $client->until(qr/;/);
            if ($text eq 'gap;') { $gaps++; next }
            my ($n) = $text =~ /^(\d{6}):/;
            return fail "$name: unexpected: " . substr $text, 0, 40 if !$n || $text ne $message->($n) . ';';
            push @numbers, $n + 0;
            last if $n == $count;
        }
        my $ordered = !grep { $numbers[$_] <= $numbers[ $_ - 1 ] } 1 .. $#numbers;
        ok $ordered && @numbers < $count, "$name: " . @numbers . ' of the messages, in order';
        return $gaps;
    };
    $check->($_ => $slow{$_}) for qw(skip latest);
    ok $check->(ordered => $slow{ordered}), 'with a notice of the gap';
    $publisher->request(DELETE => "/pub?id=a-$coding");
    is $slow{$_}->rest, 'Channel deleted;foot', "$_: the whole stream has the right end" for qw(skip latest);
    like $slow{ordered}->rest, qr/foot\z/, 'the ordered one, too';
    is $quick->rest, 'Channel deleted;foot', 'and that of the quick reader';
    my $whole = eval { $slow{close}->rest; 1 };
    ok !$whole, 'a stream that was cut off does not look whole';
}

done_testing;
