package PushStream::Program;

# A program that a test starts beside nginx, and that goes with the test, however that ends.

use v5.36;

use File::Basename qw(dirname);
use IO::Socket::INET;
use POSIX ();

my %running;

# Starts the command, or calls the piece of Perl; what it says is appended to the file `log`, in whose directory it runs.
sub start ($class, $log, @command) {
    my $pid = fork // die "cannot fork: $!\n";
    if (!$pid) {
        open STDOUT, '>>', $log or POSIX::_exit(127);
        open STDERR, '>&', \*STDOUT;
        # Some leave files where they are when they are killed.
        chdir dirname($log) or POSIX::_exit(127);
        if (ref $command[0]) { $command[0]->(); POSIX::_exit(0) }
        # Also if the test is killed.
        exec 'setpriv', '--pdeathsig', 'KILL', @command or do { print STDERR "$command[0]: $!\n"; POSIX::_exit(127) };
    }
    my $self = bless { pid => $pid, owner => $$ }, $class;
    $running{$pid} = $$;
    return $self;
}

sub pid ($self) { return $self->{pid} }

# Sends the signal and waits for the end. Returns the status as wait(2) has it.
sub end ($self, $signal = 'TERM') {
    kill $signal => $self->{pid};
    waitpid $self->{pid}, 0;
    delete $running{ $self->{pid} };
    return $?;
}

# Has it ended by itself?
sub has_ended ($self) {
    return 0 if waitpid($self->{pid}, POSIX::WNOHANG()) == 0;
    delete $running{ $self->{pid} };
    return 1;
}

# A port that was free a moment ago. Above those that other tests have fixed, and below those that the kernel gives to outgoing connections:
# whoever tries again and again to reach one of these while nobody listens there is in the end connected to himself, and has taken it.
sub free_port ($class) {
    for (1 .. 100) {
        my $port = 21000 + int rand 11000;
        my $socket = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => $port, Listen => 1, ReuseAddr => 1);
        return $port if $socket;
    }
    die "no free port\n";
}

# The one on the PATH, or nothing.
sub find ($class, $name) { return (grep { -x } map { "$_/$name" } split /:/, "$ENV{PATH}:/usr/sbin")[0] }

sub DESTROY ($self) {
    return if $self->{owner} != $$ || !$running{ $self->{pid} };
    local ($?, $!);
    $self->end('KILL');
}

END {
    local $?;
    my @left = grep { $running{$_} == $$ } keys %running;
    kill KILL => @left;
    waitpid $_, 0 for @left;
}

1;
