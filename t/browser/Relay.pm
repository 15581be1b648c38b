# A bad network between a browser and a server: it passes bytes on until it is told to break connections, in the middle of whatever
# they carry.
package Relay;

use v5.36;

use File::Temp ();
use IO::Select ();
use IO::Socket::INET ();
use POSIX ();
use Socket qw(SOL_SOCKET SO_LINGER);
use Time::HiRes qw(sleep);

# Listens on a port of its own and connects to `to` on the loopback interface.
sub new ($class, $to) {
    my $listener = IO::Socket::INET->new(Listen => 64, LocalAddr => '127.0.0.1', ReuseAddr => 1) or die "no free port: $!";
    my $self = bless { dir => File::Temp->newdir('push-stream-relay-XXXXXX', TMPDIR => 1), port => $listener->sockport, owner => $$ }, $class;
    $self->pass;
    my $pid = fork // die "fork: $!";
    if (!$pid) {
        $SIG{PIPE} = 'IGNORE';
        eval { run($listener, $to, $self->{dir} . '/mode', $self->{dir} . '/cuts') };
        POSIX::_exit(0);
    }
    $self->{pid} = $pid;
    return $self;
}

sub port ($self) { return $self->{port} }

# Lets everything through.
sub pass ($self) { return $self->_set('pass') }

# Breaks each connection after so many bytes from the server.
sub cut ($self, $min, $max) { return $self->_set("cut $min $max") }

# Breaks all connections and takes no new ones.
sub close_all ($self) { return $self->_set('closed') }

# How many connections were broken.
sub cuts ($self) { return -s $self->{dir} . '/cuts' || 0 }

sub _set ($self, $mode) {
    open my $file, '>', $self->{dir} . '/mode.new' or die $!;
    print {$file} $mode;
    close $file;
    rename $self->{dir} . '/mode.new', $self->{dir} . '/mode' or die $!;
    return $self;
}

sub run ($listener, $to, $mode_file, $cuts_file) {
    my $select = IO::Select->new($listener);
    my (%other, %left, %is_server);
    my $break = sub ($socket, $reset) {
        for my $end (grep { defined } $socket, $other{$socket}) {
            setsockopt $end, SOL_SOCKET, SO_LINGER, pack 'll', 1, 0 if $reset;
            $select->remove($end);
        }
        my $peer = delete $other{$socket};
        delete @other{ grep { defined } $peer };
        delete @left{ grep { defined } $socket, $peer };
        delete @is_server{ grep { defined } $socket, $peer };
        close $_ for grep { defined } $socket, $peer;
        if ($reset) {
            open my $file, '>>', $cuts_file;
            print {$file} '.';
        }
    };
    while (1) {
        my @ready = $select->can_read(0.05);
        open my $file, '<', $mode_file or return;
        my ($mode, $min, $max) = split ' ', <$file> // 'pass';
        close $file;
        if ($mode eq 'closed') {
            $break->($_, 1) for grep { exists $other{$_} && $is_server{$_} } $select->handles;
        }
        for my $socket (@ready) {
            if ($socket == $listener) {
                my $client = $listener->accept or next;
                my $server = $mode ne 'closed' && IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $to);
                if (!$server) { close $client; next }
                @other{ $client, $server } = ($server, $client);
                $is_server{$server} = 1;
                $left{$server} = $min + int rand($max - $min + 1) if $mode eq 'cut';
                $select->add($client, $server);
                next;
            }
            next if !exists $other{$socket};
            my $read = sysread $socket, my $bytes, 16384;
            if (!$read) { $break->($socket, 0); next }
            my $broken = 0;
            if ($is_server{$socket} && $mode eq 'cut') {
                $left{$socket} //= $min + int rand($max - $min + 1);
                $broken = $left{$socket} <= length $bytes;
                $bytes = substr $bytes, 0, $left{$socket} if $broken;
                $left{$socket} -= length $bytes;
            }
            my $sent = 0;
            while ($sent < length $bytes) {
                my $now = syswrite $other{$socket}, $bytes, length($bytes) - $sent, $sent;
                last if !$now;
                $sent += $now;
            }
            # What was passed on is to arrive: a reset would take it along.
            if ($broken) {
                sleep 0.002;
                $break->($socket, 1);
            }
        }
    }
}

sub DESTROY ($self) {
    return if $self->{owner} != $$ || !$self->{pid};
    local ($?, $!);
    kill KILL => $self->{pid};
    waitpid $self->{pid}, 0;
}

1;
