# The client's names of old (clients/js/src/pushstream.js), beside what t/browser_four_modes.t does with it: which mode is taken, what
# comes in the templates of today, refusals, and channels that come and go.

use v5.36;
use utf8;
use FindBin;
use lib "$FindBin::Bin/lib", "$FindBin::Bin/browser";
use PushStream::Test;

use File::Copy qw(copy);
use WebDriver;

only_over_plain_http1 'the browser would have to be told of the certificate';
$ENV{TEST_WORKERS} //= '2';
my $shim = "$FindBin::Bin/../clients/js/dist/pushstream.js";
die "clients/js is not built: scripts/test --only client\n" if !-e $shim;

binmode Test::More->builder->$_, ':utf8' for qw(output failure_output todo_output);

my $conf = <<'CONF';
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_shared_memory_size 8m;
    push_stream_message_template '{"id":~id~,"channel":"~channel:json~","text":"~text:json~","tag":"~tag~","time":"~time~","eventid":"~event-id:json~"}';
    push_stream_channels_path $path;
    push_stream_longpolling_connection_ttl 1s;
    push_stream_last_received_message_time $http_if_modified_since;
    push_stream_last_received_message_tag $http_if_none_match;
    client_header_timeout 1s;
    map $uri $path { default $arg_id; ~^/[a-z]+/(.+)$ $1; }

    server {
        listen 127.0.0.1:%%PORT%%;
        location = /page { default_type text/html; return 200 '<!doctype html><meta charset="utf-8"><title>page</title><script src="/pushstream.js"></script>'; }
        location = /pushstream.js { root %%DIR%%; }
        location = /pub { push_stream_publisher admin; push_stream_store_messages on; }
        location /lp/ { push_stream_subscriber long-polling; }
        location /guarded/ { push_stream_subscriber eventsource; push_stream_authorized_channels_only on; }
        location = /status { push_stream_channels_statistics; }
    }
}
CONF

my $browser = WebDriver->new(flags => ['--disable-features=BackForwardCache']);

with_nginx $conf, sub ($nginx) {
    copy($shim, $nginx->dir . '/pushstream.js') or die;
    $browser->open_url('http://127.0.0.1:' . $nginx->port . '/page');
    # Starts a client; what it tells is in `log`.
    my $start = sub ($settings, %channels) {
        $browser->js('
            window.client?.disconnect();
            window.log = { message: [], statuschange: [], error: [], channeldeleted: [], warned: [] };
            console.warn = (text) => log.warned.push(text);
            window.client = new PushStream({ reconnectOnTimeoutInterval: 20, ...arguments[0] });
            for (const name of ["message", "statuschange", "error", "channeldeleted"]) client[`on${name}`] = (...values) => log[name].push(values);
            for (const [name, backtrack] of Object.entries(arguments[1])) client.addChannel(name, { backtrack });
            client.connect();', $settings, \%channels);
    };
    my $log = sub ($name) { $browser->js('return log[arguments[0]]', $name) };
    my $listening = sub ($channel) { eval { $nginx->figures($channel)->{subscribers} } // 0 };
    my $shows = sub ($what, @expected) {
        my $got = sub { [ map { "$_->[2]:$_->[0]" } @{ $log->('message') } ] };
        wait_until { @{ $got->() } >= @expected } 20;
        is_deeply $got->(), \@expected, $what;
    };

    subtest 'the first mode that works' => sub {
        $start->({}, a => 0);
        ok wait_until(sub { $listening->('a') == 1 }, 30), 'connected';
        ok wait_until(sub { $log->('statuschange')->[-1][0] == 2 }, 10), 'and says so';
        is_deeply $log->('statuschange'), [ [1], [2] ], 'connecting until then';
        is_deeply [ map { $_->[0]{type} } @{ $log->('error') } ], [ ('load') x 3 ], 'WebSocket, EventSource and stream have no locations';
        $nginx->post('/pub?id=a', 'one');
        $shows->('long polling', 'a:one');
    };

    subtest 'texts that are not encoded, and several in one answer' => sub {
        $nginx->post("/pub?id=b$_->[0]", $_->[1]) for [ 1, 'a "}{" b' ], [ 1, '100 %' ], [ 2, "line\nline\\" ], [ 2, 'encoded %7B%22%C3%BC' ];
        $start->({ modes => 'longpolling' }, b1 => 5, b2 => 5);
        $shows->('each by itself', 'b1:a "}{" b', 'b1:100 %', "b2:line\nline\\", "b2:encoded {\"ü");
        $nginx->post('/pub?id=b1/b2', 'both');
        $shows->('what is stored comes once', 'b1:a "}{" b', 'b1:100 %', "b2:line\nline\\", "b2:encoded {\"ü", 'b1:both', 'b2:both');
        is_deeply $log->('error'), [], 'without an error';
    };

    subtest 'channels come and go' => sub {
        $start->({ modes => 'longpolling', no_such_option => 1 }, c => 0);
        is_deeply $log->('warned'), ['PushStream: the option no_such_option is not known here'], 'an unknown option is told of';
        ok wait_until(sub { $listening->('c') == 1 }, 20), 'connected';
        $nginx->post('/pub?id=c', 'first');
        $shows->('a message', 'c:first');
        $browser->js('client.addChannel("d")');
        ok wait_until(sub { $listening->('d') == 1 }, 20), 'another channel';
        $nginx->post("/pub?id=$_", 'second') for 'c', 'd';
        $shows->('both', 'c:first', 'c:second', 'd:second');
        $nginx->delete('/pub?id=d');
        ok wait_until(sub { @{ $log->('channeldeleted') } }, 10), 'told of a deleted channel';
        is_deeply $log->('channeldeleted'), [ ['d'] ], 'with its name';
        $browser->js('client.removeChannel("d")');
        $browser->js('client.disconnect()');
        is $browser->js('return client.readyState'), 0, 'closed';
        is_deeply $log->('statuschange')->[-1], [0], 'and says so';
        ok wait_until(sub { $listening->('c') == 0 }, 20), 'the server sees it';
        $nginx->post('/pub?id=c', 'while it was away');
        $browser->js('client.connect()');
        $shows->('goes on where it was', 'c:first', 'c:second', 'd:second', 'c:while it was away');
        $browser->js('client.sendMessage("from the page: ü }{")');
        $shows->('publishes', 'c:first', 'c:second', 'd:second', 'c:while it was away', "c:from the page: ü }{");
    };

    subtest 'a channel that is not there' => sub {
        $start->({ modes => 'longpolling', urlPrefixLongpolling => '/guarded', reconnectOnChannelUnavailableInterval => 50 }, e => 0);
        ok wait_until(sub { @{ $log->('error') } >= 2 }, 20), 'refused, and asked for again';
        is_deeply $log->('error')->[0], [ { type => 'load', status => 403 } ], 'by the server';
        $nginx->post('/pub?id=e', 'begun');
        ok wait_until(sub { $listening->('e') == 1 }, 20), 'it comes in when there is something';
    };

    subtest 'mistakes' => sub {
        my $error = sub ($script) { $browser->js("try { $script } catch (error) { return error.message }") };
        is $error->('new PushStream({ modes: "carrier pigeon" })'), 'PushStream: none of the modes carrier pigeon can be used', 'no mode';
        is $error->('new PushStream().connect()'), 'PushStream: no channel was added', 'no channel';
        $browser->open_url('about:blank');
    };
};

done_testing;
