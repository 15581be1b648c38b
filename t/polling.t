# Polling: what is new is answered at once, and if nothing is, 304.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;

with_nginx <<'CONF', sub ($nginx) {
%%MAIN%%
events {}
http {
    %%HTTP%%
    default_type text/html;
    push_stream_shared_memory_size 4m;
    push_stream_channels_path $arg_id;
    push_stream_store_messages on;

    server {
        listen 127.0.0.1:%%PORT%%;

        location /pub { push_stream_publisher; }
        location /status { push_stream_channels_statistics; }
        location /poll {
            push_stream_subscriber polling;
            push_stream_header_template "head|";
            push_stream_message_template "~text~|";
            push_stream_footer_template "foot";
        }
        location /stamp { push_stream_subscriber polling; push_stream_message_template "~time~/~tag~"; }
    }
}
CONF
    my $epoch = 'Thu, 01 Jan 1970 00:00:00 GMT';

    my $nothing = $nginx->get('/poll?id=a');
    is $nothing->status, 304, 'nothing new';
    is $nothing->header($_), undef, "and no $_ when the client had no position" for qw(Last-Modified Etag);
    is $nothing->header('X-Accel-Buffering'), undef, 'a proxy may do with it as it likes';
    is $nothing->header('Cache-Control'), 'no-cache, no-store, must-revalidate', 'not to be cached';
    is $nginx->figures('a')->{published_messages}, 0, 'polling creates its channel';

    $nothing = $nginx->get('/poll?id=a', 'If-Modified-Since' => 'Sun, 22 Nov 2099 05:24:31 GMT', 'If-None-Match' => 'W/17');
    is $nothing->status, 304, 'nothing behind a position';
    is $nothing->header('Last-Modified'), 'Sun, 22 Nov 2099 05:24:31 GMT', 'the position comes back: time';
    is $nothing->header('Etag'), 'W/17', 'and tag';

    $nginx->post('/pub?id=a', $_) for qw(one two three);
    my $answer = $nginx->get('/poll?id=a', 'If-Modified-Since' => $epoch);
    is $answer->status, 200, 'something new';
    is $answer->header('Content-Type'), 'text/html', 'with the type that nginx gives';
    is $answer->header('Content-Length'), undef, 'of a length that is not told';
    is $answer->body, 'head|one|two|three|foot', 'header, messages, footer';
    my ($time, $tag) = split m{/}, $nginx->get('/stamp?id=a.b1')->body;
    is $answer->header('Last-Modified'), $time, 'Last-Modified is the time of the newest message';
    is $answer->header('Etag'), "W/$tag", 'Etag its tag, weak and without quotes';

    my %position = ('If-Modified-Since' => $answer->header('Last-Modified'), 'If-None-Match' => $answer->header('Etag'));
    is $nginx->get('/poll?id=a', %position)->status, 304, 'with that position nothing is new';
    $nginx->post('/pub?id=a', 'four');
    is $nginx->get('/poll?id=a', %position)->body, 'head|four|foot', 'until something is published';

    my $client = $nginx->connect;
    my @statuses = map { $client->request(GET => '/poll?id=a', headers => { %position })->status } 1 .. 50;
    is "@statuses", join(' ', (200) x 50), 'many polls on one connection';

    is $nginx->figures->{subscribers}, 0, 'who polls is no subscriber';
    is $nginx->figures('a')->{subscribers}, 0, 'of anything';
};

done_testing;
