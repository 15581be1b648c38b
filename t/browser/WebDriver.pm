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
        http => HTTP::Tiny->new(timeout => 300, keep_alive => 1),
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

# Kills the process of a page that `begin` makes work without an end, as a crash or a lack of memory does; `meanwhile` is done while it
# works, and hears nothing. The window stays, and is of no use any more. Which process it is, the kernel knows. Returns when that was.
sub kill_page ($self, $begin, $meanwhile) {
    my $worked = sub { return map { $_ => _worked($_) } _renderers("--user-data-dir=$self->{dir}/profile") };
    my %before = $worked->();
    $begin->();
    $meanwhile->();
    my $busiest = wait_for(50, 'the page to work', sub {
        my %now = $worked->();
        my %more = map { $_ => $now{$_} - ($before{$_} // 0) } keys %now;
        my ($first, $second) = sort { $more{$b} <=> $more{$a} } keys %more;
        return $first && $more{$first} > 30 && $more{$first} > 3 * ($second ? $more{$second} : 0) && $first;
    });
    kill KILL => $busiest or die "kill: $!";
    return time;
}

# Processes that run pages of the browser with that argument, without those that draw the browser itself.
sub _renderers ($argument) {
    my @found;
    for my $file (glob '/proc/[0-9]*/cmdline') {
        open my $in, '<', $file or next;
        my $command = join ' ', split /\0/, do { local $/; <$in> } // '';
        push @found, $file =~ /(\d+)/ if $command =~ /--type=renderer(?!.*--top-chrome-webui)/ && index($command, $argument) >= 0;
    }
    return @found;
}

# Ticks of processor time.
sub _worked ($pid) {
    open my $in, '<', "/proc/$pid/stat" or return 0;
    my @fields = split ' ', (<$in> // '') =~ s/.*\)//r;
    return ($fields[11] // 0) + ($fields[12] // 0);
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
