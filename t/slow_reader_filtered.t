# Streams that go through nginx' filters (gzip, limit_rate) survive slow readers as well.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;

use Compress::Raw::Zlib;

with_nginx <<'CONF', sub ($nginx) {
%%MAIN%%
events {}
http {
    %%HTTP%%
    gzip_min_length 0;
    gzip_types text/plain;
    push_stream_shared_memory_size 16m;
    push_stream_channels_path $arg_id;
    push_stream_subscriber_queue 8m;
    keepalive_requests 100000;

    server {
        listen 127.0.0.1:%%PORT%% sndbuf=16k;

        location /pub { push_stream_publisher admin; }
        location /gzip { push_stream_subscriber; gzip on; gzip_comp_level 1; }
        location /limited { push_stream_subscriber; limit_rate 2m; }
        location /status { push_stream_channels_statistics; }
    }
}
CONF
    srand 1;
    # Does not compress, so that packed bytes pile up as well.
    my @messages = map { my $n = $_; sprintf('%04d:', $n) . join '', map { chr 33 + int rand 90 } 1 .. 4000 } 1 .. 400;
    my %client = map {
        my $client = $nginx->connect(receive_buffer => 4096);
        $client->send_request(GET => "/$_?id=a", headers => { 'Accept-Encoding' => 'gzip' });
        $client->head;
        ($_ => $client);
    } qw(gzip limited);

    my $publisher = $nginx->connect;
    my $start = time;
    $publisher->request(POST => '/pub?id=a', body => $_) for @messages;
    my $took = time - $start;
    within $took, 4, sprintf 'publishing does not wait for them: %.1f s', $took;
    $publisher->request(DELETE => '/pub?id=a');

    my $expected = join '', @messages, 'Channel deleted';
    ok join('', $client{limited}->chunks_to_end(30)) eq $expected, 'limit_rate: every byte, in order, to the end';
    my ($inflate) = Compress::Raw::Zlib::Inflate->new(-WindowBits => WANT_GZIP);
    my $text = '';
    for my $chunk ($client{gzip}->chunks_to_end(30)) {
        $inflate->inflate($chunk, my $plain);
        $text .= $plain;
    }
    ok $text eq $expected, 'gzip: every byte, in order, to the end';
    is $nginx->figures->{subscribers}, 0, 'nobody is left';
};

done_testing;
