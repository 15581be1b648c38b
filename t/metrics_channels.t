# The busiest channels have figures of their own.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;

use File::Temp ();

# A walk begins a second after the start, and every ten after that.
with_nginx <<'CONF', sub ($nginx) {
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_shared_memory_size 32m;
    push_stream_channels_path $arg_id;
    push_stream_store_messages on;
    client_max_body_size 4m;
    push_stream_statistics_channels 1;

    server {
        listen 127.0.0.1:%%PORT%%;

        location /pub { push_stream_publisher; push_stream_batch_publish on; push_stream_batch_max_lines 10000; }
        location /sub { push_stream_subscriber; }
        location /three { push_stream_channels_statistics; push_stream_statistics_format prometheus; push_stream_statistics_channels 3; }
        location /one { push_stream_channels_statistics; push_stream_statistics_format prometheus; }
        location /none { push_stream_channels_statistics; push_stream_statistics_format prometheus; push_stream_statistics_channels 0; }
    }
}
CONF
    my @readers = map { my $count = $_; map { $nginx->subscribe("/sub?id=room$count") } 1 .. $count } 1 .. 6;
    push @readers, $nginx->subscribe('/sub?id=we%22ird%5C');
    # Channels that nobody follows, before and behind the others.
    my $body = join '', map { qq({"channels": ["c$_"], "text": "x"}\n) } 1 .. 3000;
    $nginx->post('/pub', $body, 'Content-Type' => 'application/x-ndjson');
    $nginx->post('/pub?id=room6', 'x') for 1 .. 2;
    $nginx->post('/pub?id=big', 'x' x 50_000);
    $nginx->post('/pub?id=bigger', 'x' x 60_000) for 1 .. 3;
    my $busiest = sub ($uri, $name) {
        my $text = $nginx->get($uri)->body;
        return [ $text =~ /^push_stream_channel_$name\{channel="(.*)"\} ([\d.]+)$/mg ];
    };

    ok +(wait_until { "@{ $busiest->('/three', 'subscribers') }" eq 'room6 6 room5 5 room4 4' } 15), 'the three busiest, the busiest first';
    is_deeply $busiest->('/three', 'messages_published_total'), [ 'room6', 2, 'room5', 0, 'room4', 0 ], 'with what was published'
        if $nginx->worker_count == 1;
    my ($bigger, $bigger_bytes, $big, $big_bytes) = @{ $busiest->('/three', 'stored_bytes') };
    is "$bigger $big", 'bigger big', 'so are those who store the most';
    ok $bigger_bytes > 180_000 && $bigger_bytes < 200_000 && $big_bytes > 50_000 && $big_bytes < 60_000, 'with the memory for it'
        or diag "$bigger_bytes $big_bytes";
    my $rates = sub { my ($fast, $rate) = @{ $busiest->('/three', 'messages_per_second') }; return ($fast // '') eq 'fast' && $rate };
    my ($published, $since) = (0, time);
    ok +(wait_until {
        $nginx->post('/pub?id=fast', 'x') for 1 .. 10;
        $published += 10;
        $nginx->post('/pub?id=slow', 'x');
        $rates->();
    } 30), 'those who get the most';
    my $average = $published / (time - $since);
    cmp_ok $rates->(), '<=', 3 * $average, 'so many a second' or diag $average;
    # Two looks must have seen it at work.
    ok +(wait_until {
        $nginx->post('/pub?id=fast', 'x') for 1 .. 10;
        $rates->() > 0 && $nginx->get('/three')->body =~ /^push_stream_channel_messages_per_second\{channel="slow"\}/m;
    } 30), 'the others behind them';
    is_deeply $busiest->('/none', $_), [], 'none, if none are wanted' for qw(subscribers stored_bytes messages_per_second);
    ok +(wait_until { "@{ $busiest->('/one', 'subscribers') }" eq 'room6 6' } 15), 'or as many as are';
    my $text = $nginx->get('/three')->body;
    like $text, qr/^push_stream_channel_messages_per_second\{/m, 'all kinds of figures are there';
    my $file = File::Temp->new;
    print {$file} $text;
    close $file;
    is qx{promtool check metrics < $file 2>&1}, '', 'promtool has nothing to say';
    like $nginx->get('/three', Accept => 'application/openmetrics-text')->body, qr/^# TYPE push_stream_channel_messages_published counter$/m,
        'in OpenMetrics, too';

    $_->close for @readers[15 .. 20];
    ok +(wait_until { "@{ $busiest->('/three', 'subscribers') }" eq 'room5 5 room4 4 room3 3' } 25), 'who is left by all is no more among them'
        if $nginx->worker_count == 1;
};

done_testing;
