# push_stream_control: a client changes the channels of its stream while that is open, by requests to any worker.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;
use PushStream::Token;
use JSON::PP;

my $conf = <<'CONF';
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_shared_memory_size 4m;
    push_stream_channels_path $arg_id;
    push_stream_store_messages on;
    push_stream_max_channel_id_length 100;
    push_stream_max_subscribers_per_channel 6;
    push_stream_events_channel_id events;

    server {
        listen 127.0.0.1:%%PORT%%;

        location /pub { push_stream_publisher admin; }
        location /quiet { push_stream_publisher; push_stream_store_messages off; }
        location /ev { push_stream_subscriber eventsource; push_stream_control on; }
        location /attached { push_stream_subscriber eventsource; push_stream_control on; push_stream_detach off; }
        location /ordered { push_stream_subscriber eventsource; push_stream_control on; push_stream_resume ordered; push_stream_gap_notice on; }
        location /gzip { push_stream_subscriber eventsource; push_stream_control on; push_stream_compress gzip; }
        location /off { push_stream_subscriber eventsource; }
        location /control { push_stream_session_control; push_stream_allowed_origins https://page.example; }
        location /known { push_stream_session_control; push_stream_authorized_channels_only on; }
        location /status { push_stream_channels_statistics; }
        location /metrics { push_stream_channels_statistics; push_stream_statistics_format prometheus; }
    }
}
CONF

refuses $conf =~ s/(location \/pub \{)/$1 push_stream_control on;/r, 'push_stream_control needs push_stream_subscriber eventsource or websocket in the same location.', 'control without a stream is refused';
refuses $conf =~ s/(location \/pub \{)/$1 push_stream_session_control;/r, '"push_stream_publisher" directive is duplicate', 'two roles are refused';

sub session_of ($stream) {
    my $event = $stream->event;
    is $event->{event}, 'session', 'the stream begins with its session' or diag explain $event;
    is $event->{id}, undef, '... without an id';
    return decode_json($event->{data})->{session};
}

# The next event that is not about the session.
sub message ($stream, @seconds) {
    while (1) {
        my $event = $stream->event(@seconds);
        return $event if ($event->{event} // '') ne 'session';
    }
}

with_nginx $conf, sub ($nginx) {
    my $control = sub ($body, $uri = '/control', %headers) { $nginx->post($uri, ref $body ? encode_json($body) : $body, %headers) };
    my $channels_are = sub ($answer, $wanted, $what) {
        local $Test::Builder::Level = $Test::Builder::Level + 1;
        is $answer->status, 200, $what or diag $answer->explain;
        is_deeply [ sort @{ $answer->json->{channels} } ], $wanted, '... and it says which hold' if $answer->status == 200;
    };
    my $is_refused = sub ($answer, $status, $explain, $what) {
        local $Test::Builder::Level = $Test::Builder::Level + 1;
        is_deeply [ $answer->status, $answer->explain ], [ $status, $explain ], $what;
    };
    $nginx->post('/pub?id=b', $_) for 1 .. 5;

    for my $kind (qw(ev attached ordered)) {
        my $stream = $nginx->subscribe("/$kind?id=a");
        my $session = session_of($stream);
        my $change = sub (%change) { $control->({ session => $session, %change }) };

        # Often enough that it lands on other workers.
        for my $round (1 .. 6) {
            $channels_are->($change->(subscribe => ['b.b2']), [qw(a b)], "$kind, round $round: a channel more");
            is_deeply [ map { message($stream)->{data} } 1, 2 ], [ 4, 5 ], '... with its history';
            $nginx->post('/quiet?id=b', "b$round");
            is message($stream)->{data}, "b$round", '... and what is live';
            $nginx->post('/quiet?id=a', "a$round");
            is message($stream)->{data}, "a$round", 'the first one goes on';
            $channels_are->($change->(unsubscribe => ['b']), ['a'], 'a channel less');
            $nginx->post('/quiet?id=b', 'nobody gets this');
        }
        $channels_are->($change->(subscribe => [ 'c', 'c', 'a.b5', 'd' ], unsubscribe => ['x']), [qw(a c d)], 'what is there already, and what is not, is no mistake');
        $channels_are->($change->(subscribe => ['e'], unsubscribe => [ 'a', 'd' ]), [qw(c e)], 'both at once');
        $channels_are->($change->(), [qw(c e)], 'no change');
        my $confirmed;
        do { $confirmed = decode_json($stream->event->{data})->{channels} } until $confirmed && "@{[ sort @$confirmed ]}" eq 'c e';
        pass 'the stream confirms it';
        is $nginx->figures('e')->{subscribers}, 1, 'the figures know';
        $nginx->post("/quiet?id=$_", "to $_") for qw(a d c e);
        # Two channels have no order between them.
        is_deeply [ sort map { message($stream)->{data} } 1, 2 ], [ 'to c', 'to e' ], 'what holds is what comes';
        $is_refused->($change->(unsubscribe => [ 'c', 'e' ]), 409, 'A stream keeps at least one channel.', 'the last channel stays');
        $is_refused->($change->(subscribe => ['events']), 403, 'Subscription to events channel is not allowed.', 'the events channel');
        $is_refused->($change->(subscribe => ['ALL']), 403, 'Channel id not authorized for this method.', 'a reserved name');
        $is_refused->($change->(subscribe => [ 'x' x 101 ]), 400, 'Channel id is too large.', 'a long name');
        $is_refused->($control->({ session => $session, subscribe => ['nobody'] }, '/known'), 403, 'Subscriber could not create channels.', 'a location that creates no channels');
        $channels_are->($control->({ session => $session, subscribe => ['b'] }, '/known'), [qw(b c e)], 'and one that is there');
        $channels_are->($change->(unsubscribe => ['b']), [qw(c e)], 'away with it');
        $nginx->delete('/pub?id=e');
        like message($stream)->{data}, qr/deleted/, 'a channel is deleted';
        $channels_are->($change->(), ['c'], 'and held no more');
        $stream->close;
        ok wait_until { $nginx->figures->{subscribers} == 0 }, 'it is gone';
        $is_refused->($change->(), 404, 'Session does not exist.', 'and so is its session');
    }

    my $stream = $nginx->subscribe('/ev?id=a');
    my $session = session_of($stream);
    my ($public, $secret) = split /\./, $session;
    my $other = session_of(my $second = $nginx->subscribe('/ev?id=a'));
    $is_refused->($control->({ session => $_ }), 404, 'Session does not exist.', 'another session') for
        "$public." . ($secret =~ tr/A-Za-z/B-ZAb-za/r), "$public." . (split /\./, $other)[1], $public, '', "$session ", 'x' x 1000;
    $is_refused->($control->('{'), 400, 'Request is no JSON object, or has a member twice.', 'no JSON');
    $is_refused->($control->({ subscribe => ['x'] }), 400, 'Member session is missing.', 'no session');
    $is_refused->($control->({ session => $session, color => 'red' }), 400, 'Request has an unknown member.', 'an unknown member');
    $is_refused->($control->({ session => $session, subscribe => 'x' }), 400, 'Member subscribe must be a list of channels.', 'no list');
    $is_refused->($control->({ session => $session, subscribe => ['x.b2'], unsubscribe => ['x'] }), 400, 'Request names a channel in both lists.', 'both ways');
    $is_refused->($control->({ session => $session, token => 'x' }), 400, 'Tokens are off in this location.', 'a token where there are none');
    $is_refused->($control->('x' x 13_000), 413, 'Message is too large.', 'too much');
    $is_refused->($nginx->get('/control'), 405, 'Method is not allowed.', 'another method');
    my $preflight = $nginx->request(OPTIONS => '/control');
    is_deeply [ $preflight->status, map { $preflight->header("Access-Control-Allow-$_") } qw(Origin Methods Headers) ],
        [ 200, 'https://page.example', 'POST', 'Authorization,Content-Type' ], 'a browser may ask';
    is $control->({ session => $session })->header('Access-Control-Allow-Origin'), 'https://page.example', 'and is told';

    my @crowd = map { $nginx->subscribe('/ev?id=full') } 1 .. 6;
    $is_refused->($control->({ session => $session, subscribe => [ 'new', 'full' ] }), 409, 'Subscribers limit per channel has been exceeded.', 'a channel that is full');
    is $nginx->get('/status?id=new')->status, 404, '... and nothing has changed';
    $_->close for @crowd;

    my $without = $nginx->subscribe('/off?id=a');
    is $without->comment, '', 'a stream without control';
    $nginx->post('/quiet?id=a', 'first');
    is message($without)->{data}, 'first', '... says nothing of it';

    my ($done) = $nginx->get('/metrics')->body =~ /^push_stream_session_changes_total\{outcome="done"\} (\d+)$/m;
    cmp_ok $done, '>', 50, 'changes are counted';
};

# A history that takes its time, and what is live meanwhile.
with_nginx $conf, sub ($nginx) {
    my $control = sub ($body) { $nginx->post('/control', encode_json($body)) };
    my $number = 0;
    my $publish = sub ($channel, $count) { $nginx->post("/pub?id=$channel", 'x' x 200, 'Event-Id' => ++$number) for 1 .. $count };
    $publish->(a => 3);
    $publish->($_ => 150) for qw(b c);
    $publish->(a => 1);

    # Ids of the history that are above all before are positions, and others are not shown.
    my $stream = $nginx->subscribe('/ordered?id=a', 'Last-Event-ID' => 0);
    my $session = session_of($stream);
    is_deeply [ map { message($stream)->{id} } 1 .. 4 ], [ 1, 2, 3, 304 ], 'a reader that resumes in order';
    $publish->(c => 2);
    is $control->({ session => $session, subscribe => [ 'b.b150', 'c.b152' ] })->status, 200, 'two channels with a long history';
    $publish->($_ => 1) for qw(a b c);
    my @got = map { message($stream) } 1 .. 305;
    my @ids = map { $_->{id} } grep { exists $_->{data} } @got;
    is scalar(grep { defined } @ids), 5, 'positions are those above the last';
    is_deeply [ grep { defined } @ids ], [ 305 .. 309 ], '... in order, none twice';
    is_deeply [ grep { defined $ids[$_] } 0 .. $#ids ], [ 300 .. 304 ], '... after the history';

    # A second change before the history of the first has gone.
    my $slow = $nginx->subscribe('/ev?id=a');
    $session = session_of($slow);
    is $control->({ session => $session, subscribe => ["$_.b1000"] })->status, 200, "history of $_" for qw(b c);
    $nginx->post('/quiet?id=a', 'end');
    my @texts;
    while (1) {
        my $data = message($slow)->{data};
        last if $data eq 'end';
        push @texts, $data;
    }
    is scalar @texts, 304, 'both histories, and then what is live';
};

# After a cut: the last id, for the channels that are subscribed to again.
with_nginx $conf, sub ($nginx) {
    my $control = sub ($body) { $nginx->post('/control', encode_json($body)) };
    $nginx->post("/pub?id=$_->[0]", $_->[1], 'Event-Id' => $_->[1]) for [ a => 1 ], [ b => 2 ], [ a => 3 ], [ b => 4 ];
    my $stream = $nginx->subscribe('/ordered?id=a', 'Last-Event-ID' => 1);
    my $session = session_of($stream);
    is message($stream)->{id}, 3, 'its own channel goes on';
    is $control->({ session => $session, subscribe => ['b'], last_event_id => '1' })->status, 200, 'the other one, too';
    is_deeply [ map { my $event = message($stream); [ @$event{qw(id data)} ] } 1, 2 ], [ [ undef, 2 ], [ 4, 4 ] ], 'above the same id';
    is $control->({ session => $session, subscribe => ['c'], last_event_id => '99' })->status, 200, 'an id that nobody has given';
    like message($stream)->{event}, qr/gap/, '... is a gap';
};

# A reload: the session goes on under another name, or is not found; never another reader's.
if (PushStream::Nginx::transport() eq 'http1') {
    with_nginx $conf, sub ($nginx) {
        my $control = sub ($body) { $nginx->post('/control', encode_json($body)) };
        my $stream = $nginx->subscribe('/ev?id=a');
        my $old = session_of($stream);
        $nginx->reload($conf);
        my $new = session_of($stream);
        isnt $new, $old, 'another worker has it, under another name';
        is $control->({ session => $old, subscribe => ['b'] })->status, 404, 'the old name is gone';
        is $control->({ session => $new, subscribe => ['b'] })->status, 200, 'the new one is known';
        $nginx->post('/quiet?id=b', 'hello');
        is message($stream)->{data}, 'hello', 'and it works';
        if ($nginx->worker_count == 4) {
            my @killed = $nginx->worker_pids;
            $nginx->kill_worker($_) for @killed;
            is $control->({ session => $new, subscribe => ['b'] })->status, 404, 'a worker that has died takes its sessions along';
            $nginx->expect_in_log(qr/exited on signal 9/);
        }
    };
}

# Tokens: each change needs one that grants the channels; a new one in the request takes the place of the old one's end.
{
    my $soon = 2 + PushStream::Nginx::slowness;
    my ($other) = tokens({ claims => { exp => int(time) + 3600, push => { subscribe => ['c'] } } });
    write_file(key_dir . '/keys.json', key_set('secret'));
    my $keys = key_dir;
    my $secured = $conf =~ s/(http \{)/$1 push_stream_token_keys $keys\/keys.json; push_stream_token_leeway 0;/r
        =~ s/(location \/(?:ev|control) \{)/$1 push_stream_token required;/gr;
    with_nginx $secured, sub ($nginx) {
        my $control = sub ($body, $token = undef, $uri = '/control') { $nginx->post($uri, encode_json($body), $token ? (Authorization => "Bearer $token") : ()) };
        my ($short, $long) = tokens(
            { claims => { exp => int(time) + $soon, push => { subscribe => ['a'] } } },
            { claims => { exp => int(time) + 3600, push => { subscribe => [ 'a', 'b' ] } } },
        );
        my $stream = $nginx->subscribe('/ev?id=a', Authorization => "Bearer $short");
        my $ending = $nginx->subscribe('/ev?id=a', Authorization => "Bearer $short");
        my $session = session_of($stream);
        is $control->({ session => $session, subscribe => ['b'] })->status, 401, 'no token';
        is $control->({ session => $session, subscribe => ['b'], token => "x$long" })->status, 401, 'a bad one';
        is $control->({ session => $session, subscribe => ['b'] }, $short)->status, 403, 'one that does not grant the channel';
        is $control->({ session => $session, subscribe => [ 'b', 'c' ], token => $long })->status, 403, '... or not all';
        is $control->({ session => $session, subscribe => ['b'] }, undef, '/known')->status, 403, 'a location that asks for none cannot add to a stream that needed one';
        is $control->({ session => $session, subscribe => ['b'], token => $long })->status, 200, 'one that does';
        is $control->({ session => $session, unsubscribe => ['b'] }, $other)->status, 200, 'a header does for a change';
        my $event;
        do { $event = message($ending, 2 * $soon + 5) } until ($event->{event} // '') eq 'expired';
        is $ending->chunk, '', 'a stream ends with its token';
        $nginx->post('/quiet?id=a', 'still here');
        do { $event = message($stream) } while ($event->{event} // '') eq 'token';
        is $event->{data}, 'still here', '... and one with a new token does not';
    };
}

done_testing;
