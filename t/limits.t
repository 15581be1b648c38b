# Limits on channels and subscribers, and who may create channels.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;

my $conf = <<'CONF';
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_shared_memory_size 4m;
    push_stream_channels_path $arg_id;
    push_stream_store_messages on;
    LIMITS

    server {
        listen 127.0.0.1:%%PORT%%;

        location /pub { push_stream_publisher admin; }
        location /volatile { push_stream_publisher admin; push_stream_store_messages off; }
        location /sub { push_stream_subscriber; }
        location /poll { push_stream_subscriber polling; }
        location /status { push_stream_channels_statistics; }
    }
}
CONF
my $is = sub ($answer, $status, $explain, $name) {
    is $answer->status, $status, $name;
    is $answer->explain, $explain, "$name: the reason";
};

subtest 'number of channels' => sub {
    my $limits = 'push_stream_max_number_of_channels 3; push_stream_max_number_of_wildcard_channels 2;'
        . 'push_stream_wildcard_channel_prefix w_;';
    with_nginx $conf =~ s/LIMITS/$limits/r, sub ($nginx) {
        my $exceeded = 'Number of channels were exceeded.';
        is $nginx->post("/pub?id=$_", 'x')->status, 200, "channel $_" for qw(a b c w_a w_b);
        $is->($nginx->post('/pub?id=d', 'x'), 403, $exceeded, 'one channel too many');
        $is->($nginx->post('/pub?id=w_c', 'x'), 403, $exceeded, 'one wildcard channel too many');
        $is->($nginx->get('/poll?id=d'), 403, $exceeded, 'also for a subscriber');
        is $nginx->post('/pub?id=a', 'x')->status, 200, 'those that exist go on';
        $is->($nginx->post('/pub?id=a/d', 'x'), 403, $exceeded, 'all or nothing');
        is $nginx->get('/pub?id=a')->json->{published_messages}, 2, 'nothing was published';
        is join(' ', @{ $nginx->figures }{qw(channels wildcard_channels)}), '3 2', 'both are counted';

        is $nginx->delete('/pub?id=a')->status, 200, 'a deleted channel';
        is $nginx->post('/pub?id=d', 'x')->status, 200, 'makes room at once';
        is join(' ', @{ $nginx->figures }{qw(channels wildcard_channels)}), '3 2', 'for one';
        $is->($nginx->post('/pub?id=e/f', 'x'), 403, $exceeded, 'not for two');
    };
};

subtest 'subscribers per channel' => sub {
    with_nginx $conf =~ s/LIMITS/push_stream_max_subscribers_per_channel 3;/r, sub ($nginx) {
        my $exceeded = 'Subscribers limit per channel has been exceeded.';
        my @streams = map { $nginx->subscribe('/sub?id=a') } 1 .. 3;
        $is->($nginx->get('/sub?id=a'), 403, $exceeded, 'a fourth subscriber');
        $is->($nginx->get('/sub?id=b/a'), 403, $exceeded, 'also among others');
        is $nginx->subscribe('/sub?id=b')->status, 200, 'other channels are open';
        pop(@streams)->close;
        ok wait_until { $nginx->figures('a')->{subscribers} == 2 }, 'one leaves';
        is $nginx->subscribe('/sub?id=a')->status, 200, 'another may come';
    };
};

subtest 'authorized channels only' => sub {
    my $limits = 'push_stream_authorized_channels_only on; push_stream_wildcard_channel_prefix w_;';
    with_nginx $conf =~ s/LIMITS/$limits/r, sub ($nginx) {
        my $not = 'Subscriber could not create channels.';
        $is->($nginx->get('/sub?id=a'), 403, $not, 'an unknown channel');
        $is->($nginx->get('/poll?id=a'), 403, $not, 'also for polling');
        $nginx->post('/volatile?id=a', 'x');
        $is->($nginx->get('/sub?id=a'), 403, $not, 'a channel without a stored message');
        $nginx->post('/pub?id=a', 'x');
        is $nginx->subscribe('/sub?id=a')->status, 200, 'with a stored message';
        is $nginx->subscribe('/sub?id=a/w_new')->status, 200, 'wildcard channels are for everybody to create';
        $is->($nginx->get('/sub?id=a/b'), 403, $not, 'one unknown among others');
        is $nginx->get('/status?id=b')->status, 404, 'nothing was created';
    };
};

subtest 'wildcard channels of one subscription' => sub {
    my $limits = 'push_stream_wildcard_channel_prefix w_; push_stream_wildcard_channel_max_qtd 2;';
    with_nginx $conf =~ s/LIMITS/$limits/r, sub ($nginx) {
        my $too_much = 'Subscribed too much wildcard channels.';
        is $nginx->subscribe('/sub?id=a/w_1/w_2')->status, 200, 'two';
        $is->($nginx->get('/sub?id=a/w_1/w_2/w_3'), 403, $too_much, 'three are too many');
        $is->($nginx->get('/sub?id=w_1'), 403, $too_much, 'nothing but wildcard channels');
        $is->($nginx->get('/sub?id=w_'), 403, $too_much, 'the prefix is one itself');
    };
    with_nginx $conf =~ s/LIMITS/push_stream_wildcard_channel_prefix w_;/r, sub ($nginx) {
        is $nginx->subscribe('/sub?id=w_1/w_2/w_3')->status, 200, 'without a limit they need no company';
    };
};

done_testing;
