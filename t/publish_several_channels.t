# One request publishes to all the channels that its path names.

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
    push_stream_message_template "~channel~ ~id~ ~tag~ ~text~";

    server {
        listen 127.0.0.1:%%PORT%%;

        location /pub { push_stream_publisher; }
        location /sub { push_stream_subscriber; }
    }
}
CONF
    $nginx->post('/pub?id=b', 'earlier');
    my %stream = map { $_ => $nginx->subscribe("/sub?id=$_") } qw(a b c);

    my $answer = $nginx->post('/pub?id=a/b/c', 'hello');
    is $answer->status, 200, 'published to three channels';
    my $group = $answer->json;
    is_deeply [ map { $_->{channel} } @{ $group->{infos} } ], [qw(a b c)], 'the answer lists them in the order of the path';
    is_deeply [ map { $_->{published_messages} } @{ $group->{infos} } ], [ 1, 2, 1 ], 'each counts its own messages';
    is $group->{channels}, 3, 'with the figures of the zone';
    my %tag;
    for my $id (qw(a b c)) {
        like my $chunk = $stream{$id}->chunk, qr/^$id @{[ $id eq 'b' ? 2 : 1 ]} \d+ hello$/, "$id got it, once";
        ($tag{$id}) = $chunk =~ /^\S+ \S+ (\d+)/;
    }
    is "$tag{b} $tag{c}", join(' ', $tag{a} + 1, $tag{a} + 2), 'each with a tag of its own, in order';

    my $twice = $nginx->post('/pub?id=a/a', 'again');
    is_deeply [ map { "$_->{channel} $_->{published_messages}" } @{ $twice->json->{infos} } ], [ 'a 3', 'a 3' ],
        'a channel named twice gets it twice';
    like $stream{a}->text_until(qr/a 3 \d+ again$/), qr/^a 2 \d+ againa 3 \d+ again$/, 'its subscriber reads it twice';

    is $nginx->post('/pub?id=a.b5', 'x')->json->{channel}, 'a', 'a backtrack means nothing to a publisher';
    is $nginx->post('/pub?id=a/', 'x')->json->{channel}, 'a', 'neither does a slash at the end';

    my $leading = $nginx->post('/pub?id=/a', 'x')->json;
    is_deeply [ map { $_->{channel} } @{ $leading->{infos} } ], [ '', 'a' ],
        'a slash at the start names the channel with the empty id';

    my $both = $nginx->subscribe('/sub?id=a/b/c');
    $nginx->post('/pub?id=c/a', 'one');
    like $both->text_until(qr/one.*one/s), qr/^(?:c 2 \d+ onea 7 \d+ one|a 7 \d+ onec 2 \d+ one)$/,
        'a subscriber of several channels gets each of them once';

    my $before = $nginx->get('/pub?id=a')->json->{published_messages};
    is $nginx->post('/pub?id=a/new/ALL', 'x')->status, 403, 'one forbidden channel forbids the whole publish';
    is $nginx->get('/pub?id=new')->status, 404, 'no channel was created';
    is $nginx->get('/pub?id=a')->json->{published_messages}, $before, 'and nothing published';
};

done_testing;
