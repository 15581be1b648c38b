# Long polling: as polling, but when nothing is new the answer waits for the next message.

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
    push_stream_channels_path $arg_id;
    push_stream_store_messages on;

    server {
        listen 127.0.0.1:%%PORT%%;

        location /pub { push_stream_publisher admin; }
        location /status { push_stream_channels_statistics; }
        location /stamp { push_stream_subscriber polling; push_stream_message_template "~time~/~tag~"; }
        location /wait {
            push_stream_subscriber long-polling;
            push_stream_header_template "head|";
            push_stream_message_template "~id~:~text~|";
            push_stream_footer_template "foot";
        }
        location /short {
            push_stream_subscriber long-polling;
            push_stream_header_template "head|";
            push_stream_longpolling_connection_ttl 300ms;
        }
    }
}
CONF
    my $epoch = 'Thu, 01 Jan 1970 00:00:00 GMT';
    my $waits = sub ($uri, $id, $count = 1, %headers) {
        my $client = $nginx->open(GET => $uri, headers => \%headers);
        ok wait_until { ($nginx->figures($id)->{subscribers} // 0) == $count }, "$uri waits, and is counted for $id";
        return $client;
    };

    my $client = $waits->('/wait?id=a', 'a');
    ok $client->is_quiet, 'nothing is sent, not even the head';
    is $nginx->figures->{subscribers}, 1, 'who waits is a subscriber';

    $nginx->post('/pub?id=a', 'one');
    my $answer = $client->response;
    is $answer->status, 200, 'the next message is the answer';
    is $answer->body, 'head|1:one|foot', 'header, message, footer';
    my ($time, $tag) = split m{/}, $nginx->get('/stamp?id=a.b1')->body;
    is $answer->header('Last-Modified'), $time, 'Last-Modified is its time';
    is $answer->header('Etag'), "W/$tag", 'Etag its tag';
    ok wait_until { $nginx->figures('a')->{subscribers} == 0 }, 'who was answered is no subscriber any more';

    $nginx->post('/pub?id=a', $_) for qw(two three);
    $answer = $nginx->get('/wait?id=a', 'If-Modified-Since' => $time, 'If-None-Match' => $tag);
    is $answer->body, 'head|2:two|3:three|foot', 'what is new already is answered at once, all of it';
    is $nginx->get('/wait?id=a.b1')->body, 'head|3:three|foot', 'so is a backtrack';

    my %position = ('If-Modified-Since' => $answer->header('Last-Modified'), 'If-None-Match' => $answer->header('Etag'));
    $client = $waits->('/wait?id=a', 'a', 1, %position);
    $nginx->post('/pub?id=a', 'four');
    is $client->response->body, 'head|4:four|foot', 'with the newest position it waits';

    subtest 'a publish to two of its channels' => sub {
        my $both = $waits->('/wait?id=x/y', 'y');
        is $nginx->figures->{subscribers}, 1, 'one subscriber';
        is $nginx->figures('x')->{subscribers}, 1, 'two subscriptions';
        $nginx->post('/pub?id=x/y', 'both');
        my $first = $both->response;
        is $first->body, 'head|1:both|foot', 'one message a request';
        my $second = $nginx->get(
            '/wait?id=x/y',
            'If-Modified-Since' => $first->header('Last-Modified'),
            'If-None-Match' => $first->header('Etag'),
        );
        is $second->body, 'head|1:both|foot', 'the next request gets the other';
        my ($one, $two) = map { $_->header('Etag') =~ /^W\/(\d+)$/ } $first, $second;
        is $two, $one + 1, 'whose tag is one higher';
    };

    subtest 'the time limit' => sub {
        my $now = time;
        my $ended = $nginx->get('/short?id=b', 'If-Modified-Since' => $epoch, 'If-None-Match' => 7);
        cmp_ok time - $now, '>=', 0.25, 'waits as long as configured';
        within time - $now, 1.5, 'and not longer';
        is $ended->status, 304, 'then: nothing new';
        is $ended->header('Etag'), 'W/0', 'with tag 0';
        like $ended->header('Last-Modified'), qr/^\w{3}, \d\d \w{3} 20\d\d [\d:]{8} GMT$/, 'and the time of now';
        ok wait_until { $nginx->figures->{subscribers} == 0 }, 'nobody is left';
    };

    subtest 'a deleted channel' => sub {
        my $waiting = $waits->('/wait?id=a/other', 'a');
        $nginx->delete('/pub?id=a');
        my $notice = $waiting->response;
        is $notice->status, 200, 'is an answer';
        is $notice->body, 'head|-2:Channel deleted|foot', 'the notice';
        is $notice->header('Etag'), 'W/0', 'with tag 0';
        ok wait_until { $nginx->figures('other')->{subscribers} == 0 }, 'the other channels are left too';
    };

    my $gone = $waits->('/wait?id=c', 'c');
    $gone->close;
    ok wait_until { $nginx->figures('c')->{subscribers} == 0 }, 'a client that goes away is not counted';
};

done_testing;
