# A headless Firefox with the methods of WebDriver.pm that tests of pages use. It speaks WebDriver BiDi by itself
# (https://w3c.github.io/webdriver-bidi/), so there is no driver in between: commands and answers are JSON in a WebSocket.
package Firefox;

use v5.36;

use File::Temp ();
use IO::Select ();
use IO::Socket::INET ();
use JSON::PP ();
use POSIX ();
use PushStream::WebSocket ();
use Time::HiRes qw(time);
use WebDriver ();

my $json = JSON::PP->new->utf8->canonical->allow_nonref;

# No first page, nothing sent home, no page kept to go back to, and timers that do not wait in the background.
my %PREFERENCES = (
    'browser.shell.checkDefaultBrowser' => JSON::PP::false, 'browser.startup.homepage_override.mstone' => 'ignore',
    'datareporting.policy.dataSubmissionEnabled' => JSON::PP::false, 'toolkit.telemetry.server' => '',
    'app.update.disabledForTesting' => JSON::PP::true, 'app.normandy.enabled' => JSON::PP::false,
    'services.settings.server' => 'data:,', 'network.captive-portal-service.enabled' => JSON::PP::false,
    'network.connectivity-service.enabled' => JSON::PP::false, 'browser.safebrowsing.update.enabled' => JSON::PP::false,
    'extensions.systemAddon.update.enabled' => JSON::PP::false, 'network.http.speculative-parallel-limit' => 0,
    'browser.sessionhistory.max_total_viewers' => 0, 'dom.min_background_timeout_value' => 4,
    'dom.timeout.enable_budget_timer_throttling' => JSON::PP::false, 'network.http.referer.disallowCrossSiteRelaxingDefault' => JSON::PP::false,
);

sub program ($class) { return (grep { -x } map { my $dir = $_; map { "$dir/$_" } 'firefox-esr', 'firefox' } split /:/, $ENV{PATH})[0] }

# Further preferences by name.
sub new ($class, %more) {
    my %preferences = (%PREFERENCES, %more);
    my $dir = File::Temp->newdir('push-stream-browser-XXXXXX', TMPDIR => 1);
    mkdir "$dir/profile" or die $!;
    open my $file, '>', "$dir/profile/user.js" or die $!;
    say {$file} "user_pref(\"$_\", ", $json->encode($preferences{$_}), ');' for sort keys %preferences;
    close $file;

    my $pid = fork // die "fork: $!";
    if (!$pid) {
        setpgrp(0, 0);
        open STDOUT, '>', "$dir/log";
        open STDERR, '>&', \*STDOUT;
        $ENV{HOME} = "$dir";
        exec $class->program, qw(--headless --no-remote --remote-debugging-port=0 --profile), "$dir/profile", 'about:blank' or POSIX::_exit(127);
    }
    my $self = bless { pid => $pid, owner => $$, dir => $dir, id => 0, bytes => '' }, $class;
    my $port = WebDriver::wait_for(60, 'Firefox', sub {
        open my $log, '<', "$dir/log" or return;
        local $/;
        return (<$log> // '') =~ m{WebDriver BiDi listening on ws://127\.0\.0\.1:(\d+)} && $1;
    });
    $self->{socket} = IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $port) or die "Firefox: $!";
    my %headers = (PushStream::WebSocket::handshake(), Host => "127.0.0.1:$port");
    syswrite $self->{socket}, join '', "GET /session HTTP/1.1\r\n", map({"$_: $headers{$_}\r\n"} sort keys %headers), "\r\n";
    $self->_fill until $self->{bytes} =~ s/\A(.*?)\r\n\r\n//s;
    my $head = $1;
    die "Firefox: $head\n" if $head !~ m{\AHTTP/1\.1 101 };
    $self->call('session.new', { capabilities => {} });
    $self->{context} = $self->call('browsingContext.getTree')->{contexts}[0]{context};
    return $self;
}

# More bytes from it.
sub _fill ($self, $seconds = 60) {
    die "Firefox does not answer\n" if !IO::Select->new($self->{socket})->can_read($seconds);
    sysread $self->{socket}, $self->{bytes}, 65536, length $self->{bytes} or die "Firefox has ended\n";
}

# The next message.
sub _message ($self) {
    my $bytes = \$self->{bytes};
    my $text = '';
    while (1) {
        $self->_fill while length $$bytes < 2;
        my ($first, $length) = unpack 'CC', $$bytes;
        my $head = $length == 126 ? 4 : $length == 127 ? 10 : 2;
        $self->_fill while length $$bytes < $head;
        $length = $length == 126 ? unpack 'x2n', $$bytes : $length == 127 ? unpack 'x2Q>', $$bytes : $length;
        $self->_fill while length $$bytes < $head + $length;
        my $payload = substr $$bytes, $head, $length;
        substr $$bytes, 0, $head + $length, '';
        my $opcode = $first & 0xf;
        die "Firefox closes: $payload\n" if $opcode == PushStream::WebSocket::CLOSE;
        next if $opcode > 2;
        $text .= $payload;
        return $json->decode($text) if $first & 0x80;
    }
}

# One command; dies with the browser's own words if it fails.
sub call ($self, $method, $params = {}) {
    my $id = ++$self->{id};
    my $frame = PushStream::WebSocket::frame(PushStream::WebSocket::TEXT, $json->encode({ id => $id, method => $method, params => $params }));
    while (length $frame) {
        my $sent = syswrite $self->{socket}, $frame or die "Firefox: $!";
        substr $frame, 0, $sent, '';
    }
    while (1) {
        my $answer = $self->_message;
        next if ($answer->{id} // 0) != $id;
        die "$method: $answer->{error}: $answer->{message}\n" if $answer->{type} eq 'error';
        return $answer->{result};
    }
}

sub window ($self) { return $self->{context} }
sub new_window ($self) { return $self->call('browsingContext.create', { type => 'tab', background => JSON::PP::true })->{context} }
sub switch_to ($self, $window) { $self->{context} = $window }
sub close_window ($self) { return $self->call('browsingContext.close', { context => $self->{context} }) }
sub open_url ($self, $url) { return $self->call('browsingContext.navigate', { context => $self->{context}, url => $url, wait => 'complete' }) }

# Runs JavaScript as a function body and returns what it returns.
sub js ($self, $script, @args) {
    my $result = $self->call('script.callFunction', {
        functionDeclaration => "async (text) => JSON.stringify((await (function () { $script }).apply(null, JSON.parse(text))) ?? null)",
        arguments => [ { type => 'string', value => JSON::PP->new->encode(\@args) } ],
        awaitPromise => JSON::PP::true,
        target => { context => $self->{context} },
    });
    die "$result->{exceptionDetails}{text}\n" if $result->{type} eq 'exception';
    return JSON::PP->new->allow_nonref->decode($result->{result}{value});
}

sub DESTROY ($self) {
    return unless $self->{pid} && $self->{owner} == $$;
    local ($?, $@);
    kill KILL => -$self->{pid};
    waitpid $self->{pid}, 0;
}

1;
