# What subscriber locations of every mode refuse: status, reason, and nothing else.

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
    push_stream_max_channel_id_length 20;
    push_stream_channels_path $arg_id;
    error_page 400 403 404 405 /error_page;

    server {
        listen 127.0.0.1:%%PORT%%;

        location /streaming { push_stream_subscriber; }
        location /eventsource { push_stream_subscriber eventsource; }
        location /polling { push_stream_subscriber polling; }
        location /long-polling { push_stream_subscriber long-polling; }
        location /status { push_stream_channels_statistics; }
        location /error_page { return 200 "the page of somebody else"; }
    }
}
CONF
    for my $mode (qw(streaming eventsource polling long-polling)) {
        my $refuses = sub ($query, $status, $explain) {
            my $answer = $nginx->get("/$mode$query");
            is $answer->status, $status, "$mode$query: $status";
            is $answer->explain, $explain, "$mode$query: the reason";
            is $answer->header('Content-Length'), 0, "$mode$query: no body, also no error_page";
            is $answer->header('Cache-Control'), 'no-cache, no-store, must-revalidate', "$mode$query: not to be cached";
        };
        $refuses->($_, 400, 'No channel id provided.') for '', '?id=', '?other=a';
        $refuses->("?id=$_", 403, 'Channel id not authorized for this method.') for 'ALL', '*', 'a*', 'good/ALL.b1', 'a/b*';
        $refuses->('?id=' . 'x' x 21, 400, 'Channel id is too large.');
        $refuses->('?id=good/' . 'x' x 21 . '/ALL', 400, 'Channel id is too large.');

        for my $method (qw(POST PUT DELETE HEAD PATCH)) {
            my $answer = $nginx->request($method => "/$mode?id=a");
            is $answer->status, 405, "$mode: $method is not for subscribers";
            is $answer->header('Allow'), 'GET', "$mode: GET is";
        }
        my $options = $nginx->request(OPTIONS => "/$mode");
        is $options->status, 200, "$mode: OPTIONS is always answered";
        is $options->header('Content-Length'), 0, "$mode: with nothing";
    }
    is $nginx->figures->{channels}, 0, 'none of them created a channel';
};

done_testing;
