# A batch of a mebibyte that is cut before its last byte publishes nothing, wherever that is.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;

only_over_http1 'it cuts what is sent by hand';

with_nginx <<'CONF', sub ($nginx) {
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_shared_memory_size 32m;
    push_stream_channels_path $arg_id;
    push_stream_store_messages on;
    client_max_body_size 2m;

    server {
        listen 127.0.0.1:%%PORT%%;
        access_log %%DIR%%/access.log;

        location = /memory { push_stream_publisher; push_stream_batch_publish on; push_stream_batch_max_lines 100000; client_body_buffer_size 2m; }
        location = /file { push_stream_publisher; push_stream_batch_publish on; push_stream_batch_max_lines 100000; client_body_buffer_size 16k; }
        location = /status { access_log off; push_stream_channels_statistics; }
    }
}
CONF
    # Lines with all that a line can have.
    my $line = qq({"channels": ["cut", "c\\u0075t2"], "text": "gr\xc3\xbc\xc3\x9fe \\"x\\" \\ud83d\\ude00", "id": "%07d", "store": true}\r\n);
    my ($body, $count) = ('', 0);
    $body .= sprintf $line, ++$count while length $body < 1 << 20;

    # The place behind such a text, in a line in the middle and in the last one.
    my $middle = index($body, "\n", length($body) / 2) + 1;
    my $last = rindex($body, "\n", length($body) - 2) + 1;
    my %places = ('nothing' => 0, 'the first byte' => 1, 'all but the last byte' => length($body) - 1);
    for my $place ([ $middle, 'of a line in the middle' ], [ $last, 'of the last line' ]) {
        my ($start, $where) = @$place;
        my %behind = (
            'before the first byte' => '', 'in a key' => '{"chan', 'behind a colon' => '{"channels":', 'in a list' => '["cut",', 'in an escape' => 'c\\u00',
            'in a text' => '"gr', 'in a character' => "gr\xc3", 'between two surrogates' => '\\ud83d', 'in an id' => '"id": "00',
            'in a word' => ': tr', 'behind the object' => '}', 'in a line end' => "}\r", 'behind the line' => "\n",
        );
        for my $class (keys %behind) {
            my $at = $behind{$class} eq '' ? $start : index($body, $behind{$class}, $start) + length $behind{$class};
            $places{"$class $where"} = $at if $at < length $body;
        }
    }
    my $half = int length($body) / 2;
    my $cuts = 0;
    my $cut = sub ($uri, $framing, @parts) {
        my $client = $nginx->connect;
        $client->send("POST $uri HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-ndjson\r\n$framing\r\n\r\n" . join '', @parts);
        $client->close;
        $cuts++;
    };
    for my $uri ('/memory', '/file') {
        for my $place (sort keys %places) {
            my $sent = substr $body, 0, $places{$place};
            $cut->($uri, 'Content-Length: ' . length $body, $sent);
            # A chunk that is cut, and whole ones without the end.
            $cut->($uri, 'Transfer-Encoding: chunked', sprintf("%x\r\n", length $body), $sent);
            $cut->($uri, 'Transfer-Encoding: chunked', sprintf("%x\r\n%s\r\n", length $sent, $sent)) if length $sent;
        }
        my $all = sprintf "%x\r\n%s\r\n%x\r\n%s", $half, substr($body, 0, $half), length($body) - $half, substr($body, $half);
        $cut->($uri, 'Transfer-Encoding: chunked', $all . $_) for '', "\r", "\r\n", "\r\n0", "\r\n0\r", "\r\n0\r\n", "\r\n0\r\n\r";
    }
    my $logged = sub {
        open my $file, '<', $nginx->dir . '/access.log' or return 0;
        return scalar grep { m{"POST /(memory|file)} } <$file>;
    };
    my $seen = wait_until { $logged->() == $cuts } 60;
    ok $seen, "$cuts requests were cut, at " . keys(%places) . ' places';
    is $nginx->figures->{channels}, 0, 'none of them published anything';
    is $nginx->figures->{published_messages}, 0, 'anywhere';

    my $chunked = $nginx->connect;
    $chunked->send("POST /file HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-ndjson\r\nPrefer: return=minimal\r\n"
        . sprintf("Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", length $body, $body));
    is $chunked->response->body, qq({"lines": $count, "ok": $count, "failed": 0}\n), 'whole, it publishes all of its lines';
    is $nginx->figures->{published_messages}, 2 * $count, 'in both channels';
};

done_testing;
