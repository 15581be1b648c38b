# A configuration as it is found: one location that streams, and polls for those who cannot stream.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;

with_nginx <<'CONF', sub ($nginx) {
%%MAIN%%
events { worker_connections 1024; }
http {
    %%HTTP%%
    default_type text/html;
    push_stream_shared_memory_size         16m;
    push_stream_message_template           '{"id":~id~,"text":"~text~","tag":"~tag~","time":"~time~"}';
    push_stream_longpolling_connection_ttl 500ms;

    server {
        listen 127.0.0.1:%%PORT%%;
        charset utf-8;

        location /pub {
            push_stream_publisher;
            push_stream_channels_path  $arg_id;
            push_stream_store_messages on;
        }
        location ~ ^/sub/(.*) {
            push_stream_subscriber;
            push_stream_channels_path  $1;
            if ($arg_tests = "on") { push_stream_channels_path "test_$1"; }
        }
        location /status { push_stream_channels_statistics; push_stream_channels_path $arg_id; }
    }
}
CONF
    my %polls = ('X-Nginx-PushStream-Mode' => 'long-polling');
    my $stream = $nginx->subscribe('/sub/news');
    my %position;
    my @read;
    # Polls as a page does that cannot stream: answer after answer, with the position that it was told.
    my $poll = sub (%more) {
        my $answer = $nginx->get('/sub/news', %polls, %position, %more);
        %position = ('If-Modified-Since' => $answer->header('Last-Modified'), 'If-None-Match' => $answer->header('Etag'));
        push @read, $answer->body =~ /"text":"(\w+)"/g if $answer->status == 200;
        return $answer;
    };
    is $poll->()->status, 304, 'nothing yet';
    like $nginx->get('/sub/news', %polls)->header('Content-Type'), qr{^text/html}, 'a poll has the type of the location';
    my $waiting = $nginx->open(GET => '/sub/news', headers => { %polls, %position });
    ok wait_until { $nginx->figures('news')->{subscribers} == 2 }, 'one streams, one waits';
    $nginx->post('/pub?id=news', 'one');
    like $stream->chunk, qr/"text":"one"/, 'who streams gets it';
    my $answer = $waiting->response;
    like $answer->body, qr/"text":"one"/, 'who waits as well';
    %position = ('If-Modified-Since' => $answer->header('Last-Modified'), 'If-None-Match' => $answer->header('Etag'));
    $nginx->post('/pub?id=news', $_) for qw(two three four);
    $poll->();
    is "@read", 'two three four', 'what came between two polls';
    is $poll->('X-Nginx-PushStream-Mode' => 'polling')->status, 304, 'who does not want to wait is told at once';
    $nginx->post('/pub?id=test_news', 'trial');
    is $stream->text_until(qr/four/) =~ /trial/, '', 'the test channel is another';
    like $nginx->get('/sub/news.b1?tests=on', %polls)->body, qr/trial/, 'that an argument leads to';
};

done_testing;
