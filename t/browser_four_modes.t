# Pages written for the C module keep working: each of the modes that their JavaScript clients speak, in a real browser.
#
# One page speaks the protocol by itself, the other through pushstream.js: the script of that name of clients/js, and the C module's own
# client, as npm has it. That needs npm and its registry; where they are missing it is not tried.

use v5.36;
use utf8;
use Cwd qw(abs_path);
use File::Basename qw(dirname);
use Digest::SHA;
use File::Copy qw(copy);
use File::Path qw(make_path);
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
    push_stream_handover off;
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
            # The original client sets document.domain, and then the frame has to, too.
            push_stream_header_template '<!doctype html><meta charset="utf-8"><script>try { parent.PushStream } catch { document.domain = location.hostname } parent.PushStream.register(this);</script>';
            push_stream_message_template "<script>p(~id~,'~channel~','~text~','~event-id~','~time~','~tag~');</script>";
            push_stream_footer_template "</html>";
        }
        location ~ ^/ev/(.*) {
            push_stream_subscriber eventsource;
            push_stream_channels_path $1;
        }
        # Where the browser itself comes again, it says the last id that it got, which must do for both channels.
        location ~ ^/native/(.*) {
            push_stream_subscriber eventsource;
            push_stream_channels_path $1;
            push_stream_last_event_id $http_last_event_id;
            push_stream_resume ordered;
        }
        location = /native/pub {
            push_stream_publisher;
            push_stream_channels_path $arg_id;
            push_stream_store_messages on;
            push_stream_auto_event_id on;
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
# The original client, fetched once; undef where that cannot be.
my $pushstream_js = do {
    my $directory = abs_path("$FindBin::Bin/../target") . '/npm';
    my $package = 'pushstreamjs@0.5.4';
    my $sha256 = '7cad9a61b6b5003dfc0df868db156a1a8370754907b3c22daabaa1a6f26e450f';
    my $file = "$directory/pushstreamjs/src/pushstream.js";
    if (!-e $file) {
        make_path("$directory/pushstreamjs");
        system("cd $directory && npm pack --silent $package >/dev/null 2>&1 && tar xzf pushstreamjs-0.5.4.tgz -C pushstreamjs --strip-components=1");
    }
    if (-e $file) {
        is Digest::SHA->new(256)->addfile($file)->hexdigest, $sha256, 'pushstream.js is the one that is known';
    }
    else {
        diag "npm does not bring $package: the original client is not tried";
    }
    -e $file ? $file : undef;
};

# The one of clients/js, which such a page gets from its own directory.
my $shim = "$FindBin::Bin/../clients/js/dist/pushstream.js";
die 'clients/js is not built: scripts/test --only client' if !-e $shim;

# A page that is kept to go back to keeps its connections.
my $browser = WebDriver->new(flags => ['--disable-features=BackForwardCache']);

with_nginx $conf, sub ($nginx) {
    my $port = $nginx->port;
    my $html = $nginx->dir . '/html';
    copy("$FindBin::Bin/browser/$_.html", "$html/$_.html") or die for qw(classic pushstream);
    copy($pushstream_js, "$html/pushstream.js") or die if $pushstream_js;
    mkdir "$html/shim" or die $!;
    copy(@$_) or die for [ "$html/pushstream.html", "$html/shim" ], [ $shim, "$html/shim" ];

    for my $case (map { my $client = $_; map { [ $client, $_ ] } qw(stream eventsource websocket longpolling jsonp) } 'classic', 'shim/pushstream', $pushstream_js ? 'pushstream' : ()) {
        my ($client, $mode) = @$case;
        my $is_pushstream = $client ne 'classic';
        subtest "$client.html, $mode" => sub {
            $nginx->delete('/pub?id=ch1/ch2') if $nginx->figures->{channels};
            my $sent = 0;
            my @expected;
            my $publish = sub ($channel, $text) {
                $sent++;
                my $bytes = $text =~ s/([^A-Za-z0-9])/join '', map { sprintf '%%%02X', ord } split m{}, do { my $c = $1; utf8::encode($c); $c }/ger;
                my $id = !($is_pushstream && $mode eq 'eventsource') && "$mode-$sent";
                $nginx->post($id ? "/pub?id=$channel" : "/native/pub?id=$channel", $bytes, $id ? ('Event-Id' => $id) : ());
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
            # Who says where it is in headers would get what it asks back to again and again: pushstream.js leaves its URL as it is.
            splice @expected, 0, $is_pushstream && $mode =~ /longpolling|eventsource/ ? 3 : 1;
            # JSONP is for pages of another origin.
            my ($page, $other) = $mode eq 'jsonp' ? ('localhost', "&other=http://127.0.0.1:$port") : ('127.0.0.1', '');
            $browser->open_url("http://$page:$port/$client.html?mode=$mode$other");
            ok wait_until(sub { $nginx->figures->{subscribers} == 1 }, 15), 'the page is connected';
            $shows->('what was asked for of what was stored');

            for my $message ([ ch1 => 'one' ], [ ch2 => 'two' ], [ ch1 => q(quotes " ' and a back\\slash, <b>markup</b> & more) ], [ ch2 => "ümläute, 漢字, \x{1f600}" ]) {
                $publish->(@$message);
                # Who goes on behind the last one of an answer gets again what is newer in a channel that comes first.
                $shows->("live: $message->[1]") if $mode eq 'jsonp';
            }
            $shows->('live messages');

            $browser->js('publish("ch1", arguments[0])', 'from the page: é');
            # A page publishes to "/ch1": the channel without a name, and ch1. Over its WebSocket, to the channels of that. The original
            # client always publishes to all of its channels.
            push @expected, $is_pushstream || $mode eq 'websocket' ? ([ 'ch1', 'from the page: é' ], [ 'ch2', 'from the page: é' ]) : [ 'ch1', 'from the page: é' ];
            $shows->('the page publishes itself');

            # Elsewhere a ping is nothing that a page could see, or there is none.
            ok wait_until(sub { $browser->js('return pings') > 0 }, 10), 'pings arrive, and are no messages' if $mode eq 'stream' && $client eq 'classic';

            # Its connection ends, it goes on where it was. A poll that is ended so is told to go on at the beginning of the second.
            sleep 1.01 - (time - int time) if $mode eq 'longpolling' || $mode eq 'jsonp';
            my $before = $browser->js('return opened');
            $nginx->reload;
            $publish->('ch1', "while it was away $_") for 1 .. 3;
            $shows->('after a reload');
            # The C module's leaves that to the browser's EventSource, and to both polls are one connection.
            my $unseen = { classic => qr/^$/, pushstream => qr/longpolling|eventsource|jsonp/, 'shim/pushstream' => qr/longpolling|jsonp/ }->{$client};
            cmp_ok $browser->js('return opened'), '>', $before, 'it has come again' if $mode !~ $unseen;
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
