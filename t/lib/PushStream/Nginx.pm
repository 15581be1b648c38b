package PushStream::Nginx;

# One nginx in a directory of its own.

use v5.36;

use Cwd qw(abs_path);
use File::Basename qw(dirname);
use File::Temp ();
use IO::Socket::INET;
use JSON::PP ();
use POSIX ':sys_wait_h';
use Time::HiRes qw(sleep time);

use PushStream::Client;
use PushStream::Http2;
use PushStream::Program;

my $TOP = abs_path(dirname(__FILE__) . '/../../..');

# Lines that fail a test which did not say that it expects them.
my $ALARMING = qr/\[(?:alert|crit|emerg)\]|exited on signal|open socket|panicked/;

sub slowness { return $ENV{TEST_SLOWNESS} || 1 }

sub binary { return $ENV{TEST_NGINX_BINARY} || 'nginx' }

sub module { return abs_path($ENV{PUSH_STREAM_MODULE} || "$TOP/target/release/libngx_http_push_stream_module.so") }

# Starts nginx and returns when it accepts connections; with daemon => 1 as a daemon. In the configuration
#
#     %%MAIN%%      loads the module, sets user, workers, pid, error log (also %%MAIN_WITHOUT_MODULE%%)
#     %%HTTP%%      keeps all files in the directory
#     %%PORT%%      is a free port, the same everywhere in the text
#     %%DIR%%       is the directory
#     %%CERTIFICATE%%, %%KEY%%   are files for TLS
sub start ($class, $conf, %options) {
    my $self;
    for my $attempt (1 .. 5) {
        $self = $class->_new(%options);
        $self->write_conf($conf);
        $self->_launch;
        return $self if $self->_is_up;
        last unless $self->log =~ /Address already in use/;
    }
    die "nginx did not start: " . $self->{output}->() . $self->log . "\n";
}

# Runs `nginx -t`. Returns whether it succeeds, all it said, and its exit status as wait(2) has it.
sub check ($class, $conf, %options) {
    my $self = $class->_new(workers => 1, %options);
    $self->write_conf($conf);
    my $pid = $self->_spawn('-t');
    waitpid $pid, 0;
    my $status = $?;
    return ($status == 0, $self->{output}->() . $self->log, $status);
}

sub _new ($class, %options) {
    my $dir = File::Temp->newdir('push-stream-test-XXXXXX', TMPDIR => 1, CLEANUP => !$ENV{TEST_KEEP});
    chmod 0755, "$dir";
    my $self = bless {
        dir => $dir, workers => $options{workers} // 1, daemon => $options{daemon}, expected => [], port => PushStream::Program->free_port,
    }, $class;
    mkdir "$dir/html" or die "cannot make $dir/html: $!\n";
    return $self;
}

sub dir ($self) { return "$self->{dir}" }
sub port ($self) { return $self->{port} }
sub worker_count ($self) { return $self->{workers} }
sub master ($self) { return $self->{master} }

sub write_conf ($self, $conf) {
    my $dir = $self->dir;
    my $user = $> == 0 ? 'user root;' : '';
    # An nginx that takes over from another gets no more of the environment than the configuration says.
    my $environment = $ENV{TEST_SANITIZER} ? 'env ASAN_OPTIONS;' : '';
    $self->{single} = $conf =~ /^\s*master_process\s+off;/m;
    my $main = <<"END" =~ s/\n\z//r;
$user $environment
daemon @{[ $self->{daemon} ? 'on' : 'off' ]};
worker_processes $self->{workers};
pid $dir/nginx.pid;
error_log $dir/error.log info;
END
    my %text = (
        MAIN => "load_module @{[module()]};\n$main",
        MAIN_WITHOUT_MODULE => $main,
        HTTP => "access_log $dir/access.log;\n" . join('', map { "${_}_temp_path $dir/$_;\n" } _temp_paths()),
        PORT => $self->{port},
        DIR => $dir,
    );
    if (transport() ne 'http1' && _to_tls(\$conf)) {
        $text{HTTP} .= "ssl_certificate %%CERTIFICATE%%;\nssl_certificate_key %%KEY%%;\n";
        $text{HTTP} .= "ssl_protocols TLSv1.2 TLSv1.3;\npush_stream_detach_tls on;\n" if transport() eq 'taken-tls' && $conf !~ /push_stream_detach_tls/;
        $self->{tls} = 1;
    }
    $conf =~ s/%%HTTP%%/$text{HTTP}/;
    @text{qw(CERTIFICATE KEY)} = _certificate() if $conf =~ /%%CERTIFICATE%%/;
    $conf =~ s{%%(\w+)%%}{$text{$1} // die "no such placeholder: %%$1%%\n"}ge;
    # At once: nginx may be reading the one before, for a reload that somebody else asked for.
    open my $file, '>', "$dir/nginx.conf.new" or die "cannot write nginx.conf: $!\n";
    print {$file} $conf;
    close $file or die "cannot write nginx.conf: $!\n";
    rename "$dir/nginx.conf.new", "$dir/nginx.conf" or die "cannot write nginx.conf: $!\n";
}

# How requests reach nginx: plain HTTP/1.1, HTTP/1.1 over TLS, the same with TLS taken over from OpenSSL, or HTTP/2 over TLS. A configuration that says itself what its
# port speaks is left alone.
sub transport { return $ENV{TEST_TRANSPORT} || 'http1' }

# False if nothing was to be changed.
sub _to_tls ($conf) {
    my $words = transport() eq 'http2' ? 'ssl http2' : 'ssl';
    $$conf =~ s{(listen\s+127\.0\.0\.1:%%PORT%%)((?:(?!\bssl\b|\bhttp2\b)[^;])*);}{$1$2 $words;}g or return 0;
    $$conf =~ s{http://127\.0\.0\.1:%%PORT%%}{https://127.0.0.1:%%PORT%%}g;
    return 1;
}

# One for all servers of a test: (file of the certificate, file of its key).
sub _certificate {
    state $dir = File::Temp->newdir('push-stream-test-XXXXXX', TMPDIR => 1);
    state @files = do {
        my @made = map { "$dir/$_.pem" } qw(certificate key);
        qx{openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost -out $made[0] -keyout $made[1] 2>&1};
        $? == 0 or die "openssl made no certificate\n";
        @made;
    };
    return @files;
}

# Those that this nginx knows: it may have been built without some of its modules.
sub _temp_paths {
    return 'client_body', grep { _build() !~ /--without-http_${_}_module/ } qw(proxy fastcgi uwsgi scgi);
}

# Was this nginx built with a module that it has not by itself? E.g. 'http_auth_request'.
sub has_module ($class, $name) {
    return _build() =~ /--with-${name}_module\b/;
}

sub _build {
    state $build = qx{@{[binary()]} -V 2>&1};
    return $build;
}

sub _path {
    my $binary = binary();
    return $binary if $binary =~ m{/};
    return (grep { -x } map { "$_/$binary" } split /:/, "$ENV{PATH}:/usr/sbin")[0] // $binary;
}

sub _spawn ($self, @arguments) {
    my $dir = $self->dir;
    my $pid = fork // die "cannot fork: $!\n";
    if (!$pid) {
        open STDIN, '<', '/dev/null';
        open STDOUT, '>', "$dir/output";
        open STDERR, '>&', \*STDOUT;
        # With its path, for nginx starts itself again when its binary is upgraded.
        exec { _path() } _path(), '-p', "$dir/", '-e', "$dir/error.log", '-c', "$dir/nginx.conf", @arguments
            or POSIX::_exit(127);
    }
    $self->{output} = sub { _slurp("$dir/output") };
    return $pid;
}

sub _launch ($self) {
    $self->{owner} = $$;
    $self->{master} = $self->_spawn;
    return if !$self->{daemon};
    waitpid $self->{master}, 0;
    $self->{master} = undef;
    return if $?;
    # The daemon writes its file after the process that started it has ended.
    for (1 .. 500) {
        last if $self->follow_pid_file;
        sleep 0.01;
    }
}

# nginx as a daemon is the process of its pid file, which another may be after an upgrade of the binary.
sub follow_pid_file ($self) {
    my ($master) = _slurp($self->dir . '/nginx.pid') =~ /(\d+)/;
    push @{ $self->{former} }, $self->{master} if $self->{master} && $self->{master} != ($master // 0);
    return $self->{master} = $master;
}

# Starts it again after its end, with the same files.
sub launch_again ($self) {
    $self->_launch;
    $self->_is_up or die "nginx did not start again: " . $self->log_tail;
}

sub _is_up ($self) {
    my $deadline = time + 10 * slowness();
    while (time < $deadline) {
        return 0 if !$self->is_running;
        if (IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $self->{port})) {
            # The sockets listen before the workers live.
            return 1 if $self->{single} || @{[ $self->worker_pids ]} == $self->{workers};
        }
        sleep 0.01;
    }
    return 0;
}

# --- requests ---

# A connection that speaks HTTP/1, over TLS if the test runs over TLS.
sub connect ($self, %options) {
    return PushStream::Client->new($self->{port}, ($self->{tls} ? (tls => ['http/1.1']) : ()), %options);
}

# Sends a request on a connection of its own; the caller reads when it likes. What only HTTP/1 has (a version, a body in
# chunks, an upgrade) is sent over HTTP/1.
sub open ($self, $method, $uri, %options) {
    my $http1 = $options{version} || grep { /^(?:Transfer-Encoding|Upgrade|Connection|Content-Length|Expect)$/i } keys %{ $options{headers} // {} };
    my $client = $self->{tls} && transport() eq 'http2' && !$http1 ? PushStream::Http2->new($self->{port}) : $self->connect;
    $client->send_request($method, $uri, %options);
    return $client;
}

# A whole exchange on a connection of its own.
sub request ($self, $method, $uri, %options) {
    my $response = eval { $self->open($method, $uri, %options)->response };
    # A worker that leaves closes connections of HTTP/2 that have just come; a question may be asked again (RFC 9113 section 9.1).
    return $response // (_is_worth_another_try($@) && $method eq 'GET' ? $self->open($method, $uri, %options)->response : die $@);
}

sub _is_worth_another_try ($error) { return transport() eq 'http2' && $error =~ /the connection ended/ }

sub get ($self, $uri, %headers) { return $self->request(GET => $uri, headers => \%headers) }
sub post ($self, $uri, $body, %headers) { return $self->request(POST => $uri, headers => \%headers, body => $body) }
sub put ($self, $uri, $body, %headers) { return $self->request(PUT => $uri, headers => \%headers, body => $body) }
sub delete ($self, $uri, %headers) { return $self->request(DELETE => $uri, headers => \%headers) }

# The body of a GET, from JSON.
sub json ($self, $uri) {
    my $response = $self->get($uri);
    die "GET $uri: status " . $response->status . "\n" if $response->status != 200;
    return JSON::PP::decode_json($response->body);
}

# Opens a stream and returns when its response head has arrived.
sub subscribe ($self, $uri, %headers) {
    my $client = $self->open(GET => $uri, headers => \%headers);
    $client->head;
    return $client;
}

# The figures of one channel, or of the whole zone; {} for a channel that does not exist. Needs a location /status with
# push_stream_channels_statistics and the path $arg_id.
sub figures ($self, $id = undef) {
    my $response = $self->get(defined $id ? "/status?id=$id" : '/status');
    return {} if $response->status == 404;
    die 'no figures: status ' . $response->status . "\n" if $response->status != 200;
    return $response->json;
}

# --- processes ---

sub is_running ($self) {
    return 0 if !$self->{master};
    return is_alive($self->{master}) if $self->{daemon};
    return 1 if waitpid($self->{master}, WNOHANG) == 0;
    $self->{exit_status} = $?;
    $self->{master} = undef;
    return 0;
}

# Does a process run that is not ours? What has ended may stay as a zombie.
sub is_alive ($pid) {
    my ($state) = _slurp("/proc/$pid/stat") =~ /.*\) (\S)/s;
    return defined $state && $state ne 'Z';
}

# The workers of all generations that still run; those that are leaving only if asked for.
sub worker_pids ($self, %options) {
    my @pids;
    for my $pid (_children($self->{master})) {
        my $name = _slurp("/proc/$pid/cmdline");
        next if $name !~ /^nginx: worker process/;
        next if $name =~ /is shutting down/ && !$options{leaving};
        push @pids, $pid;
    }
    return @pids;
}

sub _children ($pid) {
    return map { split ' ' } map { _slurp($_) } glob "/proc/$pid/task/*/children";
}

sub signal ($self, $signal, $pid = $self->{master}) {
    kill $signal, $pid or die "cannot send $signal to $pid: $!\n";
}

# Reads the configuration again, a new one if given. Returns when the new workers are there and the old ones are gone.
sub reload ($self, $conf = undef) {
    $self->write_conf($conf) if defined $conf;
    my %old = map { $_ => 1 } $self->worker_pids;
    $self->signal('HUP');
    my $deadline = time + 15 * slowness();
    while (time < $deadline) {
        my @pids = $self->worker_pids(leaving => 1);
        return if @pids == $self->{workers} && !grep { $old{$_} } @pids;
        sleep 0.01;
    }
    die "the reload did not come to its end\n";
}

# Kills a worker as the kernel does when memory runs out. Returns when the master has replaced it.
sub kill_worker ($self, $pid) {
    $self->expect_in_log(qr/worker process $pid exited on signal 9/);
    $self->signal(KILL => $pid);
    my $deadline = time + 10 * slowness();
    while (time < $deadline) {
        my @pids = $self->worker_pids;
        return if @pids == $self->{workers} && !grep { $_ == $pid } @pids;
        sleep 0.01;
    }
    die "worker $pid was not replaced\n";
}

# TERM: returns the exit status of nginx, 0 if all is well.
sub stop ($self) { return $self->_end('TERM') }

# QUIT
sub quit ($self) { return $self->_end('QUIT') }

sub _end ($self, $signal) {
    $self->signal($signal);
    return $self->wait_for_exit;
}

sub wait_for_exit ($self, $seconds = 10) {
    my $deadline = time + $seconds * slowness();
    while ($self->is_running) {
        if (time > $deadline) {
            $self->_destroy;
            die "nginx did not end\n";
        }
        sleep 0.01;
    }
    return $self->{exit_status};
}

# Whatever happens to a test, no nginx of it stays behind.
sub _destroy ($self) {
    my @masters = ($self->is_running ? $self->{master} : (), grep { is_alive($_) } @{ $self->{former} // [] });
    kill KILL => @masters, map { _children($_) } @masters;
    waitpid $_, 0 for @masters;
    $self->{master} = undef;
}

sub DESTROY ($self) {
    local ($@, $?, $!);
    $self->_destroy if ($self->{owner} // 0) == $$;
}

# --- the error log ---

sub log ($self) { return _slurp($self->dir . '/error.log') }

sub log_tail ($self) {
    my @lines = split /^/, $self->log;
    splice @lines, 0, @lines - 30 if @lines > 30;
    return join '', "\n", @lines;
}

# Says that lines like this are part of the test.
sub expect_in_log ($self, $pattern) {
    push @{ $self->{expected} }, $pattern;
}

sub wait_for_log ($self, $pattern, $seconds = 5) {
    my $deadline = time + $seconds * slowness();
    while (1) {
        return 1 if $self->log =~ $pattern;
        return 0 if time > $deadline;
        sleep 0.01;
    }
}

# Lines that nobody expected.
sub complaints ($self) {
    my @lines = grep { $_ =~ $ALARMING } split /^/, $self->log;
    for my $pattern (@{ $self->{expected} }) {
        @lines = grep { $_ !~ $pattern } @lines;
    }
    return @lines;
}

sub _slurp ($path) {
    CORE::open my $file, '<', $path or return '';
    local $/;
    return <$file> // '';
}

1;
