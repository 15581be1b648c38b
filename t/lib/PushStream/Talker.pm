# A program whose input and output this process has, such as `openssl s_client`. It ends with its object.
package PushStream::Talker;

use v5.36;

use IO::Select;
use IPC::Open3 ();
use PushStream::Nginx;
use Time::HiRes qw(time);

sub new ($class, @command) {
    my $self = bless { text => '' }, $class;
    $self->{pid} = IPC::Open3::open3($self->{in}, $self->{out}, undef, @command);
    $self->{in}->autoflush(1);
    return $self;
}

sub say ($self, $text) { print { $self->{in} } $text }

# Waits until it has said that.
sub hears ($self, $wanted) {
    my $deadline = time + 10 * PushStream::Nginx::slowness();
    until ($self->{text} =~ s/\A.*?\Q$wanted\E//s) {
        my $left = $deadline - time;
        return 0 if $left <= 0 || !IO::Select->new($self->{out})->can_read($left);
        sysread($self->{out}, $self->{text}, 65536, length $self->{text}) or return 0;
    }
    return 1;
}

sub DESTROY ($self) {
    local ($?, $!);
    kill KILL => $self->{pid};
    waitpid $self->{pid}, 0;
}

1;
