package PushStream::RabbitMq;

# A RabbitMQ of one's own: Debian's, without the wrapper that wants to be another user, and with a name server of its own.

use v5.36;

use File::Temp ();
use IO::Socket::INET;

use PushStream::Program;
use PushStream::Test qw(wait_until);

# Where the package has its real scripts; nothing if it is not installed.
sub script ($class) {
    return (grep { m{/lib/.*/sbin/rabbitmq-server$} } split /\n/, qx{dpkg -L rabbitmq-server 2>&1})[0];
}

# Returns when it takes connections.
sub start ($class) {
    my $dir = File::Temp->newdir('push-stream-test-XXXXXX', TMPDIR => 1);
    my $self = bless { dir => $dir, map { $_ => PushStream::Program->free_port } qw(port names_port distribution_port) }, $class;
    mkdir "$dir/home", 0700 or die "cannot make $dir/home: $!\n";
    _write("$dir/rabbit.conf", "listeners.tcp.1 = 127.0.0.1:$self->{port}\ndisk_free_limit.absolute = 50MB\n");
    _write("$dir/enabled_plugins", '[].');
    # Else the first Erlang program starts one, which outlives everybody.
    $self->{names} = PushStream::Program->start("$dir/epmd", 'epmd', '-address', '127.0.0.1', '-port', $self->{names_port});
    wait_until { _listens($self->{names_port}) } 60 or die "epmd does not start\n";
    $self->launch;
    wait_until { $self->is_up } 120 or die 'RabbitMQ does not start: ' . _read("$dir/out") . "\n";
    return $self;
}

sub port ($self) { return $self->{port} }
sub url ($self) { return "amqp://127.0.0.1:$self->{port}/%2f" }

# Starts it on the files that it left behind, and does not wait for it.
sub launch ($self) {
    my $dir = $self->{dir};
    unlink "$dir/out";
    local %ENV = (
        %ENV,
        HOME => "$dir/home",
        ERL_EPMD_ADDRESS => '127.0.0.1',
        ERL_EPMD_PORT => $self->{names_port},
        RABBITMQ_NODENAME => "test$self->{names_port}\@localhost",
        RABBITMQ_DIST_PORT => $self->{distribution_port},
        RABBITMQ_MNESIA_BASE => "$dir/mnesia",
        RABBITMQ_LOG_BASE => "$dir/log",
        RABBITMQ_CONFIG_FILE => "$dir/rabbit.conf",
        RABBITMQ_ENABLED_PLUGINS_FILE => "$dir/enabled_plugins",
        RABBITMQ_PID_FILE => "$dir/pid",
        # The script then becomes the Erlang machine, and is not its parent.
        RUNNING_UNDER_SYSTEMD => 1,
        RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS => '+S 1:1 -kernel inet_dist_use_interface {127,0,0,1}',
    );
    $self->{program} = PushStream::Program->start("$dir/out", $self->script);
}

sub is_up ($self) { return _read("$self->{dir}/out") =~ /completed with/ && _listens($self->{port}) }

# By default SIGKILL.
sub end ($self, $signal = 'KILL') { return $self->{program}->end($signal) }

# Before their directory goes.
sub DESTROY ($self) { delete @$self{qw(program names)} }

sub _listens ($port) { return !!IO::Socket::INET->new(PeerAddr => "127.0.0.1:$port") }

sub _write ($path, $text) {
    open my $file, '>', $path or die "cannot write $path: $!\n";
    print {$file} $text;
    close $file;
}

sub _read ($path) {
    open my $file, '<', $path or return '';
    local $/;
    return <$file> // '';
}

1;
