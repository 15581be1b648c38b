# scripts/tune-kernel says what it would set, and sets nothing else; only --apply sets it, and no limit is ever lowered.

use v5.36;

use Cwd qw(abs_path);
use File::Basename qw(dirname);
use File::Temp qw(tempdir);
use Test::More;

my $script = dirname(dirname(abs_path(__FILE__))) . '/scripts/tune-kernel';
my $dir = tempdir('push-stream-test-XXXXXX', TMPDIR => 1, CLEANUP => 1);

# In the place of sysctl: the machine of a test stays as it is.
open my $sysctl, '>', "$dir/sysctl" or die;
print {$sysctl} "#!/bin/sh\necho \"\$*\" >>$dir/calls\n[ -z \"\${FAIL-}\" ]\n";
close $sysctl;
chmod 0755, "$dir/sysctl" or die;
$ENV{PATH} = "$dir:$ENV{PATH}";
my $calls = sub { open my $file, '<', "$dir/calls" or return (); my @lines = <$file>; unlink "$dir/calls"; chomp @lines; @lines };
my $now = sub ($name) {
    open my $file, '<', '/proc/sys/' . $name =~ tr{.}{/}r or return undef;
    return join ' ', split ' ', <$file>;
};

my $said = `$script`;
is $?, 0, 'it says';
my %wanted = $said =~ /^([\w.-]+) = (.+)$/mg;
cmp_ok scalar keys %wanted, '>', 10, 'what it would set';
is_deeply [ grep { !defined $now->($_) } sort keys %wanted ], [], 'which all exist here';
unlike $said, qr/^(?!#|[\w.-]+ = [\d ]+$).+$/m, 'as a file for sysctl';
my $reasons = () = $said =~ /^# .+\n[\w.-]+ = /mg;
is $reasons, scalar keys %wanted, 'each with its reason';
is_deeply [ $calls->() ], [], 'and sets nothing';

is system("$script --apply >$dir/output 2>&1"), 0, '--apply';
my @set = $calls->();
my %set = map { /^-q -w ([\w.-]+)=(.+)$/ } @set;
my %different = map { $now->($_) eq $wanted{$_} ? () : ($_ => $wanted{$_}) } keys %wanted;
is_deeply \%set, \%different, 'sets what is not so already';
{
    local $ENV{FAIL} = 1;
    is system("$script --apply >$dir/output 2>&1") >> 8, %different ? 2 : 0, 'and says if it cannot';
}

my %few = `$script --readers 1` =~ /^([\w.-]+) = (.+)$/mg;
for my $limit (grep { defined $now->($_) } qw(fs.nr_open fs.file-max net.core.somaxconn net.ipv4.tcp_max_tw_buckets net.ipv4.tcp_max_orphans)) {
    cmp_ok $few{$limit}, '>=', $now->($limit), "$limit is never lowered";
}
for my $wrong ('--readers', '--readers 0', '--readers many', '--what') {
    is system("$script $wrong >$dir/output 2>&1") >> 8, 2, "\"$wrong\" is refused";
}

done_testing;
