# The demo, started by scripts/run on free ports and stopped as Ctrl-C would.
package Demo;

use v5.36;

use Cwd qw(abs_path);
use File::Basename qw(dirname);
use File::Path qw(remove_tree);
use Test::More ();

my $root = abs_path(dirname(abs_path(__FILE__)) . '/../..');

# quiet => 1 for a test in which the demo is meant to complain.
sub start ($class, %options) {
    pipe my $read, my $write or die "pipe: $!";
    my $pid = fork // die "fork: $!";
    if (!$pid) {
        open STDOUT, '>&', $write or die $!;
        close $read;
        open STDERR, '>', '/dev/null' if $options{quiet};
        exec "$root/scripts/run", '--port', 0 or die "scripts/run: $!";
    }
    close $write;
    my $self = bless { pid => $pid, owner => $$, expected => [] }, $class;
    while (my $line = <$read>) {
        $self->{url} = $1 if $line =~ m{^\s+(http://127\.0\.0\.1:\d+/)$};
        last if $line =~ /^Ctrl-C/;
    }
    $self->{url} or die "scripts/run did not come up\n";
    ($self->{port}) = $self->{url} =~ /:(\d+)/;
    $self->{out} = $read;
    return $self;
}

sub url ($self) { return $self->{url} }
sub dir ($self) { return "$root/run/$self->{port}" }
sub nginx_pid ($self) { return slurp($self->dir . '/nginx.pid') =~ s/\s+\z//r }

# The children of the master that serve requests now (not those that leave after a reload).
sub nginx_workers ($self) {
    my $master = $self->nginx_pid;
    return grep { slurp("/proc/$_/cmdline") =~ /^nginx: worker process(?! is)/ }
        split ' ', slurp("/proc/$master/task/$master/children");
}

# A line of the error log that would be a failure, but is meant here.
sub expect_in_log ($self, $pattern) { push @{ $self->{expected} }, $pattern }

# What runs in the demo's directory.
sub processes ($self) {
    my $dir = $self->dir;
    return grep { (readlink("/proc/$_/cwd") // '') eq $dir } map { m{/proc/(\d+)$} ? $1 : () } glob '/proc/[0-9]*';
}

# Stops the demo, and looks at what it leaves: no process, and nothing alarming in the log.
sub stop ($self) {
    my $pid = delete $self->{pid} or return;
    my $log = $self->dir . '/error.log';
    kill TERM => $pid;
    waitpid $pid, 0;
    Test::More::is($? >> 8, 143, 'scripts/run ends when asked to');
    Test::More::is(join(' ', $self->processes), '', 'and leaves no process behind');
    my @alarming = grep { /\[(?:alert|crit|emerg)\]|exited on signal|open socket|panicked/ } split /\n/, slurp($log);
    for my $pattern (@{ $self->{expected} }) { @alarming = grep { !/$pattern/ } @alarming }
    Test::More::is(join("\n", @alarming), '', 'nothing alarming in the error log');
    remove_tree($self->dir) if Test::More->builder->is_passing;
}

sub slurp ($file) {
    open my $in, '<', $file or return '';
    local $/;
    return scalar <$in> // '';
}

sub DESTROY ($self) {
    return unless $self->{pid} && $self->{owner} == $$;
    local $?;
    kill TERM => $self->{pid};
    waitpid $self->{pid}, 0;
}

1;
