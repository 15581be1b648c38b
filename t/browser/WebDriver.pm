# A headless Chromium, driven through chromedriver (https://www.w3.org/TR/webdriver2/) with what Perl itself brings.
package WebDriver;

use strict;
use warnings;
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
sub new {
    my ($class, %args) = @_;
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
sub call {
    my ($self, $method, $path, $body) = @_;
    my $response = $self->{http}->request($method, $self->{base} . $path,
        $method eq 'POST' ? { content => $json->encode($body // {}), headers => { 'Content-Type' => 'application/json' } } : {});
    my $value = eval { $json->decode($response->{content})->{value} };
    die "$method $path: " . (ref $value eq 'HASH' && $value->{message} || $response->{content}) . "\n" unless $response->{success};
    return $value;
}

sub window { return $_[0]->call(GET => '/window') }
sub new_window { return $_[0]->call(POST => '/window/new', { type => 'window' })->{handle} }
sub switch_to { return $_[0]->call(POST => '/window', { handle => $_[1] }) }
sub open_url { return $_[0]->call(POST => '/url', { url => $_[1] }) }
sub resize { return $_[0]->call(POST => '/window/rect', { width => $_[1], height => $_[2] }) }

# Runs JavaScript as a function body and returns what it returns.
sub js {
    my ($self, $script, @args) = @_;
    return $self->call(POST => '/execute/sync', { script => $script, args => \@args });
}

sub find { return $_[0]->call(POST => '/element', { using => 'css selector', value => $_[1] })->{$ELEMENT} }
sub click { my ($self, $css) = @_; return $self->call(POST => '/element/' . $self->find($css) . '/click') }
sub type_into { my ($self, $css, $text) = @_; return $self->call(POST => '/element/' . $self->find($css) . '/value', { text => $text }) }

sub screenshot {
    my ($self, $file) = @_;
    require MIME::Base64;
    open my $out, '>:raw', $file or die "$file: $!";
    print {$out} MIME::Base64::decode_base64($self->call(GET => '/screenshot'));
    close $out;
    return;
}

# Commands of Chromium's own protocol, for what WebDriver cannot do (offline, dark mode).
sub devtools {
    my ($self, $command, $params) = @_;
    return $self->call(POST => '/goog/cdp/execute', { cmd => $command, params => $params // {} });
}

# Polls until the code answers true, and returns that; dies after so many seconds.
sub wait_for {
    my ($seconds, $what, $code) = @_;
    my $end = time + $seconds;
    while (1) {
        my $value = $code->();
        return $value if $value;
        die "waited ${seconds}s in vain for $what\n" if time > $end;
        sleep 0.02;
    }
    return;
}

sub DESTROY {
    my $self = shift;
    return unless $self->{pid} && $self->{owner} == $$;
    local ($?, $@);
    eval { $self->call(DELETE => '') };
    kill TERM => -$self->{pid};
    waitpid $self->{pid}, 0;
    return;
}

1;
