# Many messages in one request: a line each, and a verdict on each.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;

use JSON::PP ();
use MIME::Base64 qw(encode_base64);
use Socket ();

my $json = JSON::PP->new->canonical;
my %ndjson = ('Content-Type' => 'application/x-ndjson');

sub lines (@objects) { return join '', map { $json->encode($_) . "\n" } @objects }

sub verdicts ($answer) { return [ map { $json->decode($_) } split /\n/, $answer->body ] }

with_nginx <<'CONF', sub ($nginx) {
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_shared_memory_size 8m;
    push_stream_channels_path $arg_id;
    push_stream_store_messages on;
    push_stream_max_channel_id_length 20;
    push_stream_max_number_of_channels 30;
    push_stream_events_channel_id events;
    client_max_body_size 4m;

    server {
        listen 127.0.0.1:%%PORT%%;

        location = /pub { push_stream_publisher; push_stream_batch_publish on; }
        location = /quiet {
            push_stream_publisher;
            push_stream_batch_publish on;
            push_stream_channel_info_on_publish off;
            push_stream_batch_max_lines 3;
            push_stream_batch_max_line 100;
        }
        location = /unstored { push_stream_publisher; push_stream_batch_publish on; push_stream_store_messages off; }
        location = /single { push_stream_publisher; }
        location = /spooled { push_stream_publisher; push_stream_batch_publish on; client_body_buffer_size 8k; push_stream_batch_max_lines 100000; }
        location = /ev { push_stream_subscriber eventsource; }
        location = /sub { push_stream_subscriber; push_stream_message_template "~id~:~text~\n"; }
        location = /status { push_stream_channels_statistics; }
    }
}
CONF
    my $post = sub ($uri, $body, %headers) { $nginx->post($uri, $body, %ndjson, %headers) };

    # What a client asks before it sends a batch.
    is $nginx->request(OPTIONS => '/pub')->header('Accept-Post'), 'application/x-ndjson', 'OPTIONS says that it takes batches';
    is $nginx->request(OPTIONS => '/single')->header('Accept-Post'), undef, 'and nothing where it does not';

    # What a client asks that has filled this nginx from a log.
    my $epoch = sub ($uri) { $nginx->request(OPTIONS => $uri, headers => { 'X-Nginx-PushStream-Epoch' => '?' })->header('X-Nginx-PushStream-Epoch') };
    like $epoch->('/pub'), qr/^[0-9]+$/, 'who asks is told which zone this is';
    is $epoch->('/single'), $epoch->('/pub'), 'in every publisher location the same';
    is $nginx->request(OPTIONS => '/pub')->header('X-Nginx-PushStream-Epoch'), undef, 'who does not ask is not';
    is $epoch->('/ev'), undef, 'nor is a subscriber';

    my $events = $nginx->subscribe('/ev?id=a');
    my $answer = $post->('/pub?id=ignored', lines(
        { channels => ['a'], text => 'one', id => '1', type => 'note' },
        { channels => [ 'a', 'b' ], base64 => encode_base64("two\nlines", '') },
        { channels => ['b'], text => 'three', store => JSON::PP::false },
    ));
    is $answer->status, 200, 'a batch is accepted';
    is $answer->header('Content-Type'), 'application/x-ndjson', 'its answer is one, too';
    is $answer->body, <<'END', 'with a verdict and the figures for each line';
{"line": 1, "status": 200, "channel": "a", "published_messages": 1, "stored_messages": 1, "subscribers": 1}
{"line": 2, "status": 200, "infos": [{"channel": "a", "published_messages": 2, "stored_messages": 2, "subscribers": 1}, {"channel": "b", "published_messages": 1, "stored_messages": 1, "subscribers": 0}]}
{"line": 3, "status": 200, "channel": "b", "published_messages": 2, "stored_messages": 1, "subscribers": 0}
END
    my $first_event = $events->event;
    delete $first_event->{comments};
    is_deeply $first_event, { id => 1, event => 'note', data => 'one' }, 'the first message arrives with its id and type';
    is_deeply $events->event, { data => "two\nlines" }, 'the second as its base64 says';
    is $nginx->figures('ignored')->{channel}, undef, 'the channels path is ignored';

    is $nginx->post('/single?id=plain', lines({ channels => ['x'], text => 'y' }), %ndjson)->json->{channel}, 'plain',
        'where it is off, such a body is a message like any other';
    is $nginx->post('/pub?id=plain', "{}\n", 'Content-Type' => 'application/json')->json->{published_messages}, 2,
        'and so is one of another type where it is on';
    is $nginx->put('/pub?id=plain', "{}\n", %ndjson)->json->{published_messages}, 3, 'and a PUT';
    is verdicts($nginx->post('/pub', lines({ channels => ['b'], text => 'x' }), 'Content-Type' => 'Application/X-NDJSON; charset=utf-8'))->[0]{status}, 200,
        'parameters of the content type do not matter';

    my $told = $nginx->post('/pub?id=plain', 'x', 'Event-Id' => '7');
    is $told->header('X-Nginx-PushStream-Event-Id'), '7', 'a single message is told the newest id of its channel there';
    is $nginx->get('/pub?id=plain')->header('X-Nginx-PushStream-Event-Id'), '7', 'and so is who asks';
    is $nginx->post('/single?id=plain', 'x', 'Event-Id' => '8')->header('X-Nginx-PushStream-Event-Id'), undef, 'nobody where nothing is on';
    is $nginx->post('/pub?id=plain', 'x', 'Event-Id' => 'x' x 256)->status, 400, 'an id that is too long is refused';

    # Empty lines, and a last one without an end.
    my $empty = $post->('/quiet', "\n" . lines({ channels => ['b'], text => 'x' }) . " \r\n" . '{"channels": ["b"], "text": "y"}');
    is $empty->body, qq({"line": 2, "status": 200}\n{"line": 4, "status": 200}\n), 'empty lines count and get no verdict';
    is $post->('/quiet', "\n\n")->body, '', 'nothing but empty lines is an empty answer';
    is $post->('/quiet', '')->status, 200, 'and so is nothing at all';

    # Storing.
    $post->('/unstored', lines({ channels => ['s'], text => 'x' }, { channels => ['s'], text => 'y', store => JSON::PP::true }));
    is $nginx->get('/single?id=s')->json->{stored_messages}, 1, 'each line may override what the location says';

    # Everybody gets what is theirs in one go.
    my $segments = sub ($client) {
        # tcpi_data_segs_in of Linux's struct tcp_info.
        return unpack 'x152 L', getsockopt $client->socket, Socket::IPPROTO_TCP(), Socket::TCP_INFO();
    };
    for my $uri ('/sub?id=once1', '/sub?id=once1/once2/once3', '/ev?id=once3/once1') {
        my $reader = $nginx->subscribe($uri);
        # An EventSource begins with a comment, which may be a segment of its own.
        $reader->chunk if $uri =~ /ev/;
        $reader->is_quiet(0.2);
        my $before = $segments->($reader);
        $post->('/unstored', lines(map { { channels => ["once$_"], text => "text $_" } } 1 .. 3, 1));
        my $got = '';
        ok wait_until { $got .= $reader->chunk; (() = $got =~ /text/g) == (() = $uri =~ /once/g) + 1 }, "a batch arrives at $uri";
        is $segments->($reader) - $before, 1, 'in one segment' if !over_http2();
    }

    # What is wrong spoils only its line.
    my %wrong = (
        'not json' => qr/^expected an object at column 1$/,
        '{"channels": ["b"]}' => qr/^missing field `text` at column 19$/,
        '{"channels": ["b"], "text": "x", "more": 1}' => qr/^unknown field `more`.* at column 39$/,
        '{"channels": ["b"], "text": "x", "text": "y"}' => qr/^duplicate field `text` at column 39$/,
        '{"channels": ["b"], "text": "\ud800"}' => qr/at column \d+$/,
        '{"channels": ["b"], "text": 1}' => qr/^invalid type: integer `1`, expected a string at column 29$/,
        '{"channels": ["b"], "base64": "!"}' => qr/^bad base64: .* at column \d+$/,
        '{"channels": ["b.b3"], "text": "x"}' => qr/^no single channel id at column 20$/,
        '{"channels": ["b/c"], "text": "x"}' => qr/^no single channel id at column 19$/,
        '{"channels": ["ALL"], "text": "x"}' => qr/^a reserved channel id at column 19$/,
        '{"channels": [], "text": "x"}' => qr/^no channel at column 15$/,
        '{"channels": ["b"], "text": ""}' => qr/^Empty post requests are not allowed\.$/,
        '{"channels": ["' . 'b' x 21 . '"], "text": "x"}' => qr/^Channel id is too large\.$/,
        "{\"channels\": [\"b\"], \"text\": \"\xff\"}" => qr/^invalid unicode code point at column 30$/,
    );
    for my $line (sort keys %wrong) {
        my $verdicts = verdicts($post->('/pub', "$line\n" . lines({ channels => ['fine'], text => 'x' })));
        is $verdicts->[0]{status}, 400, "refused: $line";
        like $verdicts->[0]{explain}, $wrong{$line}, 'with the reason and its place';
        is $verdicts->[1]{status}, 200, 'and the next line is published';
    }
    my $forbidden = verdicts($post->('/pub', lines(
        { channels => ['events'], text => 'x' },
        (map { { channels => ["new$_"], text => 'x' } } 1 .. 40),
        { channels => ['fine'], text => 'x' },
    )));
    is $forbidden->[0]{explain}, 'Only internal routines can change events channel.', 'the events channel is not for publishers';
    is $forbidden->[0]{status}, 403, 'which is forbidden';
    my @full = grep { $_->{status} == 403 && $_->{explain} eq 'Number of channels were exceeded.' } @$forbidden;
    is @full, 40 - (30 - 1 - 8), 'no more channels than allowed come into being';
    is $forbidden->[-1]{status}, 200, 'what has one is published';

    # Prefer.
    my $minimal = $post->('/pub', lines({ channels => ['a'], text => 'x' }, { text => 'x' }, { channels => ['a'], text => 'x' }), Prefer => 'return=minimal');
    is $minimal->header('Preference-Applied'), 'return=minimal', 'a client may want failures only';
    my $verdicts = verdicts($minimal);
    is_deeply shift @$verdicts, { lines => 3, ok => 2, failed => 1 }, 'then there is a summary';
    is_deeply [ map { $_->{line} } @$verdicts ], [2], 'and the line that failed';
    is $answer->header('Preference-Applied'), undef, 'otherwise there is no such header';

    # Lines where no lines are taken are one message, as with the C module.
    my $published = $nginx->figures('fine')->{published_messages};
    for my $case ([ POST => '/single?id=fine', 'push_stream_batch_publish is off.' ], [ PUT => '/pub?id=fine', 'only POST takes batches.' ]) {
        my ($method, $uri, $reason) = @$case;
        my $lines = lines({ channels => ['fine'], text => 'x' });
        my $answer = $nginx->request($method, $uri, headers => { %ndjson, 'Content-Type' => 'application/x-ndjson; charset=utf-8' }, body => $lines);
        is $answer->status, 200, "$method $uri publishes them as one message";
        is $answer->header('X-Nginx-PushStream-Warning'), "Published as one message: $reason", 'and says so';
    }
    is $nginx->figures('fine')->{published_messages}, $published + 2, 'one each';
    is $nginx->post('/single?id=fine', 'x', 'Content-Type' => 'application/json')->header('X-Nginx-PushStream-Warning'), undef, 'others are not warned';

    # Limits.
    my $before = $nginx->figures('b')->{published_messages};
    my $many = $post->('/quiet', lines(({ channels => ['b'], text => 'x' }) x 4));
    is $many->status, 413, 'too many lines';
    is $many->explain, 'More than 3 lines.', 'it says so';
    my $long = $post->('/quiet', lines({ channels => ['b'], text => 'x' }, { channels => ['b'], text => 'x' x 100 }));
    is $long->status, 413, 'too long a line';
    is $long->explain, 'Line 2 is longer than 100 bytes.', 'it says so, too';
    is $nginx->figures('b')->{published_messages}, $before, 'nothing of either was published';
    is $post->('/pub', 'x' x (5 << 20))->status, 413, 'more than client_max_body_size';

    # Cut off anywhere, a body publishes nothing.
    my $body = lines(map { { channels => ['cut'], text => "text $_" } } 1 .. 5);
    for my $length (0, 1, 20, length($body) / 2, length($body) - 1) {
        my $client = $nginx->connect;
        $client->send("POST /pub HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-ndjson\r\nContent-Length: " . length($body) . "\r\n\r\n"
                . substr $body, 0, $length);
        $client->close;
        my $chunked = $nginx->connect;
        $chunked->send("POST /pub HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
                . sprintf("%x\r\n", length $body) . substr $body, 0, $length);
        $chunked->close;
    }
    my $whole = $nginx->connect;
    $whole->send("POST /quiet HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-ndjson\r\nContent-Length: 37\r\n\r\n{\"channels\": [\"b\"], ");
    ok $whole->is_quiet(0.1), 'the answer waits for the last byte';
    $whole->send(qq("text": "whole"}\n));
    is $whole->response->body, qq({"line": 1, "status": 200}\n), 'and then comes';
    is $nginx->get('/single?id=cut')->status, 404, 'what was cut off before published nothing';

    # Large ones, spooled to a file, and one after the other on a connection.
    my $stream = $nginx->subscribe('/sub?id=fine');
    my $first = $nginx->figures('fine')->{published_messages};
    my $client = $nginx->connect;
    for my $round (1 .. 3) {
        my $spooled = $client->request(
            POST => '/spooled', headers => { %ndjson, Prefer => 'return=minimal' },
            body => lines(map { { channels => ['fine'], text => 'x' x 40 . $_ } } 1 .. 2000),
        );
        is $spooled->body, qq({"lines": 2000, "ok": 2000, "failed": 0}\n), 'two thousand lines';
    }
    my $last = $first + 6000;
    my @got = split /\n/, $stream->text_until(qr/^$last:/m);
    is_deeply [ map { /^(\d+):/ } @got ], [ $first + 1 .. $last ], 'all of them arrive in order';
    is $post->('/spooled', lines({ channels => ['fine'], text => 'x' }), Expect => '100-continue')->status, 100, 'a client may wait to be asked';
};

# What makes no sense is refused by `nginx -t`.
sub conf ($location) {
    return "%%MAIN%%\nevents {}\nhttp { %%HTTP%% push_stream_shared_memory_size 1m; push_stream_channels_path x;"
        . " server { listen 127.0.0.1:%%PORT%%; $location } }";
}
my $alone = 'push_stream_batch_publish needs push_stream_publisher in the same location.';
refuses conf('location / { push_stream_subscriber; push_stream_batch_publish on; }'), $alone, 'a batch in a subscriber location';
refuses conf('location / { push_stream_batch_publish on; }'), $alone, 'a batch in a location without a role';
refuses conf('location / { push_stream_publisher; push_stream_batch_max_lines 0; }'),
    'push_stream_batch_max_lines cannot be zero.', 'a batch of no lines';
refuses conf('location / { push_stream_publisher; push_stream_batch_max_line 0; }'),
    'push_stream_batch_max_line cannot be zero.', 'lines of no bytes';
refuses conf('push_stream_batch_publish on;'), '"push_stream_batch_publish" directive is not allowed here', 'outside of a location';
accepts conf('location / { push_stream_publisher; push_stream_batch_publish on; location /sub { push_stream_subscriber; } }'),
    'a nested location with another role';

done_testing;
