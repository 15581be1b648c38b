# While a message is on its way to very many readers, those of other channels get theirs, and what comes meanwhile follows in order.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;
use Socket qw(IPPROTO_TCP);

only_over_plain_http1 'when the kernel got the last bytes says nothing over TLS and HTTP/2';

use constant READERS => 2000;

# With one worker there is no other that could be the quicker one.
local $ENV{TEST_WORKERS} = 1;

# How many milliseconds ago the kernel got something from the server, whenever it is read.
sub age ($client) {
    my $info = getsockopt $client->socket, IPPROTO_TCP, 11;    # TCP_INFO
    return unpack 'x52 L', $info;
}

with_nginx <<'CONF', sub ($nginx) {
%%MAIN%%
events { worker_connections 4096; }
http {
    %%HTTP%%
    access_log off;
    push_stream_shared_memory_size 16m;
    push_stream_channels_path $arg_id;
    push_stream_channel_info_on_publish off;

    server {
        listen 127.0.0.1:%%PORT%% backlog=4096;

        location /pub { push_stream_publisher admin; }
        location /status { push_stream_channels_statistics; }
        location /ev { push_stream_subscriber eventsource; }
    }
}
CONF
    my @crowd = map { $nginx->open(GET => '/ev?id=crowd') } 1 .. READERS;
    $_->head for @crowd;
    my $single = $nginx->subscribe('/ev?id=single');

    # In one piece, so that all are there before the first message has gone far.
    my $publisher = $nginx->connect;
    my $publish = sub (@posts) {
        $publisher->send(join '', map {
            my ($id, $body) = @$_;
            "POST /pub?id=$id HTTP/1.1\r\nHost: localhost\r\nContent-Length: " . length($body) . "\r\n\r\n$body";
        } @posts);
        is $publisher->response->status, 200, 'a publish is answered' for @posts;
    };

    my $text = 'x' x 4000;
    $publish->([ crowd => $text ], [ single => 'meanwhile' ]);
    like $single->text_until(qr/meanwhile/), qr/^data: meanwhile$/m, 'the single reader has its message';
    my $complete = grep { $_->text_until(qr/x\n\n/) =~ /data: \Q$text\E\n\n\z/ } @crowd;
    is $complete, READERS, 'everybody in the crowd has theirs';
    my ($age_of_single, $age_of_last) = map { age($_) } $single, $crowd[-1];
    cmp_ok $age_of_single, '>', $age_of_last, 'the single reader did not wait for the crowd';

    $publish->([ crowd => "first $text" ], [ crowd => 'second' ], [ crowd => 'third' ]);
    my $expected = "data: first $text\n\ndata: second\n\ndata: third\n\n";
    $complete = grep { $_->text_until(qr/third\n\n/) eq $expected } @crowd;
    is $complete, READERS, 'what came while a message was on its way follows it in order';
};

done_testing;
