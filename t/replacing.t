# The configurations of docs/replacing.md do what they say.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;
use PushStream::Program;
use PushStream::Token;
use PushStream::WebSocket;

use Cwd qw(abs_path);
use File::Temp ();

only_over_plain_http1 'the configurations name their own ports';

my $document = do { local (@ARGV, $/) = "$FindBin::Bin/../docs/replacing.md"; <> };
my ($common) = $document =~ /^```nginx\n(.*?)^```/ms;
my %conf = $document =~ /^## (.+?)\n(?:(?!^## ).)*?^```nginx\n(.*?)^```/msg;
my ($worker_conf) = $document =~ /^```toml\n(.*?)^```/ms;

sub conf ($heading, %more) {
    my $text = $conf{$heading} // die "no configuration: $heading\n";
    $text =~ s/127\.0\.0\.1:9080/127.0.0.1:%%PORT%%/g;
    $text =~ s{/etc/nginx/}{@{[ key_dir ]}/}g;
    $text =~ s{unix:/run/}{unix:%%DIR%%/}g;
    $text =~ s/\Q$_\E/$more{$_}/g for grep { $_ ne 'more' } keys %more;
    return <<"CONF";
%%MAIN%%
events {}
http {
    %%HTTP%%
    $common
    @{[ $more{more} // '' ]}
    $text
}
CONF
}

subtest 'a part of the readers first' => sub {
    plan skip_all => 'this nginx has no realip' if !PushStream::Nginx->has_module('http_realip');
    my $server = sub ($name, $listen) {
        return <<"CONF";
server {
    listen $listen;
    add_header X-Side $name always;
    location = /pub { push_stream_publisher admin; push_stream_channels_path \$arg_id; }
    location ~ ^/sub/poll/(.+)\$ { push_stream_subscriber polling; push_stream_channels_path \$1; }
    location ~ ^/sub/ws/(.+)\$ { push_stream_subscriber websocket; push_stream_channels_path \$1; }
    location ~ ^/sub/(.+)\$ { push_stream_subscriber eventsource; push_stream_channels_path \$1; }
}
CONF
    };
    my $old = PushStream::Nginx->start("%%MAIN%%\nevents {}\nhttp { %%HTTP%% $common\n" . $server->('old', '127.0.0.1:%%PORT%%') . '}');
    my $front = conf(
        'A part of the readers first',
        '127.0.0.1:9081' => 'unix:%%DIR%%/new.sock', '127.0.0.1:9082' => '127.0.0.1:' . $old->port,
        more => "set_real_ip_from 127.0.0.1;\nreal_ip_header X-Real-IP;\n" . $server->('new', 'unix:%%DIR%%/new.sock'),
    );
    with_nginx $front, sub ($nginx) {
        my @addresses = map { '192.0.' . int($_ / 250) . '.' . $_ % 250 } 1 .. 400;
        my $new_readers = sub {
            return { map { $_ => 1 } grep { $nginx->get('/sub/poll/quiet', 'X-Real-IP' => $_)->header('X-Side') eq 'new' } @addresses };
        };
        my $few = $new_readers->();
        my $count = keys %$few;
        ok $count >= 20 && $count <= 60, 'about every tenth reader is sent to the new server' or diag $count;

        my ($inside) = sort keys %$few;
        my ($outside) = grep { !$few->{$_} } @addresses;
        my %reader = map { $_ => $nginx->subscribe('/sub/news', 'X-Real-IP' => $_) } $inside, $outside;
        is $reader{$inside}->header('X-Side'), 'new', 'one of them';
        is $reader{$outside}->header('X-Side'), 'old', 'and one of the others';
        is $nginx->post('/pub?id=news', 'Hello', 'Event-Id' => 7)->header('X-Side'), 'old', 'the old server answers a publisher';
        for my $address ($inside, $outside) {
            my $event = $reader{$address}->event;
            is "$event->{id} $event->{data}", '7 Hello', 'and readers of both get the message';
        }
        is $nginx->post('/pub?id=news', 'x', 'X-Real-IP' => $outside)->status, 403, 'nobody publishes from elsewhere';
        is $nginx->post('/pub-to-new?id=news', 'x')->status, 404, 'nor at the new server alone';
        my $socket = PushStream::WebSocket->new($nginx, '/sub/ws/talk');
        $nginx->post('/pub?id=talk', 'over WebSocket');
        is $socket->text, 'over WebSocket', 'WebSockets get through';

        # Those that the old nginx worker has would keep it.
        $_->close for values %reader;
        $socket->client->close;
        $nginx->reload($front =~ s/10%     new/20%     new/r);
        my $more;
        ok wait_until { keys %{ $more = $new_readers->() } > $count }, 'the share grows' or return;
        is_deeply [ grep { !$more->{$_} } sort keys %$few ], [], 'and who was with the new server stays there';
        $old->delete("/pub?id=$_") for qw(news talk);
    };
    $old->stop;
};

subtest 'from nchan' => sub {
    with_nginx conf('From nchan'), sub ($nginx) {
        my @stream = (Accept => 'text/event-stream');
        is $nginx->post('/pub?id=news', "message $_")->status, 200, 'published as to nchan' for 1 .. 12;
        my $reader = $nginx->subscribe('/sub/news', @stream);
        is $reader->header('Content-Type') =~ s/;.*//r, 'text/event-stream', 'a browser gets an event stream';
        my @events = map { $reader->event } 1 .. 10;
        is_deeply [ map { $_->{data} } @events ], [ map { "message $_" } 3 .. 12 ], 'that begins with what is stored';
        $nginx->post('/pub?id=news', 'a note', 'X-EventSource-Event' => 'note');
        my $event = $reader->event;
        is "$event->{event}: $event->{data}", 'note: a note', "nchan's header becomes the event's type";
        is $nginx->subscribe('/sub/news', @stream, 'Last-Event-ID' => $events[9]{id})->event->{data}, 'a note', 'who comes back goes on';

        my $stranger = $nginx->subscribe('/sub/news', @stream, 'Last-Event-ID' => '1450755421:0');
        is $stranger->status, 200, 'an id of nchan';

        my $socket = PushStream::WebSocket->new($nginx, '/sub/news');
        is_deeply [ map { $socket->text } 1 .. 10 ], [ (map { "message $_" } 4 .. 12), 'a note' ], 'a WebSocket on the same URL';

        my $poll = $nginx->get('/sub/news');
        like $poll->body, qr/message 4.*a note/s, 'a long poll begins with what is stored, too';
        my $position = sub ($answer) { ('If-Modified-Since' => $answer->header('Last-Modified'), 'If-None-Match' => $answer->header('ETag')) };
        my $waiting = $nginx->open(GET => '/sub/news', headers => { $position->($poll) });
        ok wait_until { $nginx->worker_count && $waiting->is_quiet(0.1) }, 'and waits then';
        $nginx->post('/pub?id=news', 'the next');
        is $waiting->response->body =~ s/\s+\z//r, 'the next', 'for the next';
        is $stranger->event->{data}, 'the next', 'and it is the first that the id of nchan gets';
        is $nginx->get("/$_")->status, 404, "/$_ is no URL" for qw(eventsource websocket long-polling);
    };
};

my ($reader, $publisher, $stranger, $user) = tokens(
    { claims => { mercure => { subscribe => [ 'books.1', 'books.2' ] } } },
    { claims => { mercure => { publish => ['*'] } } },
    { claims => { mercure => { subscribe => ['films.1'] } } },
    { claims => { sub => '42', channel => 'chat:room' } },
);
write_file(key_dir . '/push-keys.json', key_set('secret'));

subtest 'from Mercure' => sub {
    with_nginx conf('From Mercure'), sub ($nginx) {
        my $url = '/.well-known/mercure?topic=books.1';
        my @cookie = (Cookie => "mercureAuthorization=$reader");
        my $publish = sub ($topic, $text, %headers) {
            return $nginx->post("/pub?topic=$topic", $text, Authorization => "Bearer $publisher", %headers)->status;
        };
        is $nginx->get($url)->status, 401, 'nobody without a token';
        is $nginx->get($url, Cookie => "mercureAuthorization=$stranger")->status, 403, 'nor with one for another topic';
        is $nginx->post('/pub?topic=books.1', 'x', Authorization => "Bearer $reader")->status, 403, 'readers do not publish';
        my $stream = $nginx->subscribe($url, @cookie);
        my $both = $nginx->subscribe("$url/books.2", @cookie);
        is $publish->('books.1', 'first', 'Event-Type' => 'changed'), 200, 'the application does';
        my $event = $stream->event;
        is "$event->{event}: $event->{data}", 'changed: first', 'and its reader gets it';
        is $publish->('books.2', 'other'), 200, 'of another topic';
        is_deeply [ map { $both->event->{data} } 1, 2 ], [ 'first', 'other' ], 'one connection for both topics';
        $publish->('books.1', 'second');
        is $nginx->subscribe("$url&lastEventID=$event->{id}", @cookie)->event->{data}, 'second', 'who comes back with an id in the URL goes on';
        is $nginx->subscribe($url, @cookie, 'Last-Event-ID' => $event->{id})->event->{data}, 'second', 'or in the header';
    };
};

subtest 'from Centrifugo' => sub {
    my $program = abs_path("$FindBin::Bin/../target/release/push-stream-worker");
    plan skip_all => 'scripts/build makes the worker' if !$program || !-x $program;
    my $api = PushStream::Program->free_port;
    with_nginx conf('From Centrifugo', '127.0.0.1:9079' => "127.0.0.1:$api"), sub ($nginx) {
        my $dir = File::Temp->newdir;
        my $text = $worker_conf =~ s/127\.0\.0\.1:9079/127.0.0.1:$api/r =~ s/127\.0\.0\.1:9080/'127.0.0.1:' . $nginx->port/er;
        write_file("$dir/worker.toml", $text);
        my $worker = PushStream::Program->start("$dir/worker.log", $program, 'run', 'worker.toml');
        my $said = sub { local (@ARGV, $/) = "$dir/worker.log"; <> };
        my $up = wait_until { IO::Socket::INET->new(PeerAddr => "127.0.0.1:$api") || $worker->has_ended } 15;
        ok ref $up, 'the worker runs' or diag($said->()), return;

        my @key = ('X-API-Key' => 'THE-SECRET', 'Content-Type' => 'application/json');
        my $publish = sub ($body, @headers) { return $nginx->post('/api/publish', $body, @headers)->status };
        my $message = '{"channel": "chat:room", "data": {"n": 1.50, "text": "Hi <b>"}}';
        is $publish->($message), 401, 'nobody publishes without the key';
        my $stream = $nginx->subscribe("/connection/chat:room?token=$user");
        is $stream->status, 200, "a reader with Centrifugo's token";
        is $nginx->get("/connection/secret?token=$user")->status, 403, 'gets what it grants';
        is $publish->($message, @key), 200, 'a publish' or diag $said->();
        like $stream->event->{data}, qr/^\{"n":\s*1\.50,\s*"text":\s*"Hi (?:<|\\u003c)b(?:>|\\u003e)"\}$/, 'is the data, as it was sent';
        is $publish->('{"channel": "chat:room", "data": "plain"}', @key), 200, 'a text';
        is $stream->event->{data}, '"plain"', 'is one in JSON';
        isnt $publish->('{"channel": "chat:room"}', @key), 200, 'without data it is none';
        is $worker->end, 0, 'the worker ends well';
    };
};

done_testing;
