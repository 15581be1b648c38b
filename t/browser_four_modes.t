# Pages written for the C module keep working: each of the modes that their JavaScript clients speak, in a real browser.

use v5.36;
use utf8;
use Cwd qw(abs_path);
use File::Basename qw(dirname);
use File::Copy qw(copy);
use FindBin;
use lib "$FindBin::Bin/lib", "$FindBin::Bin/browser";
use PushStream::Test;
use WebDriver;

only_over_plain_http1 'the browser would have to be told of the certificate';

binmode Test::More->builder->$_, ':utf8' for qw(output failure_output todo_output);

my $conf = <<'CONF';
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_shared_memory_size 8m;
    push_stream_max_messages_stored_per_channel 100;
    push_stream_message_template '{"id":~id~,"channel":"~channel~","text":"~text~","tag":"~tag~","time":"~time~","eventid":"~event-id~"}';
    push_stream_ping_message_interval 1s;
    push_stream_allowed_origins "*";

    server {
        listen 127.0.0.1:%%PORT%%;
        # Browsers connect ahead of their requests, and a worker that leaves waits for those.
        client_header_timeout 1s;
        root %%DIR%%/html;

        location /pub {
            push_stream_publisher admin;
            push_stream_channels_path $arg_id;
            push_stream_store_messages on;
        }
        location /status {
            push_stream_channels_statistics;
            push_stream_channels_path $arg_id;
        }

        # Says where it is in headers, the others do in arguments.
        location ~ ^/lp/(.*) {
            push_stream_subscriber long-polling;
            push_stream_channels_path $1;
            push_stream_longpolling_connection_ttl 2s;
            push_stream_last_received_message_time $http_if_modified_since;
            push_stream_last_received_message_tag $http_if_none_match;
        }

        push_stream_last_received_message_time $arg_time;
        push_stream_last_received_message_tag $arg_tag;
        push_stream_last_event_id $arg_eventid;

        location ~ ^/sub/(.*) {
            push_stream_subscriber;
            push_stream_channels_path $1;
            default_type text/html;
            push_stream_header_template '<!doctype html><meta charset="utf-8"><script>parent.PushStream.register(this);</script>';
            push_stream_message_template "<script>p(~id~,'~channel~','~text~','~event-id~','~time~','~tag~');</script>";
            push_stream_footer_template "</html>";
        }
        location ~ ^/ev/(.*) {
            push_stream_subscriber eventsource;
            push_stream_channels_path $1;
        }
        location ~ ^/ws/(.*) {
            push_stream_subscriber websocket;
            push_stream_channels_path $1;
            push_stream_websocket_allow_publish on;
            push_stream_store_messages on;
        }
        location ~ ^/lparg/(.*) {
            push_stream_subscriber long-polling;
            push_stream_channels_path $1;
            push_stream_longpolling_connection_ttl 2s;
        }
    }
}
CONF
# A page that is kept to go back to keeps its connections.
my $browser = WebDriver->new(flags => ['--disable-features=BackForwardCache']);

with_nginx $conf, sub ($nginx) {
    copy("$FindBin::Bin/browser/classic.html", $nginx->dir . "/html/$_.html") or die for qw(page);
    my $port = $nginx->port;

    for my $mode (qw(stream eventsource websocket longpolling jsonp)) {
        subtest $mode => sub {
            $nginx->delete('/pub?id=ch1/ch2') if $nginx->figures->{channels};
            my $sent = 0;
            my @expected;
            my $publish = sub ($channel, $text, $from = undef) {
                $sent++;
                my $bytes = $text =~ s/([^A-Za-z0-9])/join '', map { sprintf '%%%02X', ord } split m{}, do { my $c = $1; utf8::encode($c); $c }/ger;
                $nginx->post("/pub?id=$channel", $bytes, 'Event-Id' => "$mode-$sent");
                push @expected, [ $channel, $text ];
            };
            my $received = sub { [ map { [ @$_[ 0, 2 ] ] } @{ $browser->js('return received') } ] };
            my $shows = sub ($name) {
                ok wait_until(sub { @{ $received->() } >= @expected }, 15), "$name: everything has arrived";
                # A poll that finds several messages gets them channel by channel.
                for my $channel ('ch1', 'ch2') {
                    my ($got, $wanted) = map { [ map { $_->[1] } grep { $_->[0] eq $channel } @$_ ] } $received->(), \@expected;
                    is_deeply $got, $wanted, "$name: once, in order, $channel";
                }
            };

            $publish->('ch1', "old $_") for 1 .. 3;
            shift @expected;
            # JSONP is for pages of another origin.
            my ($page, $other) = $mode eq 'jsonp' ? ('localhost', "&other=http://127.0.0.1:$port") : ('127.0.0.1', '');
            $browser->open_url("http://$page:$port/page.html?mode=$mode$other");
            ok wait_until(sub { $nginx->figures->{subscribers} == 1 }, 15), 'the page is connected';
            $shows->('the last two of what was stored');

            $publish->('ch1', 'one');
            $publish->('ch2', 'two');
            $publish->('ch1', q(quotes " ' and a back\\slash, <b>markup</b> & more));
            $publish->('ch2', "ümläute, 漢字, \x{1f600}");
            $shows->('live messages');

            $browser->js('publish("ch1", arguments[0])', 'from the page: é');
            # A page publishes to "/ch1": the channel without a name, and ch1. Over its WebSocket, to the channels of that.
            push @expected, $mode eq 'websocket' ? ([ 'ch1', 'from the page: é' ], [ 'ch2', 'from the page: é' ]) : [ 'ch1', 'from the page: é' ];
            $shows->('the page publishes itself');

            # Elsewhere a ping is nothing that a page could see, or there is none.
            ok wait_until(sub { $browser->js('return pings') > 0 }, 10), 'pings arrive, and are no messages' if $mode eq 'stream';

            # Its connection ends, it goes on where it was. A poll that is ended so is told to go on at the beginning of the second.
            sleep 1.01 - (time - int time) if $mode eq 'longpolling' || $mode eq 'jsonp';
            my $before = $browser->js('return opened');
            $nginx->reload;
            $publish->('ch1', "while it was away $_") for 1 .. 3;
            $shows->('after a reload');
            cmp_ok $browser->js('return opened'), '>', $before, 'it has come again';
            $publish->('ch2', 'and goes on');
            $shows->('after that');

            $nginx->delete('/pub?id=ch2');
            ok wait_until(sub { "@{ $browser->js('return deleted') }" eq 'ch2' }, 10), 'it is told of a deleted channel';
            $browser->open_url('about:blank');
            ok wait_until(sub { $nginx->figures->{subscribers} == 0 }, 15), 'a page that is left is gone';
        };
    }
};

done_testing;
