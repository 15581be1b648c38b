# What nobody needs any more goes away by itself: messages past their ttl, idle channels, deleted ones.

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
    push_stream_message_ttl 2s;
    push_stream_channel_inactivity_time 5s;

    server {
        listen 127.0.0.1:%%PORT%%;

        location /pub { push_stream_publisher admin; }
        location /volatile { push_stream_publisher; push_stream_store_messages off; }
        location /sub { push_stream_subscriber; }
        location /poll { push_stream_subscriber polling; }
        location /status { push_stream_channels_statistics; }
    }
}
CONF
    my $zone = sub (@names) { my $figures = $nginx->figures; join ' ', map { $figures->{$_} } @names };
    my @trash = qw(messages_in_trash channels_in_delete channels_in_trash);
    my %all = ('If-Modified-Since' => 'Thu, 01 Jan 1970 00:00:00 GMT');

    my $start = time;
    my $kept = $nginx->subscribe('/sub?id=kept');
    $nginx->post('/pub?id=kept', $_) for 1 .. 3;
    $nginx->post('/pub?id=idle', 'x');
    $nginx->post('/pub?id=deleted', 'x');
    is $zone->('channels', 'published_messages', 'stored_messages', @trash), '3 5 5 0 0 0', 'five messages in three channels';
    is $nginx->get('/poll?id=kept', %all)->body, '123', 'can be read';

    $nginx->post('/volatile?id=kept', 'not stored');
    is $zone->('stored_messages', 'messages_in_trash'), '5 1', 'a message that is not stored is trash at once';

    $nginx->delete('/pub?id=deleted');
    is $zone->('channels', 'channels_in_delete', 'channels_in_trash'), '2 1 0', 'a deleted channel';
    ok wait_until(sub { $zone->(qw(channels_in_delete channels_in_trash)) eq '0 1' }, 5 - (time - $start)),
        'is in the trash at most five seconds later';

    ok wait_until(sub { $zone->('stored_messages') eq '0' }, 7 - (time - $start)), 'after their ttl messages are not stored any more';
    my $expired = time - $start;
    cmp_ok $expired, '>', 1.9, 'not before it';
    is $zone->('messages_in_trash'), 6, 'but trash: published is stored and trash together';
    is $nginx->get('/poll?id=kept', %all)->status, 304, 'and not to be read';

    ok wait_until(sub { $zone->('channels') eq '1' }, 13 - (time - $start)), 'an idle channel goes';
    cmp_ok time - $start, '>', 4.9, 'not before its time';
    is $zone->('channels_in_trash'), 2, 'to the trash too';
    is $nginx->get('/status?id=idle')->status, 404, 'and is not found';
    is $nginx->figures('kept')->{published_messages}, 4, 'a channel with subscribers stays';

    ok wait_until(sub { $zone->(@trash) eq '0 0 0' }, 30 - (time - $start)), 'in the end all of it is gone';
    my $gone = time - $start;
    cmp_ok $gone, '>', $expired + 9, 'the trash is kept for ten seconds';
    is $zone->(qw(channels published_messages)), '1 6', 'what was published stays counted';

    is $nginx->post('/pub?id=idle', 'again')->json->{published_messages}, 1, 'a channel that went starts again';
    is $nginx->post('/pub?id=kept', 'again')->json->{published_messages}, 5, 'one that stayed goes on';
    is $kept->text_until(qr/again/), '123not storedagain', 'its subscriber has got everything, once';
    $kept->close;
    ok wait_until(sub { $zone->('channels') eq '0' }, 14), 'without it the channel goes as well';
};

done_testing;
