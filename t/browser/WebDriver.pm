# A headless Chromium, driven through chromedriver (https://www.w3.org/TR/webdriver2/) with what Perl itself brings.
package WebDriver;

use v5.36;

use File::Temp ();
use HTTP::Tiny ();
use IO::Socket::INET ();
use JSON::PP ();
use POSIX ();
use Time::HiRes qw(sleep time);

my $json = JSON::PP->new->utf8->canonical->allow_nonref;
my $ELEMENT = 'element-6066-11e4-a52e-4f735466cecf';

# What keeps Chromium from phoning home, and lets it run as root in a container.
my @FLAGS = qw(
    --headless=new --no-sandbox --disable-gpu --disable-quic --disable-dev-shm-usage --no-first-run --no-default-browser-check
    --disable-background-networking --disable-component-update --disable-sync --disable-default-apps --disable-extensions
    --disable-backgrounding-occluded-windows --disable-renderer-backgrounding --disable-background-timer-throttling
);

# Starts chromedriver on a free port and opens a browser with a profile of its own. Named arguments: size => [w, h],
# flags => [...].
sub new ($class, %args) {
    my $dir = File::Temp->newdir('push-stream-browser-XXXXXX', TMPDIR => 1);
    my $listener = IO::Socket::INET->new(Listen => 1, LocalAddr => '127.0.0.1') or die "no free port: $!";
    my $port = $listener->sockport;
    close $listener;

    my $pid = fork // die "fork: $!";
    if (!$pid) {
        # A group of its own, so that no browser process is left behind whatever happens to the driver.
        setpgrp(0, 0);
        open STDOUT, '>', "$dir/driver.log";
        open STDERR, '>&', \*STDOUT;
        exec 'chromedriver', "--port=$port" or POSIX::_exit(127);
    }
    my $self = bless {
        pid => $pid, owner => $$, dir => $dir, base => "http://127.0.0.1:$port",
        http => HTTP::Tiny->new(timeout => 60, keep_alive => 1),
    }, $class;
    wait_for(20, 'chromedriver', sub { $self->{http}->get("$self->{base}/status")->{success} });

    my ($width, $height) = @{ $args{size} // [1100, 900] };
    my $session = $self->call(POST => '/session', {
        capabilities => { alwaysMatch => { browserName => 'chrome', 'goog:chromeOptions' => {
            args => [@FLAGS, "--user-data-dir=$dir/profile", "--window-size=$width,$height", @{ $args{flags} // [] }],
        } } },
    });
    $self->{base} .= "/session/$session->{sessionId}";
    return $self;
}

# One command; dies with the driver's own words if it fails.
sub call ($self, $method, $path, $body = {}) {
    my $response = $self->{http}->request($method, $self->{base} . $path,
        $method eq 'POST' ? { content => $json->encode($body), headers => { 'Content-Type' => 'application/json' } } : {});
    my $value = eval { $json->decode($response->{content})->{value} };
    die "$method $path: " . (ref $value eq 'HASH' && $value->{message} || $response->{content}) . "\n" unless $response->{success};
    return $value;
}

sub window ($self) { return $self->call(GET => '/window') }
sub new_window ($self) { return $self->call(POST => '/window/new', { type => 'window' })->{handle} }
sub switch_to ($self, $window) { return $self->call(POST => '/window', { handle => $window }) }
sub close_window ($self) { return $self->call(DELETE => '/window') }
sub open_url ($self, $url) { return $self->call(POST => '/url', { url => $url }) }

# Runs JavaScript as a function body and returns what it returns.
sub js ($self, $script, @args) {
    return $self->call(POST => '/execute/sync', { script => $script, args => \@args });
}

sub find ($self, $css) { return $self->call(POST => '/element', { using => 'css selector', value => $css })->{$ELEMENT} }
sub click ($self, $css) { return $self->call(POST => '/element/' . $self->find($css) . '/click') }
sub type_into ($self, $css, $text) { return $self->call(POST => '/element/' . $self->find($css) . '/value', { text => $text }) }

# Commands of Chromium's own protocol, for what WebDriver cannot do (offline, dark mode).
sub devtools ($self, $command, $params = {}) {
    return $self->call(POST => '/goog/cdp/execute', { cmd => $command, params => $params });
}

# Polls until the code answers true, and returns that; dies after so many seconds.
sub wait_for ($seconds, $what, $code) {
    my $end = time + $seconds;
    while (1) {
        my $value = $code->();
        return $value if $value;
        die "waited ${seconds}s in vain for $what\n" if time > $end;
        sleep 0.02;
    }
}

sub DESTROY ($self) {
    return unless $self->{pid} && $self->{owner} == $$;
    local ($?, $@);
    eval { $self->call(DELETE => '') };
    kill TERM => -$self->{pid};
    waitpid $self->{pid}, 0;
}

1;
