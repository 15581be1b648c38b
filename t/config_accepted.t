# What `nginx -t` accepts although one could wonder, and what it says about it.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;

sub conf ($http, $server = '') {
    return <<"CONF";
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_channels_path \$arg_id;
    $http
    server {
        listen 127.0.0.1:%%PORT%%;
        $server
    }
}
CONF
}

my $ZONE = 'push_stream_shared_memory_size 1m;';
my $UNUSED = 'ngx_http_push_stream_module will not be used with this configuration.';

like accepts("%%MAIN%%\nevents {}\n", 'the module loaded, and no http block at all'), qr/^((?!\[e).)*$/s, 'no complaint';
like accepts(conf('', 'location / { return 204; }'), 'no role anywhere'), qr/\Q$UNUSED\E/, 'it says that it is not used';
like accepts(conf($ZONE), 'a zone that nobody uses'), qr/\Q$UNUSED\E/, 'it says so too';

my $said = accepts(conf($ZONE, 'location / { push_stream_publisher; }'), 'a role');
unlike $said, qr/\Q$UNUSED\E/, 'it is used';
like $said, qr/Using 1024KiB of shared memory for push stream module on zone: push_stream_module/, 'size and name of the zone';

accepts conf('push_stream_shared_memory_size 125k;', 'location / { push_stream_publisher; }'),
    'a size that is 128 KiB when rounded up to whole pages';
accepts conf('push_stream_shared_memory_size 1m one; push_stream_shared_memory_size 2m two;', 'location / { push_stream_publisher; }'),
    'two zones with different names: the last one counts';

subtest 'modes' => sub {
    for my $mode ('', qw(streaming polling long-polling eventsource STREAMING Long-Polling "polling")) {
        accepts conf($ZONE, "location / { push_stream_subscriber $mode; }"), "push_stream_subscriber $mode";
    }
    for my $mode ('', qw(normal admin Admin "normal")) {
        accepts conf($ZONE, "location / { push_stream_publisher $mode; }"), "push_stream_publisher $mode";
    }
};

subtest 'statistics never are a duplicate' => sub {
    accepts conf($ZONE, 'location / { push_stream_channels_statistics; push_stream_channels_statistics; }'), 'twice';
    accepts conf($ZONE, 'location / { push_stream_publisher; push_stream_channels_statistics; }'), 'after another role';
};

subtest 'values' => sub {
    accepts conf("$ZONE $_", 'location / { push_stream_subscriber; }'), $_ for (
        'push_stream_channel_inactivity_time 0;',
        'push_stream_message_ttl "50m";',
        'push_stream_ping_message_interval 500ms;',
        'push_stream_subscriber_connection_ttl 1s500ms;',
        'push_stream_longpolling_connection_ttl 100ms;',
        'push_stream_dead_peer_timeout 90s;',
        'push_stream_dead_peer_timeout 0;',
        'push_stream_ping_message_text "";',
        'push_stream_header_template "";',
        'push_stream_footer_template "";',
        'push_stream_padding_by_user_agent "";',
        'push_stream_padding_by_user_agent "[T|t]est 1,1024,508:[T|t]est 2,4097,0:";',
        'push_stream_on_full refuse;',
        'push_stream_on_full evict;',
    );
};

done_testing;
