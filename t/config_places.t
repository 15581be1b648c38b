# What nginx only finds out when it has read the whole configuration is told with the place where it was written: file and line, and the
# name of the location. And what it warns of.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;

# The text with what is wrong with it in the line before the mark; the file that nginx names, and the line.
sub refuses_at ($conf, $reason, $name) {
    my @lines = split /\n/, $conf;
    my ($marked) = grep { $lines[$_] =~ /HERE/ } 0 .. $#lines;
    # %%MAIN%% and %%HTTP%% become several lines, the same number in all configurations.
    state $more = do {
        my (undef, $output) = configuration_output("%%MAIN%%\nevents {}\nhttp {\n%%HTTP%%\nnonsense;\n}\n");
        my ($line) = $output =~ /unknown directive "nonsense" in .*:(\d+)/ or die "no line in: $output";
        $line - 5;
    };
    my $line = $marked + 1 + $more;
    refuses $conf, qr/\Q$reason\E in [^\n]*nginx\.conf:$line$/m, $name;
}

sub conf ($http, $server) {
    return <<"CONF";
%%MAIN%%
events {}
http {
%%HTTP%%
$http
    server {
        listen 127.0.0.1:%%PORT%%;
        location = /first { push_stream_publisher; push_stream_channels_path \$arg_id; }
$server
        location = /last { return 204; }
    }
}
CONF
}

my $zone = '    push_stream_shared_memory_size 1m;';
my $path = 'push_stream_channels_path $arg_id;';
my $says = sub ($text) { "push stream module: $text" };

for my $case (
    [ '', 'push_stream_channels_path must be set.' ],
    [ "$path push_stream_ping_message_interval 0;", 'push_stream_ping_message_interval cannot be zero.' ],
    [ "$path push_stream_subscriber_queue 0;", 'push_stream_subscriber_queue cannot be zero.' ],
    [ "$path push_stream_message_template '';", 'push_stream_message_template cannot be blank.' ],
    [ "$path push_stream_gap_notice on;", 'push_stream_gap_notice needs push_stream_resume ordered.' ],
    [ "$path push_stream_admin_api on;", 'push_stream_admin_api needs push_stream_publisher admin or push_stream_console in the same location.' ],
) {
    my ($directives, $reason) = @$case;
    refuses_at conf($zone, <<"SERVER"), $says->(qq($reason in location "/sub")), $reason;
        location = /sub { # HERE
            push_stream_subscriber;
            $directives
        }
SERVER
}
refuses_at conf($zone, <<"SERVER"),
        location /sub {
            push_stream_subscriber_connection_ttl 0;
            location ~ ^/sub/(.*) { # HERE
                push_stream_subscriber;
                $path
            }
        }
SERVER
    $says->('push_stream_subscriber_connection_ttl cannot be zero. in location "^/sub/(.*)"'), 'an inherited value, where it is used';
refuses_at conf($zone, <<"SERVER"), $says->('push_stream_ping_message_interval cannot be zero. in location "/outer/inner"'), 'a nested location';
        location /outer {
            location /outer/inner { # HERE
                push_stream_subscriber;
                push_stream_ping_message_interval 0;
                $path
            }
        }
SERVER
refuses_at conf($zone, <<"SERVER"), $says->('padding pattern not match the value nonsense'), 'a padding';
        location = /sub { # HERE
            push_stream_subscriber; $path
            push_stream_padding_by_user_agent nonsense;
        }
SERVER

for my $limit (qw(
    push_stream_message_ttl push_stream_max_messages_stored_per_channel push_stream_max_channel_id_length push_stream_max_number_of_channels
    push_stream_max_number_of_wildcard_channels push_stream_max_subscribers_per_channel push_stream_max_subscribers_per_address
    push_stream_idempotent_window
)) {
    refuses_at conf("$zone\n    $limit 0; # HERE\n", ''), $says->("$limit cannot be zero."), $limit;
}
refuses_at conf('', "        location = /second {\n            push_stream_publisher;\n$path }") =~ s/(location = \/first \{)(.*)/$1$2 # HERE/r,
    $says->('push_stream_shared_memory_size must be set.'), 'no zone: the first location that wants one';

# An included file.
{
    my $file = File::Temp->new(SUFFIX => '.conf');
    print {$file} "# a comment\nlocation = /included {\n    push_stream_subscriber;\n}\n";
    close $file;
    refuses conf($zone, "include $file;"), qr/channels_path must be set\. in location "\/included" in \Q$file\E:2$/m, 'a location in a file of its own';
    refuses conf($zone, "include $file;\nwrong on;"), qr/unknown directive "wrong" in \S*nginx\.conf:\d+$/m, 'what comes behind is in the file before';
}

my $warned = accepts conf("    push_stream_shared_memory_size 1m one;\n    push_stream_shared_memory_size 1m two;", ''), 'two zones';
like $warned, qr/there is one zone only, "two" is used instead of "one" in /, 'the last is used, with a warning';

subtest 'texts that clients would read as something else' => sub {
    my $with = sub ($mode, $directives) { conf($zone, "location = /sub { push_stream_subscriber $mode; $path $directives }") };
    my $warning = sub ($mode, $directives, $wanted) {
        my $said = accepts $with->($mode, $directives), "$mode with $directives is accepted";
        my @warnings = $said =~ /\[warn\] .*?push stream module: (.*?)(?: in \S+:\d+)?$/mg;
        # nginx says it on stderr and in the error log.
        my %seen;
        is_deeply [ grep { !$seen{$_}++ } @warnings ], [ $wanted // () ], defined $wanted ? 'with a warning' : 'without a word';
    };
    $warning->('', q(push_stream_message_template '~txt~ of ~channel~';), '~txt~ in push_stream_message_template is no word of templates, and is sent as it is');
    $warning->('', q(push_stream_message_template '~ID~ a ~ b ~text~~event-id~';), undef);
    $warning->('', q(push_stream_header_template 'to ~channel~';), '~channel~ in push_stream_header_template is not replaced, and is sent as it is');
    $warning->('', q(push_stream_footer_template 'to ~channel~';), '~channel~ in push_stream_footer_template is not replaced, and is sent as it is');
    $warning->(eventsource => qq(push_stream_message_template 'data:~text~';),
        'push_stream_message_template begins with "data:" without a space, so "data: " is put in front of it in location "/sub"');
    $warning->(eventsource => qq(push_stream_message_template "data: ~text~\\n\\ndata: end";),
        'the empty line in push_stream_message_template ends each event before its last line in location "/sub"');
    $warning->(eventsource => qq(push_stream_header_template "retry: 1000\\n";),
        'fields in push_stream_header_template are sent as comments, because it does not begin with ": " in location "/sub"');
    $warning->($_ => qq(push_stream_message_template "data: ~text~\\n\\n"; push_stream_header_template ": a\\nretry: 1000\\n";), undef) for qw(eventsource streaming);
    $warning->(websocket => qq(push_stream_header_template "caf\xe9";), 'push_stream_header_template is not UTF-8, so clients will close the connection in location "/sub"');
    $warning->(streaming => qq(push_stream_header_template "caf\xe9";), undef);
    my $said = accepts $with->(websocket => '') =~ s/(push_stream_shared_memory_size 1m;)/$1 push_stream_channel_deleted_message_text "caf\xe9";/r, 'a notice';
    like $said, qr/push_stream_channel_deleted_message_text is not UTF-8, so clients will close the connection in location "\/sub"/, 'is looked at, too';
};

done_testing;
