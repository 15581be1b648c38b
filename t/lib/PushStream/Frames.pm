package PushStream::Frames;

# HTTP/2 frame by frame, on a Unix socket, without TLS. It does nothing by itself: no window is opened and no frame acknowledged
# unless the test says so.

use v5.36;

use IO::Socket::UNIX;
use PushStream::Client;
use Time::HiRes qw(time);

use constant { DATA => 0, HEADERS => 1, RST_STREAM => 3, SETTINGS => 4, PING => 6, GOAWAY => 7, WINDOW_UPDATE => 8 };

sub new ($class, $path, %settings) {
    my $socket = IO::Socket::UNIX->new(Peer => $path) or die "$path: $!";
    my $self = bless { socket => $socket, buffer => '', next => 1, data => {}, ended => {}, reset => {}, frames => [] }, $class;
    $socket->syswrite("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    $self->frame(SETTINGS, 0, 0, join '', map { pack 'nN', $_, $settings{$_} } sort keys %settings);
    return $self;
}

sub frame ($self, $type, $flags, $stream, $payload = '') {
    my $bytes = substr(pack('N', length $payload), 1) . pack('CCN', $type, $flags, $stream) . $payload;
    $self->{socket}->syswrite($bytes) == length $bytes or die "write: $!";
}

# Opens a stream; its number.
sub get ($self, $uri, %options) {
    my $stream = $self->{next};
    $self->{next} += 2;
    my $field = sub ($name, $value) { "\0" . chr(length $name) . $name . chr(length $value) . $value };
    # :method GET and :scheme http are in HPACK's static table.
    my $block = "\x82\x86" . $field->(':path', $uri) . $field->(':authority', 'localhost');
    $block .= $field->($_, $options{headers}{$_}) for sort keys %{ $options{headers} // {} };
    $self->frame(HEADERS, $options{open} ? 4 : 5, $stream, $block);
    return $stream;
}

# Takes the next frame; false if none comes in time, or at the end.
sub take ($self, $seconds) {
    my $end = time + $seconds;
    while (1) {
        my ($high, $low, $type, $flags, $stream) = length $self->{buffer} >= 9 ? unpack 'Cn CCN', $self->{buffer} : ();
        my $length = defined $high ? $high << 16 | $low : undef;
        if (defined $length && length $self->{buffer} >= 9 + $length) {
            my $payload = substr $self->{buffer}, 9, $length;
            substr $self->{buffer}, 0, 9 + $length, '';
            push @{ $self->{frames} }, [$type, $flags, $stream, $payload];
            $self->{data}{$stream} .= $payload if $type == DATA;
            $self->{head}{$stream}++ if $type == HEADERS;
            $self->{ended}{$stream} = 1 if $flags & 1 && ($type == DATA || $type == HEADERS);
            $self->{reset}{$stream} = unpack 'N', $payload if $type == RST_STREAM;
            $self->{goaway} = 1 if $type == GOAWAY;
            $self->{pong} = $payload if $type == PING;
            return 1;
        }
        my $left = $end - time;
        return 0 if $left <= 0 || $self->{closed};
        my $in = '';
        vec($in, fileno $self->{socket}, 1) = 1;
        next if !select $in, undef, undef, $left;
        my $got = sysread $self->{socket}, $self->{buffer}, 65_536, length $self->{buffer};
        $self->{closed} = 1 if !$got;
    }
}

# Takes frames until it holds; false if the time is over first.
sub until_true ($self, $holds, $seconds = PushStream::Client::SECONDS) {
    while (!$holds->()) {
        $self->take($seconds) or return $holds->();
    }
    return 1;
}

sub has ($self, $stream, $text) {
    return $self->until_true(sub { length($self->{data}{$stream} // '') >= length $text }) && $self->{data}{$stream} eq $text;
}

1;
