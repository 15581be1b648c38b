# The reference knows every directive that there is, and no other.

use v5.36;

use Cwd qw(abs_path);
use File::Basename qw(dirname);
use File::Find qw(find);
use File::Temp;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;

my $root = dirname(dirname(abs_path(__FILE__)));

sub slurp ($file) { open my $in, '<', $file or die "$file: $!"; local $/; return scalar <$in> }

# Files that examples name.
my $files = File::Temp->newdir;
for (
    [ 'push-keys.json' => '{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}' ],
    [ 'revoked-tokens' => "sub=42\n" ],
) {
    open my $out, '>', "$files/$_->[0]" or die "$files: $!";
    print {$out} $_->[1];
}

# Name and contexts, from the table's macros.
my %words = (LOC => 'location', ALL_LEVELS => 'http, server, location', ALL_LEVELS_AND_IF => 'http, server, location, if in location');
my %contexts;
my $source = slurp("$root/src/module/config/mod.rs");
while ($source =~ /\b(http|location)!\(\s*"(push_stream_\w+)",\s*(\w+)/g) {
    $contexts{$2} = $1 eq 'http' ? 'http' : $words{$3};
}
my @table = keys %contexts;
my $reference = slurp("$root/docs/directives.md");
my @documented = $reference =~ /^### (\w+)$/mg;
cmp_ok(scalar @table, '>', 30, 'the table of directives was found');
is_deeply([sort @documented], [sort @table], 'each directive is explained once');

for my $directive (@documented) {
    my ($section) = $reference =~ /^### $directive\n(.*?)(?=^##|\z)/ms;
    my ($context, $since) =
        $section =~ /^\| Syntax \| `$directive\b.*\n\| Default \| .+ \|\n\| Context \| (.+) \|\n\| Since \| (.+) \|\n\n\S/m;
    is($context, $contexts{$directive}, "$directive has a syntax, a default, its contexts and a text");
    my $new = $section =~ /^\*\*New\.\*\*/m;
    like($since // '', $new ? qr/^\d+\.\d+, not in the C module$/ : qr/^\d+\.\d+, as in the C module$/, 'and says since when');

    # The example works where the reference says that the directive may stand.
    my ($example) = $section =~ /^```nginx\n(.*?)^```$/ms;
    like($example // '', qr/^\s*$directive\b/m, 'there is an example') or next;
    my ($http, $server) = $example =~ /^location/ ? ('', $example) : ($example, '');
    accepts(<<"CONF" =~ s{/etc/nginx/push-header\.html}{%%DIR%%/nginx.conf}r =~ s{/var/log/nginx/}{%%DIR%%/}r =~ s{/etc/nginx/(push-keys\.json|revoked-tokens)}{$files/$1}r, "$directive: the example is valid");
%%MAIN%%
events {}
http {
    %%HTTP%%
    @{[ $example =~ /push_stream_shared_memory_size/ ? '' : 'push_stream_shared_memory_size 1m;' ]}
    @{[ $example =~ /push_stream_events_channel_id/ ? '' : 'push_stream_events_channel_id events;' ]}
    $http
    server {
        listen 127.0.0.1:%%PORT%%;
        location /any { push_stream_subscriber eventsource; push_stream_channels_path \$arg_id; }
        $server
    }
}
CONF
}

# So is every figure for monitoring systems.
local $ENV{TEST_WORKERS} = 1;
with_nginx <<'CONF', sub ($nginx) {
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_shared_memory_size 1m;
    push_stream_channels_path $arg_id;
    server {
        listen 127.0.0.1:%%PORT%%;
        push_stream_store_messages on;
        location /pub { push_stream_publisher; }
        location /sub { push_stream_subscriber; }
        location /metrics { push_stream_channels_statistics; push_stream_statistics_format prometheus; push_stream_statistics_channels 1; }
    }
}
CONF
    my $reader = $nginx->subscribe('/sub?id=a');
    my $text;
    # What a channel gets is known when it was looked at twice, ten seconds apart.
    my $has_figures = sub {
        $nginx->post('/pub?id=a', 'x');
        return ($text = $nginx->get('/metrics')->body) =~ /^push_stream_channel_messages_per_second/m;
    };
    ok wait_until(sub { $has_figures->() }, 30), 'there are figures of a channel';
    my %samples;
    for my $type ($text =~ /^# TYPE (\w+) /mg) {
        my $labels = $samples{$type} = {};
        for my $sample ($text =~ /^$type(?:_bucket)?\{(.*)\} /mg) {
            $labels->{$1}{$2} = 1 while $sample =~ /(\w+)="((?:[^"\\]|\\.)*)"/g;
        }
    }
    my %rows;
    for my $directive (qw(push_stream_statistics_format push_stream_statistics_channels)) {
        my ($section) = $reference =~ /^### $directive\n(.*?)(?=^##|\z)/ms;
        my ($table) = $section =~ /^\| name \| labels \| \|\n\|---\|---\|---\|\n((?:\|.*\n)+)/m or next;
        for my $row (split /\n/, $table) {
            my ($names, $labels, $meaning) = $row =~ /^\| (.+?) \|(.*?)\|(.*)\|$/ or die "no row: $row";
            $rows{"push_stream_$_"} = [ $labels, $meaning ] for $names =~ /`(\w+)`/g;
        }
    }
    is_deeply [ sort keys %rows ], [ sort keys %samples ], 'each is explained once, and no other';
    for my $name (sort keys %samples) {
        my ($labels, $meaning) = @{ $rows{$name} // next };
        for my $label (grep { $_ ne 'le' } sort keys %{ $samples{$name} }) {
            like $labels, qr/`$label`/, "$name has a label $label";
            # Values that are the same everywhere.
            next if $label eq 'worker' || $label eq 'channel' || $labels =~ /\]\(#/;
            like $labels, qr/`\Q$_\E`/, "$name: $label may be $_" for sort keys %{ $samples{$name}{$label} };
        }
    }
};

# Both logs and figures give the same reasons.
my ($reasons) = slurp("$root/src/module/delivery/ending.rs") =~ /pub fn name\(self\).*?match self \{(.*?)^        \}/ms;
my ($log) = $reference =~ /^### push_stream_log_disconnect\n(.*?)(?=^##|\z)/ms;
my @reasons = $reasons =~ /=> "(\w+)"/g;
cmp_ok scalar @reasons, '>', 10, 'the reasons were found';
like $log, qr/`$_`/, "$_ is a reason for the end of a stream" for @reasons;

my ($config) = slurp("$root/docs/worker.md") =~ /^```toml\n(.*?)^```/ms;
my $file = File::Temp->new(SUFFIX => '.toml');
print {$file} $config;
close $file;
like(qx{$root/target/release/push-stream-worker validate $file 2>&1}, qr/: ok$/m, "the worker's example is valid");

# Files that a document names exist: all from the root of the tree, sources also by the end of their path. NAME stands for any. (Links: links.t.)
my @sources;
find(sub { push @sources, $File::Find::name if /\.rs$/ }, "$root/src");
for my $file (qw(README.md CONTRIBUTING.md CHANGELOG.md SECURITY.md RELEASING.md), glob("$root/docs/*.md")) {
    my $path = $file =~ m{^/} ? $file : "$root/$file";
    for my $name (grep { !/NAME|rustup\.rs/ } slurp($path) =~ m{(?<![\w/.-])((?:src|t|scripts|docs|nginx-conf)/[\w./-]*\w|[\w/]+\.rs\b)}g) {
        ok(-e "$root/$name" || scalar grep({ m{/\Q$name\E$} } @sources), "$path: $name exists");
    }
}
done_testing;
