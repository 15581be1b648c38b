# An administrator deletes a channel: it is gone at once, and its subscribers are told.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;

with_nginx <<'CONF', sub ($nginx) {
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_shared_memory_size 4m;
    push_stream_store_messages on;

    server {
        # Each worker with a queue of its own, so that subscribers are spread over all of them.
        listen 127.0.0.1:%%PORT%% reuseport;

        location /pub { push_stream_publisher admin; push_stream_channels_path $arg_id; }
        location /status { push_stream_channels_statistics; push_stream_channels_path $arg_id; }
        location ~ ^/sub/(.*) {
            push_stream_subscriber;
            push_stream_channels_path $1;
            push_stream_message_template "~id~:~channel~:~text~:~tag~:~time~";
            push_stream_footer_template "foot";
        }
        location ~ ^/wait/(.*) { push_stream_subscriber long-polling; push_stream_channels_path $1; }
    }
}
CONF
    my $epoch = 'Thu, 01 Jan 1970 00:00:00 GMT';
    my $notice = sub ($id, $text = 'Channel deleted') { "-2:$id:$text:0:$epoch" };

    $nginx->post('/pub?id=a', $_) for 1 .. 3;
    my @subscribers = map { $nginx->subscribe('/sub/a') } 1 .. 20;
    my $of_two = $nginx->subscribe('/sub/a/b');
    if ($nginx->worker_count > 1) {
        my @busy = grep { $_->{subscribers} } @{ $nginx->figures->{by_worker} };
        cmp_ok scalar @busy, '>', 1, 'subscribers on several workers';
    }

    my $start = time;
    my $answer = $nginx->delete('/pub?id=a');
    is $answer->status, 200, 'the channel is deleted';
    is $answer->explain, 'Channel deleted.', 'as the answer says';
    is $answer->header('Content-Length'), 0, 'in a header';
    my $zone = $nginx->figures;
    is "$zone->{channels} $zone->{channels_in_delete} $zone->{channels_in_trash}", '1 1 0', 'one left, one on its way out';
    is $nginx->get('/pub?id=a')->status, 404, 'it is not found any more';
    is $nginx->get('/status?id=a')->status, 404, 'anywhere';
    is $nginx->delete('/pub?id=a')->status, 404, 'and cannot be deleted again';

    my @wrong = grep { join('#', $_->chunks_to_end) ne $notice->('a') . '#foot' } @subscribers;
    is scalar @wrong, 0, 'each subscriber reads the notice, the footer, and the end';
    is $of_two->chunk, $notice->('a'), 'who has another channel reads the notice';
    within time - $start, 1, 'at once';
    ok wait_until { $nginx->figures->{subscribers} == 1 }, 'and stays';
    $nginx->post('/pub?id=b', 'go on');
    like $of_two->chunk, qr/^1:b:go on:/, 'and goes on';

    my $reborn = $nginx->post('/pub?id=a', 'anew')->json;
    is $reborn->{published_messages}, 1, 'a new channel of that name starts again';
    ok $of_two->is_quiet(0.1), 'without the subscribers of the old one';

    subtest 'several at once, with a text of their own' => sub {
        my %stream = map { $_ => $nginx->subscribe("/sub/$_") } qw(x y z);
        my $deleted = $nginx->request(DELETE => '/pub?id=x/nobody/y', body => 'moved to z');
        is $deleted->status, 200, 'at least one of them existed';
        is_deeply [ $stream{$_}->chunks_to_end ], [ $notice->($_, 'moved to z'), 'foot' ], "$_ is told why" for qw(x y);
        ok $stream{z}->is_quiet(0.1), 'z is not';
    };

    subtest 'long polling on twenty channels' => sub {
        my @ids = map { "l$_" } 1 .. 20;
        my $wait = $nginx->open(GET => '/wait/' . join '/', @ids);
        ok wait_until { ($nginx->figures('l20')->{subscribers} // 0) == 1 }, 'waits';
        my $before = $nginx->figures->{channels};
        $nginx->delete('/pub?id=l7');
        is $wait->response->body, 'Channel deleted', 'is answered when one of them is deleted';
        ok wait_until { !grep { $nginx->figures($_)->{subscribers} } grep { $_ ne 'l7' } @ids }, 'no subscription is left';
        is $nginx->figures->{channels}, $before - 1, 'the others are';
    };

    subtest 'deleting and creating the same channel in quick succession' => sub {
        for my $round (1 .. 50) {
            my $stream = $nginx->subscribe('/sub/again');
            $nginx->delete('/pub?id=again');
            is join('#', $stream->chunks_to_end), $notice->('again') . '#foot', "round $round" or last;
        }
    };
};

done_testing;
