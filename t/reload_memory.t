# Reload after reload, with every directive set and complex values wherever one may be: the master takes no more memory than before, all
# processes as many descriptors and mappings, and the zone holds as much.
#
# TEST_RELOADS: how many; default 30 after the first ones.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Malloc;
use PushStream::Test;

only_over_plain_http1 'nothing of it depends on the transport';
plan skip_all => 'a sanitizer has an allocator of its own' if $ENV{TEST_SANITIZER};

use File::Temp ();

my $reloads = $ENV{TEST_RELOADS} || 30;

my $header = File::Temp->new(TEMPLATE => 'push-stream-test-XXXXXX', TMPDIR => 1);
print {$header} "head\n";
my ($keys, $revoked) = map { File::Temp->new(TEMPLATE => 'push-stream-test-XXXXXX', TMPDIR => 1) } 1, 2;
print {$keys} '{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}';
print {$revoked} "sub=42\n";
close $header;

my $locations = join '', map { <<"END" } 1 .. 10;
        location /more$_/ {
            push_stream_subscriber streaming;
            push_stream_channels_path prefix_\${mapped}$_/\$arg_id;
            push_stream_header_template "<html><!-- $_ \$host -->";
            push_stream_message_template "{\\"id\\":~id~,\\"channel\\":\\"~channel~\\",\\"text\\":\\"~text~\\",\\"number\\":$_}";
            push_stream_footer_template "</html>";
            push_stream_last_received_message_time \$arg_time;
            push_stream_last_received_message_tag \$arg_tag;
            push_stream_last_event_id \$arg_event_id;
            push_stream_user_agent "\$http_user_agent \$arg_agent";
            push_stream_padding_by_user_agent "[T|t]est $_,1024,508:[T|t]est,4097,0";
            push_stream_allowed_origins "\$http_origin";
        }
END
my $conf = <<"CONF";
%%MAIN%%
events { worker_connections 256; }
http {
    %%HTTP%%
    push_stream_shared_memory_size 1m;
    push_stream_channel_deleted_message_text "deleted";
    push_stream_channel_inactivity_time 5m;
    push_stream_ping_message_text "ping";
    push_stream_timeout_with_body on;
    push_stream_message_ttl 30m;
    push_stream_max_subscribers_per_channel 100;
    push_stream_max_subscribers_per_address 50;
    push_stream_max_messages_stored_per_channel 3;
    push_stream_max_channel_id_length 200;
    push_stream_max_number_of_channels 1000;
    push_stream_max_number_of_wildcard_channels 100;
    push_stream_wildcard_channel_prefix broad_;
    push_stream_events_channel_id events;
    push_stream_on_full evict;
    push_stream_handover on;
    push_stream_drain_time 0;
    push_stream_idempotent_window 1000;
    push_stream_auto_event_id on;
    map \$arg_mode \$mapped { default "\$arg_id"; short s; }

    server {
        listen 127.0.0.1:%%PORT%%;
        push_stream_channels_path \$arg_id;

        location /pub {
            push_stream_publisher admin;
            push_stream_admin_api on;
            push_stream_batch_publish on;
            push_stream_batch_max_lines 500;
            push_stream_batch_max_line 32k;
            push_stream_idempotent_publish on;
            push_stream_out_of_order refuse;
            push_stream_store_messages on;
            push_stream_channel_info_on_publish off;
        }
        location /sub {
            push_stream_subscriber;
            push_stream_wildcard_channel_max_qtd 3;
            push_stream_ping_message_interval 10s;
            push_stream_subscriber_connection_ttl 15m;
            push_stream_subscriber_queue 64k;
            push_stream_slow_reader skip;
            push_stream_dead_peer_timeout 30s;
            push_stream_compress zstd gzip;
            push_stream_compress_context group;
            push_stream_compress_level 5;
            push_stream_compress_min_length 100;
            push_stream_compress_groups 8;
            push_stream_log_disconnect %%DIR%%/disconnect.log;
            push_stream_header_template_file $header;
        }
        location /ev {
            push_stream_subscriber eventsource;
            push_stream_resume ordered;
            push_stream_gap_notice on;
            push_stream_eventsource_retry 3s;
            push_stream_authorized_channels_only on;
            push_stream_control on;
        }
        location /session { push_stream_session_control; }
        location /token {
            push_stream_subscriber eventsource;
            push_stream_token required;
            push_stream_token_from bearer cookie=token query=token "\$http_x_token";
            push_stream_token_keys $keys issuer=https://a.example algorithms=EdDSA;
            push_stream_token_keys $keys;
            push_stream_token_audience a b;
            push_stream_token_leeway 5s;
            push_stream_token_ticket 30s;
            push_stream_token_claims mercure;
            push_stream_token_revoked $revoked;
            push_stream_allowed_origins "https://a.example https://b.example";
            push_stream_cors_credentials on;
            push_stream_refuse_softly on;
        }
        location /lp { push_stream_subscriber long-polling; push_stream_longpolling_connection_ttl 30s; }
        location /ws {
            push_stream_subscriber websocket;
            push_stream_websocket_allow_publish on;
            push_stream_websocket_max_message_size 64k;
            push_stream_detach off;
            push_stream_detach_tls on;
        }
        location /status { push_stream_channels_statistics; }
        location /metrics {
            push_stream_channels_statistics;
            push_stream_statistics_format prometheus;
            push_stream_statistics_channels 10;
        }
        location /console { push_stream_console; push_stream_console_worker a /a; push_stream_console_node b /b; }
$locations
    }
}
CONF

# Descriptors and mappings of all processes of this nginx, and bytes of the zone.
sub usage ($nginx) {
    my %usage = (descriptors => 0, mappings => 0);
    ($usage{'bytes of the zone'}) = $nginx->get('/metrics')->body =~ /^push_stream_zone_bytes\{state="used"\} (\d+)/m;
    for my $pid ($nginx->master, $nginx->worker_pids(leaving => 1)) {
        $usage{descriptors} += () = glob "/proc/$pid/fd/*";
        $usage{mappings} += () = PushStream::Nginx::_slurp("/proc/$pid/maps") =~ /\n/g;
    }
    return \%usage;
}

# At each fork, that is when the new configuration is in use and the one before is not gone yet.
my $malloc = PushStream::Malloc->new;
my %environment = $malloc->environment;
local @ENV{ keys %environment } = values %environment;
with_nginx $conf, sub ($nginx) {
    my $published = 0;
    my $reload = sub {
        $published++ if $nginx->post('/pub?id=a', 'x')->status == 200;
        # Who waits is answered when the worker leaves.
        my $wait = $nginx->open(GET => '/lp?id=b');
        wait_until { ($nginx->figures('b')->{subscribers} // 0) == 1 } or die 'nobody waits';
        $nginx->reload;
        return $malloc->at_fork;
    };
    $reload->() for 1 .. 5;
    my ($in_use, $before) = ($reload->(), usage($nginx));
    my @later = map { $reload->() } 1 .. $reloads;
    is $published, 6 + $reloads, 'each configuration works';
    for my $what (sort keys %$before) {
        ok wait_until { usage($nginx)->{$what} <= $before->{$what} }, "$reloads reloads leave no more $what than there were";
    }
    cmp_ok $in_use, '>', 100_000, 'the master has its configuration in memory';
    # nginx itself forgets 80 bytes at each reload of a configuration with regular expressions, be they one or many.
    my $grown = $later[-1] - $in_use;
    cmp_ok abs $grown, '<', 120 * $reloads, "and no more after that: $grown bytes";
};

done_testing;
