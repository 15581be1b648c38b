# The README's first screen does what it says: its nginx.conf runs, and its curl lines print what stands below them, ids apart.

use v5.36;
use Cwd qw(abs_path);
use File::Basename qw(dirname);
use File::Temp qw(tempdir);
use IO::Socket::INET;
use Test::More;
use Time::HiRes qw(sleep);

my $root = dirname(dirname(abs_path(__FILE__)));
# Where nginx is, a mere user does not look.
$ENV{PATH} .= ':/usr/sbin';
my $nginx = $ENV{TEST_NGINX_BINARY} // 'nginx';
my $module = $ENV{PUSH_STREAM_MODULE} // "$root/target/release/libngx_http_push_stream_module.so";
plan skip_all => 'a configuration without paths of its own needs root' if $> != 0;

sub slurp ($file) { open my $in, '<', $file or die "$file: $!"; local $/; return scalar <$in> }

my $readme = slurp("$root/README.md");
my ($conf) = $readme =~ /^```nginx\n(.*?)^```/ms or die 'no nginx.conf in the README';
my ($session) = $readme =~ /^```console\n(.*?)^```/ms or die 'no session in the README';
is($conf, slurp("$root/nginx-conf/minimal.conf"), 'the nginx.conf is nginx-conf/minimal.conf');

# The port as printed, unless somebody has it.
my ($port) = $conf =~ /listen 127\.0\.0\.1:(\d+)/;
my $probe = IO::Socket::INET->new(Listen => 1, LocalAddr => '127.0.0.1', LocalPort => $port, ReuseAddr => 1)
    // IO::Socket::INET->new(Listen => 1, LocalAddr => '127.0.0.1');
my $free = $probe->sockport;
close $probe;
s/127\.0\.0\.1:$port\b/127.0.0.1:$free/g for $conf, $session;

my $dir = tempdir('push-stream-readme-XXXXXX', TMPDIR => 1, CLEANUP => 1);
mkdir "$dir/$_" or die $! for qw(modules logs);
symlink $module, "$dir/modules/ngx_http_push_stream_module.so" or die $!;
open my $out, '>', "$dir/nginx.conf" or die $!;
print {$out} $conf;
close $out;

my $pid = fork // die $!;
if (!$pid) {
    exec $nginx, '-p', "$dir/", '-c', 'nginx.conf', '-e', "$dir/error.log",
        '-g', "daemon off; pid $dir/nginx.pid; error_log $dir/error.log notice;" or die $!;
}
for (1 .. 100) { last if IO::Socket::INET->new(PeerAddr => "127.0.0.1:$free"); sleep 0.05 }

my @steps = map { [split /\n/, $_, 2] } $session =~ /^\$ (.*?)(?=^\$ |\z)/msg;
cmp_ok(scalar @steps, '>', 2, 'there are commands to run');
# Ids begin with the time at which the zone was made: the printed one stands for that of this zone.
my ($printed_epoch) = $session =~ /^id: (\d{13})-1$/m or die 'no id in the session';
my $epoch = qr/\b(\d{13})(?=-\d+$)/m;
my $own_epoch;
for (@steps) {
    my ($command, $expected) = @$_;
    $command =~ s/\b$printed_epoch\b/$own_epoch/g if $own_epoch;
    (my $printed = `$command`) =~ s/\r\n/\n/g;
    ($own_epoch) = $printed =~ $epoch unless $own_epoch;
    $expected =~ s/\b$printed_epoch\b/$own_epoch/g if $own_epoch;
    is($printed, $expected, $command);
}
ok($own_epoch && abs($own_epoch / 1000 - time) < 3600, 'its ids begin with the time of its start');
like($session, qr/Last-Event-ID: $printed_epoch-1\b/, 'and one of the commands resumes');

kill QUIT => $pid;
waitpid $pid, 0;
is($?, 0, 'nginx ends well');
is(join('', grep { /\[(?:warn|error|alert|crit|emerg)\]/ } split /^/, slurp("$dir/error.log")), '', 'and has nothing to complain about');
done_testing;
