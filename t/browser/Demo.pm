# The demo, started by scripts/run on free ports and stopped as Ctrl-C would.
package Demo;

use strict;
use warnings;
use Cwd qw(abs_path);
use File::Basename qw(dirname);
use Test::More ();
use Time::HiRes qw(sleep time);

my $root = abs_path(dirname(abs_path(__FILE__)) . '/../..');

sub start {
    my ($class, @options) = @_;
    pipe my $read, my $write or die "pipe: $!";
    my $pid = fork // die "fork: $!";
    if (!$pid) {
        open STDOUT, '>&', $write or die $!;
        close $read;
        exec "$root/scripts/run", (@options ? @options : ('--port', 0)) or die "scripts/run: $!";
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

sub url { return $_[0]{url} }
sub dir { return "$root/run/$_[0]{port}" }
sub nginx_pid { my ($self) = @_; my $pid = slurp($self->dir . '/nginx.pid'); chomp $pid; return $pid }

# The children of the master that serve requests now (not those that leave after a reload).
sub nginx_workers {
    my ($self) = @_;
    my $master = $self->nginx_pid;
    return grep { slurp("/proc/$_/cmdline") =~ /worker process$|worker process\0/ }
        split ' ', slurp("/proc/$master/task/$master/children");
}

# A line of the error log that would be a failure, but is meant here.
sub expect_in_log { my ($self, $pattern) = @_; push @{ $self->{expected} }, $pattern; return }

# Stops the demo, and looks at what it leaves: no process, and nothing alarming in the log.
sub stop {
    my ($self) = @_;
    my $pid = delete $self->{pid} or return;
    my $dir = $self->dir;
    kill TERM => $pid;
    waitpid $pid, 0;
    Test::More::is($? >> 8, 143, 'scripts/run ends when asked to');
    my @left = grep { (readlink("/proc/$_/cwd") // '') eq $dir } map { m{/proc/(\d+)$} ? $1 : () } glob '/proc/[0-9]*';
    Test::More::is("@left", '', 'and leaves no process behind');
    my @alarming = grep { /\[(?:alert|crit|emerg)\]|signal \d+|open socket/ && !/signal (?:1|15) \(SIG|signal 17/ } split /\n/, slurp("$dir/error.log");
    for my $pattern (@{ $self->{expected} }) { @alarming = grep { !/$pattern/ } @alarming }
    Test::More::is(join("\n", @alarming), '', 'nothing alarming in the error log');
    return;
}

sub slurp {
    my ($file) = @_;
    open my $in, '<', $file or return '';
    local $/;
    return scalar <$in> // '';
}

sub DESTROY {
    my $self = shift;
    return unless $self->{pid} && $self->{owner} == $$;
    local $?;
    kill TERM => $self->{pid};
    waitpid $self->{pid}, 0;
    return;
}

1;
