# The message template: which words it knows, and that nothing but it is ever interpreted.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;
use PushStream::WebSocket;

use Encode qw(decode);
use JSON::PP qw(decode_json);
use MIME::Base64 qw(encode_base64);

with_nginx <<'CONF', sub ($nginx) {
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_shared_memory_size 16m;
    push_stream_channels_path $arg_id;
    push_stream_store_messages on;
    client_max_body_size 1m;

    server {
        listen 127.0.0.1:%%PORT%%;

        location /pub { push_stream_publisher; }
        location /all {
            push_stream_subscriber polling;
            push_stream_message_template "~id~|~text~|~size~|~channel~|~time~|~tag~|~event-id~|~event-type~";
        }
        location /case { push_stream_subscriber polling; push_stream_message_template "~ID~ ~Text~ ~EVENT-id~"; }
        location /other { push_stream_subscriber polling; push_stream_message_template "~ ~~ ~nope~ ~text ~~text~~ 100% \"~text~\""; }
        location /json { push_stream_subscriber polling; push_stream_message_template '{"channel":"~channel:json~","id":"~event-id:json~","type":"~event-type:json~","text":"~text:json~","bytes":"~text:base64~"}\n'; }
        location /json_events { push_stream_subscriber eventsource; push_stream_message_template '{"text":"~text:json~","size":~size~}'; }
        location /json_socket { push_stream_subscriber websocket; push_stream_message_template '{"text":"~text:json~"}'; }
        location /html { push_stream_subscriber polling; push_stream_message_template '<i title="~channel:HTML~">~text:html~</i>'; }
        location /default { push_stream_subscriber polling; }
        location /five {
            push_stream_subscriber;
            push_stream_message_template "~id~ ~channel~ ~tag~ ~time~ ~text~";
        }
        location /five_events {
            push_stream_subscriber eventsource;
            push_stream_message_template "~id~ ~channel~ ~tag~ ~time~ ~text~";
        }
    }
}
CONF
    my $newest = sub ($location, $id) { $nginx->get("/$location?id=$id.b1")->body };

    $nginx->post('/pub?id=a', 'hello', 'Event-Id' => 'e', 'Event-Type' => 't');
    like $newest->('all', 'a'), qr/^1\|hello\|5\|a\|\w{3}, \d\d \w{3} 20\d\d [\d:]{8} GMT\|1\|e\|t$/, 'every word it knows';
    is $newest->('case', 'a'), '1 hello e', 'in any case';
    is $newest->('other', 'a'), '~ ~~ ~nope~ ~text ~hello~ 100% "hello"', 'anything else stays';
    is $newest->('default', 'a'), 'hello', 'without a template it is the text';

    $nginx->post('/pub?id=~text~', '~id~ ~channel~', 'Event-Id' => '~tag~');
    like $newest->('all', '~text~'), qr/^1\|~id~ ~channel~\|14\|~text~\|.*\|~tag~\|$/, 'what is put in is not looked at again';

    $nginx->post('/pub?id=nul', "a\0b~text~\xff");
    like $newest->('all', 'nul'), qr/^1\|a\0b~text~\xff\|10\|nul\|/, 'bytes are bytes';

    my $evil = qq("\\\r\n\t\0</script>&'~text~ \xc3\xa4\xf0\x9f\x98\x80\xe2\x80\xa8);
    my @live = ($nginx->subscribe('/json_events?id=evil'), PushStream::WebSocket->new($nginx, '/json_socket?id=evil'));
    $nginx->post('/pub?id=evil', "$evil\xff", 'Event-Id' => q("7'), 'Event-Type' => '<t>');
    my $shown = decode('UTF-8', "$evil\xef\xbf\xbd");
    my $lines = $newest->('json', 'evil');
    is $lines =~ tr/\n//, 1, 'JSON is one line';
    is_deeply decode_json($lines),
        { channel => 'evil', id => q("7'), type => '<t>', text => $shown, bytes => encode_base64("$evil\xff", '') },
        'a text that is escaped comes back from JSON, and all of it from base64';
    is $newest->('html', 'evil'),
        qq(<i title="evil">&quot;\\&#13;&#10;\t\0&lt;/script&gt;&amp;&#39;~text~ \xc3\xa4\xf0\x9f\x98\x80\xe2\x80\xa8\xef\xbf\xbd</i>), 'and HTML is text';
    is_deeply decode_json($live[0]->event->{data}), { text => $shown, size => 1 + length $evil }, 'one event for all of its lines';
    is_deeply decode_json($live[1]->text), { text => $shown }, 'a WebSocket gets UTF-8';

    my $large = '~text~ ~id~ ~channel~ ~tag~ ~time~ ' x 21_000;
    my $stream = $nginx->subscribe('/five?id=large');
    my $events = $nginx->subscribe('/five_events?id=large');
    my $start = time;
    is $nginx->post('/pub?id=large', $large)->status, 200, length($large) . ' bytes full of words';
    my $answered = time - $start;
    my $chunk = $stream->chunk;
    $chunk .= $stream->chunk while length $chunk < length $large;
    my $delivered = time - $start;
    within $answered, 0.3, sprintf 'are answered at once: %.0f ms', 1000 * $answered;
    within $delivered, 0.6, sprintf 'and delivered: %.0f ms', 1000 * $delivered;
    ok $chunk =~ /^1 large \d+ \w{3}, .{20} GMT (.*)$/s && $1 eq $large, 'as they are';
    my $data = $events->event->{data};
    ok $data =~ /^1 large \d+ \w{3}, .{20} GMT (.*)$/s && $1 eq $large, 'to browsers too';
};

done_testing;
