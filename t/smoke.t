# A little of everything, in a few seconds: does this module work in this nginx at all?

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
    push_stream_message_template "~text~";

    server {
        listen 127.0.0.1:%%PORT%% reuseport;

        location /pub { push_stream_publisher admin; client_body_buffer_size 16k; client_max_body_size 1m; }
        location /sub { push_stream_subscriber; push_stream_footer_template "foot"; push_stream_ping_message_interval 300ms; }
        location /ev { push_stream_subscriber eventsource; }
        location /poll { push_stream_subscriber polling; }
        location /wait { push_stream_subscriber long-polling; }
        location /status { push_stream_channels_statistics; }
    }
}
CONF

with_nginx $conf, sub ($nginx) {
    my @events = map { $nginx->subscribe('/ev?id=a') } 1 .. 20;
    my $wait = $nginx->open(GET => '/wait?id=a');
    ok wait_until { $nginx->figures('a')->{subscribers} == 21 }, 'subscribers are there';

    is $nginx->post('/pub?id=a', "two\nlines", 'Event-Id' => 1)->json->{subscribers}, 21, 'a message';
    is scalar(grep { $_->event->{data} ne "two\nlines" } @events), 0, 'reaches everybody';
    is $wait->response->body, "two\nlines", 'also by long polling';
    is $nginx->get('/poll?id=a.b1')->body, "two\nlines", 'and is stored';
    my $large = 'x' x 500_000;
    is $nginx->post('/pub?id=a', $large, 'Event-Id' => 2)->status, 200, 'a large one, spooled to a file';
    is scalar(grep { $_->event->{data} ne $large } @events), 0, 'reaches everybody too';

    my $stream = $nginx->subscribe('/sub?id=b');
    is $stream->chunk, ' ', 'a ping';
    $nginx->delete('/pub?id=b');
    is $stream->text_until(qr/foot/), 'Channel deletedfoot', 'a deleted channel';

    my ($victim) = $nginx->worker_pids;
    $nginx->kill_worker($victim);
    ok wait_until { $nginx->figures->{subscribers} == grep { $_->is_quiet(0) } @events }, 'a killed worker is not missed';

    $nginx->reload;
    my @left = grep { eval { !$_->chunks_to_end } } @events;
    is $nginx->figures->{subscribers}, 0, 'a reload ends streams, ' . @left . ' of them properly';
    my $again = $nginx->subscribe('/ev?id=a', 'Last-Event-Id' => 1);
    ok $again->event->{data} eq $large, 'who comes back goes on where it was';

    $nginx->signal('QUIT');
    is scalar(() = $again->chunks_to_end), 0, 'quit ends streams as well';
    is $nginx->wait_for_exit, 0, 'and nginx';
};

refuses $conf =~ s/push_stream_shared_memory_size 4m;//r, 'push_stream_shared_memory_size must be set', 'a wrong configuration is refused';

done_testing;
