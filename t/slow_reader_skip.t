# What a subscriber that reads too slowly misses is configured: everything, the oldest, or all but the newest.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;

with_nginx <<'CONF', sub ($nginx) {
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_shared_memory_size 8m;
    push_stream_channels_path $arg_id;
    push_stream_subscriber_queue 100k;
    push_stream_message_template "~text~;";
    keepalive_requests 100000;

    server {
        listen 127.0.0.1:%%PORT%% sndbuf=16k;

        location /pub { push_stream_publisher; }
        location /close { push_stream_subscriber; }
        location /skip { push_stream_subscriber; push_stream_slow_reader skip; }
        location /latest { push_stream_subscriber; push_stream_slow_reader latest; }
        location /status { push_stream_channels_statistics; }
    }
}
CONF
    my $message = sub ($n) { sprintf('%06d:', $n) . chr(97 + $n % 26) x 4000 };
    my %slow = map {
        my $client = $nginx->connect(receive_buffer => 4096);
        $client->send_request(GET => "/$_?id=a");
        $client->head;
        ($_ => $client);
    } qw(close skip latest);
    my $quick = $nginx->subscribe('/skip?id=a');

    my ($publisher, $count) = ($nginx->connect, 1000);
    my $wrong = 0;
    for my $n (1 .. $count) {
        $publisher->request(POST => '/pub?id=a', body => $message->($n));
        $wrong++ if $quick->chunk ne $message->($n) . ';';
    }
    is $wrong, 0, 'who reads misses nothing';
    ok wait_until { $nginx->figures('a')->{subscribers} == 3 }, 'one of the slow ones was cut off';

    # Reads what there is; returns the numbers of the messages, or dies on a byte that should not be there.
    my $numbers = sub ($client) {
        my @numbers;
        my $going_on = eval {
            while (1) {
                my $chunk = $client->chunk(1);
                last if !length $chunk;
                my ($n) = $chunk =~ /^(\d{6}):/;
                die "unexpected: $chunk\n" if !$n || $chunk ne $message->($n) . ';';
                push @numbers, $n + 0;
                last if $n == $count;
            }
            1;
        };
        die $@ if $@ =~ /^unexpected/;
        return @numbers;
    };
    my $ascending = sub (@numbers) { !grep { $numbers[$_] <= $numbers[ $_ - 1 ] } 1 .. $#numbers };
    my $gaps = sub (@numbers) { scalar grep { $numbers[$_] != $numbers[ $_ - 1 ] + 1 } 1 .. $#numbers };

    my @close = $numbers->($slow{close});
    ok @close < $count && $close[-1] < $count, 'close: it got the first ' . @close . ' messages and was cut off';
    is $gaps->(@close), 0, 'close: none of them is missing';
    my @skip = $numbers->($slow{skip});
    is $skip[-1], $count, 'skip: it got the last message';
    ok $ascending->(@skip), 'skip: in order';
    cmp_ok $gaps->(@skip), '>', 0, 'skip: with gaps';
    # A socket that takes bytes late leaves a piece that is begun at the head of the full queue. Over TLS and HTTP/2 it is
    # several messages that were joined, which stay as they were offered: the last gap comes after them.
    my $joined = ($ENV{TEST_TRANSPORT} // 'plain') ne 'plain' ? 1 : 0;
    cmp_ok $gaps->(@skip[ -20 .. -1 ]), '<=', $joined, 'skip: but complete as far back as its queue reaches';
    my @latest = $numbers->($slow{latest});
    is $latest[-1], $count, 'latest: it got the last message';
    ok $ascending->(@latest), 'latest: in order';
    cmp_ok $gaps->(@latest), '>', 0, 'latest: with gaps';

    $nginx->post('/pub?id=a', 'on');
    is $slow{$_}->chunk, 'on;', "$_: goes on when it reads again" for qw(skip latest);
};

done_testing;
