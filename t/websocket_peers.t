# WebSocket clients that others wrote, as they are used: Python's `websockets` and Node's `ws`. (A browser is in
# browser_four_modes.t.)

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;

only_over_plain_http1 'these clients would have to be told of the certificate';

# Debian keeps its packages for both where only Debian's own interpreters look by themselves.
my %peer = (
    'websockets (Python)' => [ '/usr/bin/python3', "$FindBin::Bin/peers/python_websockets.py" ],
    'ws (Node)' => [ 'node', "$FindBin::Bin/peers/node_ws.js" ],
);
local $ENV{NODE_PATH} = '/usr/share/nodejs';
local $ENV{PYTHONIOENCODING} = 'utf-8';

# Both offer to compress, which is taken up only where the location says so.
my %extensions = (
    '' => { 'websockets (Python)' => qr/^\[\]$/, 'ws (Node)' => qr/^""$/ },
    '/deflate' => { 'websockets (Python)' => qr/permessage-deflate|PerMessageDeflate/i, 'ws (Node)' => qr/permessage-deflate/ },
);

my $locations = join '', map { <<"CONF" =~ s/^/        /mgr } '', '/deflate';
location $_/echo { push_stream_subscriber websocket; push_stream_websocket_allow_publish on; push_stream_websocket_binary on; }
location $_/pinged { push_stream_subscriber websocket; push_stream_ping_message_interval 200ms; }
location $_/known { push_stream_subscriber websocket; push_stream_authorized_channels_only on; }
location $_/ended { push_stream_subscriber websocket; push_stream_subscriber_connection_ttl 200ms; push_stream_footer_template "bye"; }
CONF
$locations =~ s/(location .deflate\/\S+ \{)/$1 push_stream_websocket_deflate on;/g;

with_nginx <<"CONF", sub ($nginx) {
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_shared_memory_size 64m;
    push_stream_channels_path \$arg_id;
    push_stream_websocket_strict on;
    push_stream_subscriber_queue 64m;

    server {
        listen 127.0.0.1:%%PORT%%;

$locations        location /status { push_stream_channels_statistics; }
    }
}
CONF
    for my $case (map { my $prefix = $_; map { [ $_, $prefix ] } sort keys %peer } '', '/deflate') {
        my ($peer, $prefix) = @$case;
        my ($program, $script) = @{ $peer{$peer} };
        my $name = $peer . ($prefix && ' with permessage-deflate');
        open my $out, '-|', 'timeout', 60, $program, $script, 'ws://127.0.0.1:' . $nginx->port . $prefix or die;
        my @lines = map { s/\s+\z//r } <$out>;
        close $out;
        is $?, 0, "$name: all went well";
        like shift(@lines) =~ s/^extensions //r, $extensions{$prefix}{$peer}, "$name: what it agreed on";
        is_deeply [ map { s/\b(?:True|true)$/yes/r } @lines ], [
            map({ "text $_ yes" } 5, 12, 125, 126, 65536, 1_000_000),
            map({ "binary $_ yes" } 1, 126, 65536, 3_000_000),
            'fragments in three fragments',
            map({ "pong $_" } 0, 7, 125),
            'burst yes',
            'closed 4321',
            'stays yes',
            'refused 1008 {"http_status": 403, "explain":"Subscriber could not create channels."}',
            'footer bye',
            'ended 1005',
        ], "$name: what it saw";
        ok wait_until { $nginx->figures->{subscribers} == 0 }, "$name: gone without a trace";
    }
};

done_testing;
