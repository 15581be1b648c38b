package PushStream::Redis;

# A Redis of one's own, which writes everything to its file before it answers.

use v5.36;

use File::Temp ();
use IO::Socket::INET;

use PushStream::Program;
use PushStream::Test qw(wait_until);

# Returns when it answers; further options as on its command line.
sub start ($class, @options) {
    my $dir = File::Temp->newdir('push-stream-test-XXXXXX', TMPDIR => 1);
    my $self = bless { dir => $dir, port => PushStream::Program->free_port, options => \@options }, $class;
    $self->launch;
    return $self;
}

sub port ($self) { return $self->{port} }
sub url ($self) { return "redis://127.0.0.1:$self->{port}/0" }

# Starts it on the files that it left behind.
sub launch ($self) {
    my @options = (qw(--bind 127.0.0.1 --save), '', qw(--appendonly yes --appendfsync always), @{ $self->{options} });
    $self->{program} = PushStream::Program->start("$self->{dir}/log", 'redis-server', '--port', $self->{port}, '--dir', "$self->{dir}", @options);
    wait_until { $self->answers } 60 or die "Redis does not start\n";
}

sub answers ($self) { return ($self->command('PING') // '') eq '+PONG' }

# By default SIGKILL.
sub end ($self, $signal = 'KILL') { return $self->{program}->end($signal) }

sub kill_and_restart ($self) {
    $self->end;
    $self->launch;
}

# Before its directory goes.
sub DESTROY ($self) { delete $self->{program} }

# One command; its answer, an array's elements joined by blanks. undef if there was none.
sub command ($self, @words) {
    return ($self->commands(\@words))[0];
}

# Several on one connection, all sent before the first answer is read.
sub commands ($self, @commands) {
    local $SIG{PIPE} = 'IGNORE';
    my $socket = IO::Socket::INET->new(PeerAddr => "127.0.0.1:$self->{port}") or return;
    for my $words (@commands) {
        print {$socket} '*' . @$words . "\r\n", map { '$' . length($_) . "\r\n$_\r\n" } @$words;
    }
    $socket->flush;
    # All of them: whoever closes before that takes back what the server has not read yet.
    return map { scalar _answer($socket) } @commands;
}

sub _answer ($socket) {
    my $line = <$socket> // return undef;
    $line =~ s/\r\n\z// or return undef;
    my ($kind, $rest) = $line =~ /^(.)(.*)/;
    return $line if $kind =~ /[-+:]/;
    return '' if $rest < 0;
    if ($kind eq '$') {
        read($socket, my $text, $rest + 2) // return undef;
        return length $text == $rest + 2 ? substr $text, 0, $rest : undef;
    }
    my @all = map { _answer($socket) // return undef } 1 .. $rest;
    return "@all";
}

1;
