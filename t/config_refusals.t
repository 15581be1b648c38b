# What `nginx -t` refuses, and the reason that it gives.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;

# The directives of the http block, and the location.
sub conf ($http, $server = '') {
    return <<"CONF";
%%MAIN%%
events {}
http {
    %%HTTP%%
    $http
    server {
        listen 127.0.0.1:%%PORT%%;
        $server
    }
}
CONF
}

my $ZONE = 'push_stream_shared_memory_size 1m;';
my $PUB = 'location /pub { push_stream_publisher; push_stream_channels_path $arg_id; }';

# A subscriber with these directives.
sub sub_with ($directives) {
    return "location /sub { push_stream_subscriber; push_stream_channels_path \$arg_id; $directives }";
}

accepts conf($ZONE, $PUB . sub_with('')), 'a configuration like these, without the mistake, is fine';

subtest 'the zone' => sub {
    refuses conf('', $PUB), 'push stream module: push_stream_shared_memory_size must be set.', 'no zone';
    my $too_small = 'The push_stream_shared_memory_size value must be at least 128KiB';
    for my $size (qw(0 1 100k 124k)) {
        refuses conf("push_stream_shared_memory_size $size;", $PUB), $too_small, "a size of $size";
    }
    for my $size (qw(much -1m 1x), '""') {
        refuses conf("push_stream_shared_memory_size $size;", $PUB), $too_small, "a size that is none: $size";
    }
    refuses conf("push_stream_shared_memory_size 1m; push_stream_shared_memory_size 2m;", $PUB),
        'duplicate zone "push_stream_module"', 'the default name twice';
    refuses conf("push_stream_shared_memory_size 1m one; push_stream_shared_memory_size 1m one;", $PUB),
        'duplicate zone "one"', 'a name twice';
    refuses conf("push_stream_shared_memory_size;", $PUB),
        'invalid number of arguments in "push_stream_shared_memory_size" directive', 'no size';
};

subtest 'what cannot be zero in the http block' => sub {
    for my $directive (qw(
        push_stream_message_ttl
        push_stream_max_messages_stored_per_channel
        push_stream_max_channel_id_length
        push_stream_max_number_of_channels
        push_stream_max_number_of_wildcard_channels
        push_stream_max_subscribers_per_channel
        push_stream_idempotent_window
    )) {
        refuses conf("$ZONE $directive 0;", $PUB), "push stream module: $directive cannot be zero.", $directive;
        accepts conf("$ZONE $directive 0;"), "$directive 0 is nobody's affair as long as no location has a role";
    }
};

subtest 'what cannot be zero in a location' => sub {
    for my $directive (qw(
        push_stream_ping_message_interval
        push_stream_subscriber_connection_ttl
        push_stream_longpolling_connection_ttl
    )) {
        my $reason = "push stream module: $directive cannot be zero.";
        refuses conf($ZONE, sub_with("$directive 0;")), $reason, "$directive in the location";
        refuses conf("$ZONE $directive 0;", sub_with('')), $reason, "$directive inherited from the http block";
        # The time of long polling comes from that of subscribers on every level, so it has to be overridden too.
        my $longpolling = $directive =~ /subscriber/ ? 'push_stream_longpolling_connection_ttl 1s;' : '';
        accepts conf("$ZONE $directive 0;", sub_with("$directive 1s; $longpolling")), "$directive overridden in the location";
        accepts conf("$ZONE $directive 0;"), "$directive without any role";
    }
};

subtest 'the channels path' => sub {
    my $reason = 'push stream module: push_stream_channels_path must be set.';
    for my $role (qw(push_stream_publisher push_stream_subscriber push_stream_channels_statistics)) {
        refuses conf($ZONE, "location / { $role; }"), $reason, "$role without a path";
        accepts conf("$ZONE push_stream_channels_path \$arg_id;", "location / { $role; }"), "$role with an inherited path";
    }
};

subtest 'the message template' => sub {
    my $reason = 'push stream module: push_stream_message_template cannot be blank.';
    my $blank = 'push_stream_channels_path $arg_id; push_stream_message_template "";';
    for my $role (
        'push_stream_publisher', 'push_stream_channels_statistics',
        'push_stream_subscriber', 'push_stream_subscriber polling', 'push_stream_subscriber long-polling',
    ) {
        refuses conf($ZONE, "location / { $role; $blank }"), $reason, "$role with a blank template";
    }
    accepts conf($ZONE, "location / { push_stream_subscriber eventsource; $blank }"),
        'eventsource has a template of its own for that';
    my $with = sub ($template) { conf($ZONE, sub_with(qq(push_stream_message_template "$template";))) };
    refuses $with->('~id~ ~Text:xml~'),
        'push stream module: push_stream_message_template: unknown modifier in ~Text:xml~, accepted values (json, html, base64)', 'an unknown modifier';
    refuses $with->('~id:json~'), 'push stream module: push_stream_message_template: ~id:json~ takes no modifier', 'a figure that is escaped';
    accepts $with->('~text:JSON~ ~event-type:html~ ~event-id:base64~ ~channel:json~ ~text: json~'), 'modifiers in any case, and what is none';
};

subtest 'modes' => sub {
    refuses conf($ZONE, 'location / { push_stream_subscriber carrier-pigeon; push_stream_channels_path $arg_id; }'),
        'push stream module: invalid push_stream_subscriber mode value: carrier-pigeon, '
        . 'accepted values (streaming, polling, long-polling, eventsource, websocket)', 'an unknown subscriber mode';
    refuses conf($ZONE, 'location / { push_stream_publisher boss; push_stream_channels_path $arg_id; }'),
        'push stream module: invalid push_stream_publisher mode value: boss, accepted values (normal, admin)',
        'an unknown publisher mode';
    for my $role (qw(push_stream_subscriber push_stream_publisher)) {
        refuses conf($ZONE, "location / { $role one two; push_stream_channels_path \$arg_id; }"),
            qq(invalid number of arguments in "$role" directive), "two modes for $role";
    }
};

subtest 'two roles in one location' => sub {
    for my $second (qw(push_stream_subscriber push_stream_publisher)) {
        for my $first (qw(push_stream_subscriber push_stream_publisher push_stream_channels_statistics)) {
            refuses conf($ZONE, "location / { $first; $second; push_stream_channels_path \$arg_id; }"),
                qq("$second" directive is duplicate), "$second after $first";
        }
    }
};

subtest 'wildcard channels' => sub {
    refuses conf($ZONE, sub_with('push_stream_wildcard_channel_max_qtd 0;')),
        'push stream module: push_stream_wildcard_channel_max_qtd cannot be zero.', 'a limit of zero';
    my $no_prefix = 'push stream module: cannot set wildcard channel max qtd if '
        . 'push_stream_wildcard_channel_prefix is not set or blank.';
    refuses conf($ZONE, sub_with('push_stream_wildcard_channel_max_qtd 3;')), $no_prefix, 'a limit without a prefix';
    refuses conf("$ZONE push_stream_max_number_of_wildcard_channels 3;", sub_with('')), $no_prefix,
        'a limit that comes from the maximum of the zone, without a prefix';
    refuses conf(
        "$ZONE push_stream_wildcard_channel_prefix w_; push_stream_max_number_of_wildcard_channels 3;",
        sub_with('push_stream_wildcard_channel_max_qtd 4;'),
        ),
        'push stream module: max number of wildcard channels cannot be smaller than value in '
        . 'push_stream_wildcard_channel_max_qtd.', 'a subscription may hold more than the zone';
};

subtest 'header templates' => sub {
    my $text = 'push_stream_header_template "text";';
    my $file = 'push_stream_header_template_file %%DIR%%/nginx.conf;';
    refuses conf($ZONE, sub_with("$text $file")),
        q("push_stream_header_template_file" directive is duplicate or template set by 'push_stream_header_template'),
        'a file after a text';
    refuses conf($ZONE, sub_with("$file $text")),
        '"push_stream_header_template" directive is duplicate', 'a text after a file';
    refuses conf($ZONE, sub_with('push_stream_header_template_file %%DIR%%/missing;')),
        qr{push stream module: unable to open file "[^"]*/missing" for header template}, 'a file that is not there';
};

subtest 'padding' => sub {
    refuses conf($ZONE, sub_with('push_stream_padding_by_user_agent "nonsense";')),
        'push stream module: padding pattern not match the value nonsense', 'no padding at all';
    refuses conf($ZONE, sub_with('push_stream_padding_by_user_agent "[,1,2";')), 'push stream',
        'a user agent that is no regular expression';
};

subtest 'compression' => sub {
    accepts conf($ZONE, sub_with('push_stream_compress gzip; push_stream_compress_level 9;')), 'as it should be';
    for my $coding (qw(br deflate GZIP on 1 identity "")) {
        refuses conf($ZONE, sub_with("push_stream_compress $coding;")), 'in push_stream_compress, accepted are off, or: gzip, zstd', "no coding: $coding";
    }
    refuses conf($ZONE, sub_with('push_stream_compress gzip off;')), 'invalid coding "off" in push_stream_compress', 'both';
    refuses conf($ZONE, sub_with('push_stream_compress gzip zstd gzip;')), 'push_stream_compress names "gzip" twice', 'one twice';
    refuses conf($ZONE, sub_with('push_stream_compress off; push_stream_compress gzip;')), '"push_stream_compress" directive is duplicate', 'two';
    refuses conf($ZONE, sub_with('push_stream_compress;')), 'invalid number of arguments in "push_stream_compress"', 'none';
    refuses conf($ZONE, sub_with("push_stream_compress_level $_;")), 'push_stream_compress_level must be from 1 to 9, or to 19 for zstd alone.', "level $_" for 0, 20, 999;
    accepts conf($ZONE, sub_with('push_stream_compress zstd; push_stream_compress_level 19;')), 'a high level of zstd';
    for my $codings ('gzip', 'gzip zstd', 'zstd gzip') {
        refuses conf($ZONE, sub_with("push_stream_compress $codings; push_stream_compress_level 10;")),
            'push_stream_compress_level must be from 1 to 9 for gzip and permessage-deflate.', "level 10 of $codings";
    }
    refuses conf($ZONE, sub_with('push_stream_compress_level fast;')), 'invalid number', 'a level that is none';
    refuses conf($ZONE, sub_with('push_stream_compress_context channel;')), 'invalid value "channel"', 'a context that is none';
    refuses conf($ZONE, sub_with('push_stream_compress_min_length few;')), '"push_stream_compress_min_length" directive invalid value', 'a length that is none';
    refuses conf($ZONE, sub_with('push_stream_compress_groups -1;')), 'invalid number', 'a number below zero';
};

subtest 'nginx itself refuses' => sub {
    refuses conf("$ZONE push_stream_message_ttl 500ms;", $PUB), '"push_stream_message_ttl" directive invalid value',
        'milliseconds where seconds count';
    refuses conf("$ZONE push_stream_message_ttl soon;", $PUB), '"push_stream_message_ttl" directive invalid value',
        'a time that is none';
    refuses conf("$ZONE push_stream_max_messages_stored_per_channel -1;", $PUB), 'invalid number', 'a negative number';
    refuses conf("$ZONE push_stream_store_messages maybe;", $PUB),
        'invalid value "maybe" in "push_stream_store_messages" directive', 'a flag that is none';
    for my $twice (
        'push_stream_message_ttl 1m;', 'push_stream_store_messages on;', 'push_stream_channels_path $arg_id;',
        'push_stream_message_template a;', 'push_stream_footer_template a;', 'push_stream_ping_message_interval 1s;',
    ) {
        my ($name) = $twice =~ /^(\S+)/;
        refuses conf("$ZONE $twice $twice", $PUB), qq("$name" directive is duplicate), "$name twice";
    }
    for my $misplaced (
        'push_stream_shared_memory_size 1m;', 'push_stream_message_ttl 1m;', 'push_stream_channel_inactivity_time 1m;',
        'push_stream_ping_message_text a;', 'push_stream_max_messages_stored_per_channel 1;',
    ) {
        my ($name) = $misplaced =~ /^(\S+)/;
        refuses conf($ZONE, sub_with($misplaced)), qq("$name" directive is not allowed here), "$name in a location";
    }
    for my $role (qw(push_stream_publisher push_stream_subscriber push_stream_channels_statistics)) {
        refuses conf("$ZONE $role;"), qq("$role" directive is not allowed here), "$role in the http block";
    }
    for my $gone (qw(push_stream_websocket push_stream_keepalive push_stream_content_type push_stream_broadcast_max)) {
        refuses conf($ZONE, sub_with("$gone on;")), qq(unknown directive "$gone"), "$gone, which was given up long ago";
    }
};

subtest 'the ids of messages' => sub {
    refuses conf($ZONE, sub_with('push_stream_gap_notice on;')),
        'push stream module: push_stream_gap_notice needs push_stream_resume ordered.', 'notices without an order';
    accepts conf($ZONE, sub_with('push_stream_resume ordered; push_stream_gap_notice on;')), 'with one they are fine';
    accepts conf("$ZONE push_stream_gap_notice on; push_stream_resume ordered;", $PUB . sub_with('')), 'also when both are inherited';
    refuses conf($ZONE, sub_with('push_stream_resume later;')), 'invalid value "later"', 'a resume that is none';
    refuses conf($ZONE, 'push_stream_out_of_order sort;'), 'invalid value "sort"', 'an order that is none';
    refuses conf($ZONE, sub_with('push_stream_eventsource_retry 5s 2s;')),
        'push_stream_eventsource_retry: the first time cannot be longer than the second.', 'a range that ends before it begins';
    refuses conf($ZONE, sub_with('push_stream_eventsource_retry soon;')), 'invalid value', 'a time that is none';
    refuses conf($ZONE, sub_with('push_stream_eventsource_retry 1s; push_stream_eventsource_retry 2s;')), 'is duplicate', 'twice';
    accepts conf($ZONE, sub_with('push_stream_eventsource_retry 500ms 2s;')), 'a range is fine';
    for my $flag (qw(push_stream_auto_event_id push_stream_idempotent_publish)) {
        refuses conf($ZONE, "location /p { $flag maybe; }"), "invalid value \"maybe\" in \"$flag\" directive", $flag;
    }
};

done_testing;
