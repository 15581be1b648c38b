# push_stream_max_subscribers_per_address: so many connections from one client, over all workers.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;

with_nginx <<'CONF', sub ($nginx) {
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_shared_memory_size 1m;
    push_stream_channels_path $arg_id;
    push_stream_max_subscribers_per_address 2;

    server {
        listen 127.0.0.1:%%PORT%%;
        set_real_ip_from 127.0.0.1;
        real_ip_header X-Real-IP;

        location /pub { push_stream_publisher admin; }
        location /status { push_stream_channels_statistics; }
        location /ev { push_stream_subscriber eventsource; }
        location /lp { push_stream_subscriber long-polling; push_stream_longpolling_connection_ttl 10s; }
        location /poll { push_stream_subscriber polling; }
    }
}
CONF
    my $from = sub ($address, $uri = '/ev?id=a') { $nginx->subscribe($uri, 'X-Real-IP' => $address) };
    my $refused = sub ($address) {
        my $answer = $nginx->get('/ev?id=b', 'X-Real-IP' => $address);
        is $answer->header('X-Nginx-PushStream-Explain'), 'Subscribers limit per address has been exceeded.', "$address: why";
        return $answer->status == 403;
    };

    my @first = map { $from->('192.0.2.1') } 1, 2;
    is $_->status, 200, 'two are admitted' for @first;
    ok $refused->('192.0.2.1'), 'a third is not';
    is_deeply $nginx->figures('b'), {}, 'and leaves no channel behind';
    is $nginx->figures->{channels}, 1, 'addresses are not listed';
    is $from->('192.0.2.2')->status, 200, 'another address has its own two';
    is $nginx->get('/poll?id=a', 'X-Real-IP' => '192.0.2.1')->status, 304, 'polls do not stay';

    close $first[0]->socket;
    ok wait_until { $nginx->figures('a')->{subscribers} == 1 }, 'one leaves';
    my $poll = $nginx->open(GET => '/lp?id=a', headers => { 'X-Real-IP' => '192.0.2.1' });
    ok wait_until { $nginx->figures('a')->{subscribers} == 2 }, 'a long poll takes its place';
    ok $refused->('192.0.2.1'), 'and counts';
    $nginx->post('/pub?id=a', 'x');
    is $poll->response->status, 200, 'it is answered';
    my $second = $from->('192.0.2.1');
    is $second->status, 200, 'and free again';

    my @network = map { $from->("2001:db8:0:1::$_") } 1, 2;
    is $_->status, 200, 'two from a network' for @network;
    ok $refused->('2001:db8:0:1:ffff::1'), 'its /64 counts as one';
    is $from->('2001:db8:0:2::1')->status, 200, 'another network does not';

    $nginx->delete('/pub?id=a');
    ok wait_until { $nginx->figures->{subscribers} == 0 }, 'all end with their channel';
    my @after = map { $from->('192.0.2.1') } 1, 2;
    is $_->status, 200, 'and give their places back' for @after;
    ok $refused->('192.0.2.1'), 'all of them';
    $nginx->expect_in_log(qr/signal 9/);
    $nginx->kill_worker($_) for $nginx->worker_pids;
    ok wait_until { $nginx->figures->{subscribers} == 0 }, 'so do those of a killed worker';
    is $from->('192.0.2.1')->status, 200, 'in time';
};

done_testing;
