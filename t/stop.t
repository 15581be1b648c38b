# TERM and QUIT end every subscriber properly, and nginx with them.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;

my $conf = <<'CONF';
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_handover off;
    push_stream_shared_memory_size 4m;
    push_stream_channels_path $arg_id;
    push_stream_store_messages on;

    server {
        listen 127.0.0.1:%%PORT%%;

        location /pub { push_stream_publisher; }
        location /sub {
            push_stream_subscriber;
            push_stream_footer_template "foot";
            push_stream_ping_message_interval 1h;
        }
        location /ev { push_stream_subscriber eventsource; push_stream_footer_template "foot"; push_stream_subscriber_connection_ttl 1h; }
        location /wait { push_stream_subscriber long-polling; }
        location /status { push_stream_channels_statistics; }
    }
}
CONF

for my $signal (qw(TERM QUIT)) {
    subtest $signal => sub {
        with_nginx $conf, sub ($nginx) {
            my @streams = map { $nginx->subscribe('/sub?id=a') } 1 .. 20;
            my @events = map { $nginx->subscribe('/ev?id=a') } 1 .. 20;
            my $old = $nginx->open(GET => '/sub?id=a', version => '1.0');
            $old->head;
            my @waiting = map { $nginx->open(GET => '/wait?id=b') } 1 .. 5;
            ok wait_until { $nginx->figures->{subscribers} == 46 }, '46 subscribers';
            $nginx->post('/pub?id=a', 'message');

            my $start = time;
            $nginx->signal($signal);
            my @wrong = grep { join('#', $_->chunks_to_end) ne 'message#foot' } @streams;
            is scalar @wrong, 0, 'each stream ends with its footer and its last chunk';
            @wrong = grep { join('#', $_->chunks_to_end) ne ": \n#data: message\n\n#: foot\n" } @events;
            is scalar @wrong, 0, 'each event stream too';
            is $old->rest, 'messagefoot', 'also one without chunks';
            my @answers = map { $_->response } @waiting;
            is join(' ', map { $_->status } @answers), '304 304 304 304 304', 'long polling ends with 304';
            is join(' ', map { $_->header('Etag') } @answers), 'W/0 W/0 W/0 W/0 W/0', 'and tag 0';
            is $nginx->wait_for_exit, 0, 'nginx ends';
            within time - $start, 5, 'soon';
        };
    };
}

done_testing;
