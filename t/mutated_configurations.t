# Configurations that went wrong: every directive, with values that were changed, cut, doubled or taken from another one. `nginx -t`
# takes them or says what is wrong and where; and what it takes also runs.
#
# TEST_FUZZ_SECONDS: how long; default 3. TEST_FUZZ_SEED: repeats a run.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;

only_over_plain_http1 'it is about what is read before there is a connection';

my $seconds = $ENV{TEST_FUZZ_SECONDS} || 3;
my $seed = $ENV{TEST_FUZZ_SEED} // int rand 1_000_000;
srand $seed;
note "seed $seed";

# --- every directive, and values that are right ---

my (%flag, %http, %location);
$flag{"push_stream_$_"} = ['on', 'off'] for qw(store_messages channel_info_on_publish authorized_channels_only websocket_allow_publish
    websocket_strict websocket_binary websocket_deflate allow_connections_to_events_channel auto_event_id idempotent_publish gap_notice detach detach_tls control);
%http = (
    push_stream_shared_memory_size => ['1m', '128k', '32m'],
    push_stream_channel_deleted_message_text => ['Channel deleted', ''],
    push_stream_channel_inactivity_time => ['30s', '5m'],
    push_stream_ping_message_text => ['', 'ping'],
    push_stream_timeout_with_body => ['on', 'off'],
    push_stream_message_ttl => ['30m', '1s'],
    push_stream_max_subscribers_per_channel => ['100'],
    push_stream_max_subscribers_per_address => ['50'],
    push_stream_max_messages_stored_per_channel => ['20', '1'],
    push_stream_max_channel_id_length => ['200'],
    push_stream_max_number_of_channels => ['1000'],
    push_stream_max_number_of_wildcard_channels => ['100'],
    push_stream_wildcard_channel_prefix => ['broad_', ''],
    push_stream_events_channel_id => ['events', ''],
    push_stream_on_full => ['evict', 'refuse'],
    push_stream_drain_time => ['5s', '0'],
    push_stream_handover => ['on', 'off'],
    push_stream_idempotent_window => ['1000'],
);
%location = (
    %flag,
    push_stream_channels_path => ['$arg_id', 'news/sport.b3'],
    push_stream_header_template => ['<html>', ''],
    push_stream_message_template => ['~text~', '{"id":~id~,"channel":"~channel~","text":"~text~","e":"~event-id~"}', 'data: ~text~', '"~text:json~ ~channel:html~"'],
    push_stream_footer_template => ['</html>', ''],
    push_stream_wildcard_channel_max_qtd => ['3'],
    push_stream_ping_message_interval => ['10s', '250ms'],
    push_stream_subscriber_connection_ttl => ['15m', '10s'],
    push_stream_longpolling_connection_ttl => ['30s'],
    push_stream_websocket_max_message_size => ['64k', '5m'],
    push_stream_batch_max_lines => ['1000'],
    push_stream_batch_max_line => ['64k'],
    push_stream_last_received_message_time => ['$http_if_modified_since', '$arg_time'],
    push_stream_last_received_message_tag => ['$http_if_none_match'],
    push_stream_last_event_id => ['$http_last_event_id'],
    push_stream_user_agent => ['$http_user_agent'],
    push_stream_padding_by_user_agent => ['[T|t]est 1,1024,508:[T|t]est 2,4097,0', 'Safari,512,0'],
    push_stream_allowed_origins => ['*', '$http_origin'],
    push_stream_out_of_order => ['refuse', 'store'],
    push_stream_resume => ['exact', 'ordered'],
    push_stream_gap_message_text => ['Messages lost'],
    push_stream_eventsource_retry => ['3s'],
    push_stream_slow_reader => ['close', 'skip', 'latest'],
    push_stream_subscriber_queue => ['1m', '64k'],
    push_stream_dead_peer_timeout => ['30s', '0'],
    push_stream_compress => ['gzip', 'zstd gzip', 'off'],
    push_stream_compress_context => ['group', 'message'],
    push_stream_compress_level => ['1', '9'],
    push_stream_compress_min_length => ['64', '0'],
    push_stream_compress_groups => ['64', '0'],
    push_stream_log_disconnect => ['off', 'disconnect.log'],
    push_stream_cors_credentials => ['on', 'off'],
    push_stream_refuse_softly => ['on', 'off'],
    push_stream_token => ['off'],
    push_stream_token_from => ['bearer', 'cookie=token', 'query=token', '$http_x_token'],
    push_stream_token_keys => ['push-keys.json'],
    push_stream_token_audience => ['https://push.example.org'],
    push_stream_token_leeway => ['30s', '0'],
    push_stream_token_claims => ['native', 'mercure', 'centrifugo'],
    push_stream_token_ticket => ['off', '30s'],
    push_stream_token_revoked => ['revoked-tokens'],
    push_stream_statistics_channels => ['10', '0'],
);
# Where the value is the location's role, or needs one beside it.
my %role = (
    push_stream_publisher => ['normal', 'admin'],
    push_stream_subscriber => ['streaming', 'polling', 'long-polling', 'eventsource', 'websocket'],
    push_stream_statistics_format => ['json', 'plain', 'xml', 'yaml', 'prometheus'],
    push_stream_admin_api => ['on', 'off'],
    push_stream_console_worker => ['feeder /feeder/'],
    push_stream_console_node => ['b /b'],
    push_stream_batch_publish => ['on', 'off'],
    push_stream_header_template_file => ['header'],
);
my %all = (%http, %location, %role);
{
    open my $file, '<', "$FindBin::Bin/../docs/directives.md" or die "cannot read docs/directives.md: $!\n";
    my %documented = map { /^### (push_stream_\w+)/ ? ($1 => 1) : () } <$file>;
    delete @documented{qw(push_stream_channels_statistics push_stream_console push_stream_session_control)};    # have no value
    is_deeply [ sort keys %all ], [ sort keys %documented ], 'every directive is here';
}

# --- what is done to them ---

my @values = map { @$_ } values %all;
my @tokens = ('0', '-1', '1', '4294967296', '18446744073709551616', '99999999999999999999', '1s', '1y', '1M', '0.5s', '1g', 'ms', ' ', "\t", "\n",
    "\0", "\xff", "\xe2\x82\xac", '~', '~text~', '~id', '/', '.b', '.b9', '*', 'ALL', ':', ',', ',,', ',1,1', '$', '${', '$arg_id', '$1', '$none',
    '"', q{'}, '\\', ';', '{', '}', '#', '%', '%00', '(', '[', '+', 'on', 'off', 'x' x 300, 'y' x 5000);
my $mutate = sub ($text) {
    return $values[ rand @values ] if rand() < 0.1;
    for (1 .. 1 + int rand 3) {
        my $at = int rand(1 + length $text);
        my $kind = int rand 5;
        if ($kind == 0) { substr($text, $at, 1) = chr int rand 256 if $at < length $text }
        elsif ($kind == 1) { substr $text, $at, 1 + int rand 4, '' }
        elsif ($kind == 2) { substr $text, $at, 0, $tokens[ rand @tokens ] }
        elsif ($kind == 3) { $text = $tokens[ rand @tokens ] }
        else { $text .= $text }
    }
    return $text;
};
# As one word, whatever is in it.
my $quoted = sub ($value) { return '"' . ($value =~ s/(["\\])/\\$1/gr) . '"' };

# A whole configuration with these directives at the given place; the rest is as it should be.
my $configuration = sub (%values) {
    my %text = (http => '', location => '', publisher => '', subscriber => '', statistics => '');
    for my $name (sort keys %values) {
        my $place = $http{$name} ? 'http' : $location{$name} ? (rand() < 0.3 ? 'http' : 'location')
            : $name =~ /statistics/ ? 'statistics' : $name =~ /publish|admin/ ? 'publisher' : 'subscriber';
        $text{$place} .= "$name " . $quoted->($values{$name}) . ($name =~ /retry|memory_size/ && rand() < 0.3 ? ' ' . $quoted->($mutate->('9s')) : '') . ";\n";
    }
    my $mine = sub ($name, $usual) { return exists $values{$name} ? '' : "$usual;" };
    return <<"END";
%%MAIN%%
events {}
http {
    %%HTTP%%
    @{[ $mine->(push_stream_shared_memory_size => 'push_stream_shared_memory_size 1m') ]}
    $text{http}
    server {
        listen 127.0.0.1:%%PORT%%;
        @{[ $values{push_stream_channels_path} ? '' : 'push_stream_channels_path \$arg_id;' ]}
        location /pub { @{[ $mine->(push_stream_publisher => 'push_stream_publisher') ]} $text{publisher} $text{location} }
        location /sub { @{[ $mine->(push_stream_subscriber => 'push_stream_subscriber') ]} $text{subscriber} $text{location} }
        location /ev { push_stream_subscriber eventsource; $text{location} }
        location /lp { push_stream_subscriber long-polling; $text{location} }
        location /ws { push_stream_subscriber websocket; $text{location} }
        location /status { push_stream_channels_statistics; $text{statistics} $text{location} }
    }
}
END
};

# What the module says without a directive's name, as the C module does.
my $else = qr/padding pattern|pcre2?_compile\(\)|for header template|wildcard channel|duplicate zone/;
# What nginx itself says, most of it with the line, or that the system refused.
my $own = qr{(?:invalid value ".*"|too long parameter.*|unknown ".*" variable|invalid variable name|closing bracket in ".*" variable is missing)}s;
my $system = qr/mmap\(MAP_ANON|open\(\) ".*" failed/;
my (%verdicts, @troubles);
my $end = time + $seconds;
while (time < $end && !@troubles) {
    my @names = sort keys %all;
    my %values = map { my $name = $names[ rand @names ]; ($name => $mutate->($all{$name}[ rand @{ $all{$name} } ])) } 1 .. 1 + int rand 2;
    # These name files: they stay in the test's directory.
    for my $name (qw(push_stream_log_disconnect push_stream_header_template_file)) {
        delete $values{$name} if ($values{$name} // '') =~ m{/};
    }
    my $conf = $configuration->(%values);
    my ($content, $output, $status) = PushStream::Nginx->check($conf);
    my $shown = join '; ', map { "$_ " . $values{$_} =~ s/([^ -~])/sprintf '\\x%02x', ord $1/ger } sort keys %values;
    $verdicts{ $content ? 'taken' : 'refused' }++;
    if ($status & 127) {
        push @troubles, "signal @{[ $status & 127 ]}: $shown";
    } elsif (!$content) {
        push @troubles, "not told why: $shown: $output"
            if $output !~ $else && $output !~ $own && $output !~ $system && !grep { index($output, $_) >= 0 } keys %values;
    } elsif (rand() < 0.2 && $shown !~ /\d{6}|\dg/) {
        # Numbers that large are taken, but not tried out on this machine.
        $verdicts{run}++;
        eval {
            my $nginx = PushStream::Nginx->start($conf);
            my @pids = $nginx->worker_pids;
            my @readers = map { $nginx->connect->send_request(GET => "/$_?id=a", headers => { 'User-Agent' => 'Test 1' }) } qw(sub ev lp);
            my $status = $nginx->post('/pub?id=a', 'hello', 'Event-Id' => '1')->status;
            die "publishing is answered $status\n" if $status !~ /^[2345]\d\d$/;
            $nginx->get('/status');
            die "a worker was replaced\n" if "@pids" ne "@{[ $nginx->worker_pids ]}";
            $nginx->stop;
            my @complaints = grep { !/bind\(\)/ } $nginx->complaints;
            die @complaints if @complaints;
            1;
        } or push @troubles, "it does not run: $shown: $@";
    }
}
is "@troubles", '', "nothing but verdicts (seed $seed)";
note join ', ', map { "$verdicts{$_} $_" } sort keys %verdicts;
cmp_ok $verdicts{taken} // 0, '>', 0, 'some were taken';
cmp_ok $verdicts{refused} // 0, '>', 0, 'and some refused';

done_testing;
