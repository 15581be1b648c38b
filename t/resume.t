# If-Modified-Since and If-None-Match say where a client wants to go on.

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
    push_stream_channels_path $arg_id;
    push_stream_store_messages on;
    push_stream_message_template "~text~ ~time~ ~tag~;";

    server {
        listen 127.0.0.1:%%PORT%%;

        location /pub { push_stream_publisher admin; push_stream_batch_publish on; }
        location /poll { push_stream_subscriber polling; }
        location /sub { push_stream_subscriber; }
        location /ev { push_stream_subscriber eventsource; push_stream_message_template ~text~; }
    }
}
CONF
    my $epoch = 'Thu, 01 Jan 1970 00:00:00 GMT';

    # Five messages in one second, one before, two in a later one. What comes in one request only seldom is of two seconds.
    my $publish_in_next_second = sub (@texts) {
        sleep 1.01 - (time - int time);
        $nginx->post('/pub', join('', map { qq({"channels":["a"],"text":"$_"}\n) } @texts), 'Content-Type' => 'application/x-ndjson');
    };
    my @messages;
    for (1 .. 10) {
        $publish_in_next_second->('early');
        $publish_in_next_second->(map { "same$_" } 1 .. 5);
        $publish_in_next_second->(map { "late$_" } 1 .. 2);
        @messages = map { [ /^(\S+) (.*) (\d+)$/ ] } split /;/, $nginx->get('/poll?id=a', 'If-Modified-Since' => $epoch)->body;
        last if $messages[1][1] eq $messages[5][1] && $messages[6][1] eq $messages[7][1];
        $nginx->delete('/pub?id=a');
    }
    is "@{[ map { $_->[0] } @messages ]}", 'early same1 same2 same3 same4 same5 late1 late2', 'the epoch means everything stored';
    my ($time) = map { $_->[1] } $messages[1];
    is scalar(grep { $_->[1] eq $time } @messages), 5, 'five of them in one second';
    is "@{[ map { $_->[2] } @messages ]}", '1 1 2 3 4 5 1 2', 'the tag counts within a second';

    my $names = sub ($text) { join ' ', $text =~ /(\w+) [^;]*;/g };
    my $polled = sub (%headers) { $names->($nginx->get('/poll?id=a', %headers)->body) };
    my $at = sub ($message, $tag = $message->[2]) { ('If-Modified-Since' => $message->[1], 'If-None-Match' => $tag) };

    is $polled->($at->($messages[2])), 'same3 same4 same5 late1 late2', 'time and tag: everything behind that message';
    is $polled->($at->($messages[2], "W/$messages[2][2]")), 'same3 same4 same5 late1 late2', 'the tag as it was received';
    is $polled->('If-Modified-Since' => $time), 'late1 late2', 'a time alone: the messages of later seconds';
    is $polled->($at->($messages[2], 0)), 'same1 same2 same3 same4 same5 late1 late2', 'tag 0: everything of that second';
    is $polled->($at->($messages[2], 'nonsense')), 'late1 late2', 'a tag that is none is none';
    is $polled->($at->($messages[2], '"2"')), 'late1 late2', 'so is one in quotes';
    is $polled->($at->($messages[-1])), '', 'behind the newest there is nothing';
    is $polled->($at->($messages[5])), 'late1 late2', 'behind the last of a second the next second begins';
    is $polled->('If-None-Match' => 1), '', 'a tag without a time is no position';
    is $polled->('If-Modified-Since' => 'yesterday'), '', 'a time that is none is none';
    is $polled->('If-Modified-Since' => ''), '', 'so is an empty one';

    my @date = $time =~ /^(\w+), (\d+) (\w+) (\d+) (\S+) GMT$/;
    my %weekday = (Sun => 'Sunday', Mon => 'Monday', Tue => 'Tuesday', Wed => 'Wednesday', Thu => 'Thursday', Fri => 'Friday', Sat => 'Saturday');
    my %forms = (
        'RFC 850' => sprintf('%s, %s-%s-%02d %s GMT', $weekday{ $date[0] }, $date[1], $date[2], $date[3] % 100, $date[4]),
        'asctime' => sprintf('%s %s %2d %s %s', $date[0], $date[2], $date[1], $date[4], $date[3]),
    );
    is $polled->('If-Modified-Since' => $forms{$_}), 'late1 late2', "the time as in $_" for sort keys %forms;

    my $stream = $nginx->subscribe('/sub?id=a', $at->($messages[4]));
    is $names->($stream->text_until(qr/late2/)), 'same5 late1 late2', 'streaming goes on there too';
    my $events = $nginx->subscribe('/ev?id=a', $at->($messages[6]));
    is $events->event->{data}, 'late2', 'and EventSource';

    # Step by step through all of them, as a polling client does.
    my @read;
    my %position = ('If-Modified-Since' => $epoch);
    $nginx->post('/pub?id=b', "b$_") for 1 .. 3;
    for (1 .. 5) {
        my $answer = $nginx->get('/poll?id=a/b', %position);
        last if $answer->status == 304;
        push @read, split ' ', $names->($answer->body);
        %position = ('If-Modified-Since' => $answer->header('Last-Modified'), 'If-None-Match' => $answer->header('Etag'));
    }
    is "@read", 'early same1 same2 same3 same4 same5 late1 late2 b1 b2 b3', 'two channels: nothing twice, nothing missing';
};

done_testing;
