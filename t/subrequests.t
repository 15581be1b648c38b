# Subrequests of other modules (SSI, auth_request, mirror, addition): whoever polls gets an answer, and only what would have to wait or to
# stream is refused, with a line in the error log.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;

# They ask for a URI without arguments.
my @optional = ((PushStream::Nginx->has_module('http_auth_request') ? '
        location = /asks_poll { auth_request /poll_a; alias %%DIR%%/html/page.txt; }
        location = /asks_empty { auth_request /poll_none; alias %%DIR%%/html/page.txt; }
        location = /asks_stream { auth_request /sub_a; alias %%DIR%%/html/page.txt; }' : ()),
    (PushStream::Nginx->has_module('http_addition') ? '
        location = /appends { add_after_body /poll_a; addition_types *; alias %%DIR%%/html/page.txt; }
        location = /appends_nothing { add_after_body /poll_none; addition_types *; alias %%DIR%%/html/page.txt; }
        location = /appends_stream { add_after_body /sub_a; addition_types *; alias %%DIR%%/html/page.txt; }' : ()));

my $conf = <<'CONF' =~ s/%%OPTIONAL%%/join "\n", @optional/er;
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_shared_memory_size 16m;
    push_stream_store_messages on;
    push_stream_channels_path $arg_id;
    default_type text/plain;
    subrequest_output_buffer_size 1m;

    server {
        listen 127.0.0.1:%%PORT%%;
        location = /pub { push_stream_publisher; }
        location = /poll { push_stream_subscriber polling; push_stream_message_template "[~text~]"; }
        location = /framed { push_stream_subscriber polling; push_stream_header_template "<"; push_stream_footer_template ">"; }
        location = /gaps { push_stream_subscriber polling; push_stream_resume ordered; push_stream_gap_notice on; }
        location = /lp { push_stream_subscriber long-polling; push_stream_message_template "(~text~)"; }
        location = /sub { push_stream_subscriber; }
        location = /ev { push_stream_subscriber eventsource; }
        location = /ws { push_stream_subscriber websocket; }
        location = /status { push_stream_channels_statistics; }

        location = /poll_a { internal; push_stream_subscriber polling; push_stream_channels_path "a.b2"; }
        location = /poll_none { internal; push_stream_subscriber polling; push_stream_channels_path none; }
        location = /sub_a { internal; push_stream_subscriber; push_stream_channels_path a; }

        location = /mirrors_poll { mirror /poll_a; alias %%DIR%%/html/page.txt; }
        location = /mirrors_figures { mirror /copied_figures; alias %%DIR%%/html/page.txt; }
        location = /copied_figures { internal; push_stream_channels_statistics; push_stream_channels_path ALL; }

        location /pages/ { ssi on; ssi_types text/plain; alias %%DIR%%/html/; }
        %%OPTIONAL%%
    }
}
CONF

with_nginx $conf, sub ($nginx) {
    my $write = sub ($name, $text) {
        open my $file, '>', $nginx->dir . "/html/$name" or die "cannot write $name: $!";
        print {$file} $text;
        close $file;
    };
    # Two include the same, which nginx asks for at the same time; each answer is in its place.
    my $included = sub (@uris) {
        $write->('page.txt', join '|', '', (map { qq(<!--#include virtual="$_" -->) } @uris), '');
        my $answer = $nginx->get('/pages/page.txt');
        is $answer->status, 200, "a page with @uris";
        return $answer->body;
    };
    my $refused = qr/push stream: a subrequest cannot wait for messages/;
    my $lines = sub { scalar grep { $_ =~ $refused } split /^/, $nginx->log };

    $nginx->post('/pub?id=a', $_) for qw(one two);
    is $included->('/poll?id=a.b9'), '|[one][two]|', 'a poll is included';
    is $included->('/framed?id=a.b1', '/poll?id=a.b1', '/lp?id=a.b2'), '|<two>|[two]|(one)(two)|',
        'so is what long polling has at once, each in its place';
    is $included->('/gaps?id=a.b2'), '|onetwo|', 'and one that looks for gaps';
    is $included->('/poll?id=a', '/poll?id=a'), '|||', 'where there is nothing, nothing is included';
    is $included->('/poll?id=a.b1&callback=f', '/poll?id=a.b1'), '|f([[two]]);|[two]|', 'also as a call';
    is $lines->(), 0, 'nobody was refused';

    # njs asks like this: the answer is for a variable.
    $write->('page.txt', '<!--#include virtual="/poll?id=a.b2" set="got" --><!--#echo var="got" encoding="none" -->');
    is $nginx->get('/pages/page.txt')->body, '[one][two]', 'into memory';

    my $long = 'x' x 100_000;
    $nginx->post('/pub?id=long', $long) for 1 .. 20;
    is $included->('/poll?id=long.b20', '/lp?id=long.b20', '/poll?id=a.b1'),
        '|' . "[$long]" x 20 . '|' . "($long)" x 20 . '|[two]|', 'a long answer, and what follows it';
    $nginx->post("/pub?id=" . join('/', map { "many$_" . 'x' x 20 } $_ * 150 .. $_ * 150 + 149), 'm') for 0 .. 9;
    my $listed = $included->('/status?id=ALL', '/status?id=ALL');
    is scalar(() = $listed =~ /"channel": "many/g), 2 * 1500, 'long lists';

    my $before = $lines->();
    for my $uri (qw(/sub?id=a /ev?id=a /lp?id=none /ws?id=a)) {
        is $included->($uri, '/poll?id=a.b1'), '||[two]|', "$uri is refused, and hurts nobody";
        is $lines->(), ++$before, 'the error log says so';
    }
    like $nginx->log, qr/$refused.*client: 127\.0\.0\.1.*subrequest: "\/sub"/, 'and which request it was';
    is $nginx->figures->{subscribers}, 0, 'nobody subscribed';

    $write->('page.txt', "page\n");
    if (PushStream::Nginx->has_module('http_auth_request')) {
        is $nginx->get('/asks_stream')->status, 500, 'a stream is nobody to ask for permission';
        is $lines->(), ++$before, 'which is told';
        is $nginx->get('/asks_poll')->body, "page\n", 'a poll that gets something permits';
        is $nginx->get('/asks_empty')->status, 500, 'a 304 is not what nginx takes for permission, as it says itself:';
        like $nginx->log, qr/auth request unexpected status: 304/, 'its line';
    }
    for my $uri (qw(/mirrors_poll /mirrors_figures)) {
        my $client = $nginx->connect;
        for (1 .. 3) {
            $client->send_request(GET => $uri);
            is $client->response->body, "page\n", "$uri is answered, and the connection goes on";
        }
    }
    if (PushStream::Nginx->has_module('http_addition')) {
        is $nginx->get('/appends')->body, "page\nonetwo", 'messages behind a page';
        is $nginx->get('/appends_nothing')->body, "page\n", 'or none';
        $nginx->get('/appends_stream');
        is $lines->(), ++$before, 'a stream is not appended, which is told';
    }
};

done_testing;
