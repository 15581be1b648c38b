# A publish that meets a full zone: `error_page` is honoured, with the reason in a header. Other refusals are whole answers, which it does
# not touch, as with the C module.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;

sub conf ($on_full) {
    return <<"CONF";
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_shared_memory_size 128k;
    push_stream_channels_path \$arg_id;
    push_stream_store_messages on;
    push_stream_on_full $on_full;
    push_stream_max_channel_id_length 20;
    client_max_body_size 1m;
    client_body_buffer_size 1m;

    server {
        listen 127.0.0.1:%%PORT%%;
        error_page 400 403 404 405 /wrong.html;

        location = /pub { push_stream_publisher admin; }
        location = /paged { error_page 500 507 /full.html; push_stream_publisher admin; }
        location = /other_page { error_page 404 /wrong.html; push_stream_publisher; }
        location = /elsewhere { error_page 500 507 =202 /poll; push_stream_publisher; }
        location = /sub { error_page 500 507 /full.html; push_stream_subscriber; }
        location = /poll { push_stream_subscriber polling; push_stream_channels_path a.b1; }
        location = /status { push_stream_channels_statistics; }
        location = /full.html { return 200 "come back later"; }
        location = /wrong.html { return 200 "never seen"; }
    }
}
CONF
}

for my $case ([ refuse => 500 ], [ evict => 507 ]) {
    my ($on_full, $status) = @$case;
    with_nginx conf($on_full), sub ($nginx) {
        my $retry = $status == 507 ? 1 : undef;
        # More than the zone has, whatever is dropped.
        my $body = 'x' x 200_000;
        my $client = $nginx->connect;
        for my $uri (qw(/pub /other_page)) {
            my $answer = $client->request(POST => "$uri?id=a", body => $body);
            is $answer->status, $status, "$uri has no page for it";
            is $answer->body, '', 'so there is none';
            is $answer->explain, 'Zone is full.', 'but a reason';
            is $answer->header('Retry-After'), $retry, 'and a time if there is one';
            is $client->request(POST => "$uri?id=a", body => 'fits')->status, 200, 'on a connection that goes on';
        }
        my $answer = $nginx->post('/paged?id=a', $body);
        is $answer->status, $status, 'with an error page';
        is $answer->body, 'come back later', 'its page is sent';
        is $answer->explain, 'Zone is full.', 'with the reason';
        is $answer->header('Retry-After'), $retry, 'and the time';
        is_deeply [ $answer->headers('X-Nginx-PushStream-Explain') ], ['Zone is full.'], 'once';
        my $elsewhere = $nginx->post('/elsewhere?id=a', $body);
        is $elsewhere->status, 202, 'the page may be anything';
        is $elsewhere->body, 'fits', 'also a location of this module';
        is_deeply [ $elsewhere->headers($_) ], [ $elsewhere->header($_) ], "$_ once" for qw(Cache-Control Expires);

        like $nginx->log, qr/\[error\].*push stream: shared zone is full, request refused.*request: "POST \/(?:pub|other_page|paged|elsewhere)/,
            'the error log says so';
        cmp_ok scalar(() = $nginx->log =~ /request refused/g), '<', 100, 'not each time';

        for my $refused (
            [ POST => '/pub', 400, 'No channel id provided.' ],
            [ POST => '/pub?id=ALL', 403, 'Channel id not authorized for this method.' ],
            [ POST => '/pub?id=' . 'x' x 30, 400, 'Channel id is too large.' ],
            [ GET => '/pub?id=unknown', 404, 'Channel does not exist.' ],
            [ DELETE => '/pub?id=unknown', 404, 'Channel does not exist.' ],
            [ GET => '/status?id=unknown', 404, 'Channel does not exist.' ],
            [ PATCH => '/pub?id=a', 405, 'Method is not allowed.' ],
            [ DELETE => '/other_page?id=a', 405, 'Method is not allowed.' ],
            [ POST => '/sub?id=a', 405, 'Method is not allowed.' ],
            [ POST => '/status?id=a', 405, 'Method is not allowed.' ],
            [ GET => '/sub?id=ALL', 403, 'Channel id not authorized for this method.' ],
        ) {
            my ($method, $uri, $wanted, $explain) = @$refused;
            my $answer = $nginx->request($method, $uri, body => 'x');
            is $answer->status, $wanted, "$method $uri is refused";
            is $answer->body, '', 'without a page';
            is $answer->explain, $explain, 'with a reason';
        }
    };
}

done_testing;
