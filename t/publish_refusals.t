# What a publisher location refuses: status, reason, and nothing else.

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

        location /pub { push_stream_publisher; }
        location /admin { push_stream_publisher admin; }
        location /status { push_stream_channels_statistics; }
        location /error_page { return 200 "the page of somebody else"; }
    }
}
CONF
    my $refuses = sub ($method, $uri, $body, $status, $explain) {
        my $answer = $nginx->request($method => $uri, body => $body);
        my $name = "$method $uri" . (length($body // '') ? ' with a body' : '');
        is $answer->status, $status, "$name: $status";
        is $answer->explain, $explain, "$name: the reason" if defined $explain;
        is $answer->header('Content-Length'), 0, "$name: no body, also no error_page";
        is $answer->header('Cache-Control'), 'no-cache, no-store, must-revalidate', "$name: not to be cached";
        return $answer;
    };

    my $reserved = 'Channel id not authorized for this method.';
    for my $method (qw(GET POST PUT)) {
        $refuses->($method, "/pub$_", 'text', 400, 'No channel id provided.') for '', '?id=', '?other=a';
        $refuses->($method, "/pub?id=$_", 'text', 403, $reserved) for 'ALL', '*', 'a*', '*a', 'a*b', 'a/ALL', 'ALL.b3';
        $refuses->($method, '/pub?id=' . 'x' x 21, 'text', 400, 'Channel id is too large.');
    }
    $refuses->('DELETE', '/admin', undef, 400, 'No channel id provided.');
    $refuses->('DELETE', '/admin?id=ALL', undef, 403, $reserved);
    $refuses->('DELETE', '/admin?id=' . 'x' x 21, undef, 400, 'Channel id is too large.');
    $refuses->('DELETE', '/admin?id=nobody', undef, 404, undef);
    $refuses->('GET', '/pub?id=nobody', undef, 404, undef);
    is $nginx->figures->{channels}, 0, 'none of them created a channel';

    is $nginx->post('/pub?id=' . 'x' x 20, 'text')->status, 200, 'an id of just the allowed length';
    is $nginx->post("/pub?id=$_", 'text')->status, 200, "an id that is not reserved: $_" for qw(all All ALLES b);

    my $empty = 'Empty post requests are not allowed.';
    $refuses->('POST', '/pub?id=void', '', 400, $empty);
    $refuses->('PUT', '/pub?id=void', '', 400, $empty);
    $refuses->('POST', '/pub?id=void', undef, 400, $empty);
    is $nginx->get('/pub?id=void')->json->{published_messages}, 0, 'an empty body publishes nothing, but creates its channel';
    $refuses->('POST', '/pub?id=one/other', '', 400, $empty);
    is $nginx->get('/pub?id=one/other')->status, 404, 'of several channels it creates none';

    for my $method (qw(DELETE HEAD PATCH TRACE_IT PROPFIND)) {
        my $answer = $nginx->request($method => '/pub?id=a');
        is $answer->status, 405, "$method is not for a publisher";
        is $answer->header('Allow'), 'GET, POST, PUT', 'and the answer says what is';
    }
    for my $method (qw(HEAD PATCH)) {
        my $answer = $nginx->request($method => '/admin?id=a');
        is $answer->status, 405, "$method is not for an administrator";
        is $answer->header('Allow'), 'GET, POST, PUT, DELETE', 'and the answer says what is';
    }
    my $options = $nginx->request(OPTIONS => '/pub');
    is $options->status, 200, 'OPTIONS is always answered';
    is $options->header('Content-Length'), 0, 'with nothing';
};

done_testing;
