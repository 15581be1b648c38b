# EventSource: whatever the templates look like, each message is one event, whole, and nothing of what is configured runs into it.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;

my %templates = (
    json => q('{\n "id":~id~,\n "text":"~text~"\n}'),
    two => q("<b>\n~text~"),
    ended => q("~text~\n\n"),
    own => q("data: ~text~"),
    own_ended => q("data: ~text~\n\n"),
    own_cr => q("data: ~text~\r"),
    typed => q("data: ~text~\nevent: note"),
);
my $locations = join "\n", map { "location = /$_ { push_stream_subscriber eventsource; push_stream_message_template $templates{$_}; }" } sort keys %templates;

with_nginx <<'CONF' =~ s/%%LOCATIONS%%/$locations/r, sub ($nginx) {
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_shared_memory_size 4m;
    push_stream_channels_path $arg_id;
    push_stream_store_messages on;
    push_stream_channel_deleted_message_text "gone\nfor good";

    server {
        listen 127.0.0.1:%%PORT%%;
        location = /pub { push_stream_publisher admin; }
        location = /plain { push_stream_subscriber; push_stream_message_template '{\n "text":"~text~"\n}'; }
        location = /header { push_stream_subscriber eventsource; push_stream_header_template ": no line end"; }
        location = /event { push_stream_subscriber eventsource; push_stream_header_template ": a\nevent: hello\ndata: you"; push_stream_footer_template ": b\nevent: bye\ndata: you"; }
        %%LOCATIONS%%
    }
}
CONF
    my %readers = map { $_ => $nginx->subscribe("/$_?id=a") } qw(plain header event), sort keys %templates;
    $nginx->post('/pub?id=a', 'one');
    $nginx->post('/pub?id=a', "l1\nl2");

    my $event = sub ($name) {
        my $event = $readers{$name}->event;
        delete $event->{comments};
        return $event;
    };
    my %events = (
        json => [ qq({\n "id":1,\n "text":"one"\n}), qq({\n "id":2,\n "text":"l1"\n}\n{\n "id":2,\n "text":"l2"\n}) ],
        two => [ "<b>\none", "<b>\nl1\n<b>\nl2" ],
    );
    for my $name (sort keys %templates) {
        my $wanted = $events{$name} // [ 'one', "l1\nl2" ];
        my @type = $name eq 'typed' ? (event => 'note') : ();
        is_deeply $event->($name), { data => $_, @type }, "$name: one event" for @$wanted;
    }
    is_deeply $event->('header'), { data => 'one' }, 'a comment without its line end does not swallow the first message';
    is_deeply $event->('event'), { event => 'hello', data => 'you' }, 'an event in the header is one of its own';
    is_deeply $event->('event'), { data => 'one' }, 'and the first message another';
    is_deeply $event->('event'), { data => "l1\nl2" }, 'and the second';
    like $readers{plain}->text_until(qr/l2"\n}/), qr/^\{\n "text":"one"\n\}\{\n "text":"l1\nl2"\n\}$/, 'streaming has the template as it is';

    is $nginx->delete('/pub?id=a')->status, 200, 'the channel ends';
    is_deeply $event->('json'), { data => qq({\n "id":-2,\n "text":"gone"\n}\n{\n "id":-2,\n "text":"for good"\n}) }, 'its notice is one event, too';
    is_deeply $event->('event'), { data => "gone\nfor good" }, 'everywhere';
    is_deeply $event->('event'), { event => 'bye', data => 'you' }, 'an event in the footer is whole';
    is $nginx->get('/json?id=b', 'X-Nginx-PushStream-Mode' => 'polling')->status, 304, 'nothing of it in a poll';
};

done_testing;
