# Batches to many channels and subscribers of several of them: each gets every message of its channels once and in order.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;

my @CHANNELS = map { "c$_" } 1 .. 12;

with_nginx <<'CONF', sub ($nginx) {
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_shared_memory_size 64m;
    client_max_body_size 4m;
    client_body_buffer_size 1m;

    server {
        listen 127.0.0.1:%%PORT%%;
        location /pub { push_stream_publisher; push_stream_channels_path $arg_id; push_stream_batch_publish on; }
        location /sub { push_stream_subscriber; push_stream_channels_path $arg_id; push_stream_message_template "~channel~ ~id~ ~text~\n"; }
        location /attached {
            push_stream_subscriber;
            push_stream_detach off;
            push_stream_channels_path $arg_id;
            push_stream_message_template "~channel~ ~id~ ~text~\n";
        }
        location /status { push_stream_channels_statistics; push_stream_channels_path $arg_id; }
    }
}
CONF
    srand 1;
    my @readers;
    for my $number (1 .. 150) {
        my %own = map { $_ => 0 } map { $CHANNELS[ rand @CHANNELS ] } 1 .. 1 + $number % 5;
        my $uri = ($number % 10 ? '/sub' : '/attached') . '?id=' . join '/', sort keys %own;
        push @readers, { stream => $nginx->subscribe($uri), next => \%own };
    }
    my %published = map { $_ => 0 } @CHANNELS;
    my @publishers = map { $nginx->connect } 1 .. 3;
    for my $round (1 .. 60) {
        for my $publisher (@publishers) {
            my $lines = join '', map {
                my %to = map { $_ => 1 } map { $CHANNELS[ rand @CHANNELS ] } 1 .. 1 + rand 3;
                $published{$_}++ for keys %to;
                my $text = 'x' x (rand() < 0.02 ? 9000 : rand 100);
                '{"channels": [' . join(', ', map { qq("$_") } sort keys %to) . qq(], "text": "$text."}\n)
            } 1 .. 1 + rand 30;
            $publisher->send_request(POST => '/pub', headers => { 'Content-Type' => 'application/x-ndjson', Prefer => 'return=minimal' }, body => $lines);
        }
        $_->response for @publishers;
    }

    my @wrong;
    for my $reader (@readers) {
        my $text = '';
        my $missing = sub { grep { $reader->{next}{$_} < $published{$_} } keys %{ $reader->{next} } };
        while ($missing->()) {
            $text .= eval { $reader->{stream}->chunk } // last;
            while ($text =~ s/^(\w+) (\d+) (x*)\.\n//) {
                push @wrong, "$1 $2 after $reader->{next}{$1}" if $2 != ++$reader->{next}{$1};
            }
        }
        push @wrong, map { "$_ ends at $reader->{next}{$_}" } $missing->();
        push @wrong, "more: $text" if length $text;
    }
    is_deeply [ @wrong[ 0 .. ($#wrong > 9 ? 9 : $#wrong) ] ], [], 'every message once and in order, in every channel';
};

done_testing;
