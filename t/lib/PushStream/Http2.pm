package PushStream::Http2;

# One HTTP/2 connection to nginx, for one request at a time: the same calls as over HTTP/1.1, where they mean something. A
# chunk is what came in one DATA frame; nginx may put several messages that were sent together into one.

use v5.36;

use Carp qw(croak);
use Scalar::Util qw(weaken);
use Time::HiRes qw(time);

use parent 'PushStream::Client';

# Fields of a connection, which HTTP/2 has none of (RFC 9113 section 8.2.2).
my %OF_CONNECTION = map { $_ => 1 } qw(host connection keep-alive transfer-encoding upgrade);

sub new ($class, $port, %options) {
    require Protocol::HTTP2::Client;
    my $self = $class->SUPER::new($port, %options, tls => ['h2']);
    $self->{socket}->alpn_selected eq 'h2' or croak 'nginx does not speak HTTP/2';
    weaken(my $weak = $self);
    $self->{engine} = Protocol::HTTP2::Client->new(
        keepalive => 1,
        on_error => sub ($error) { $weak->{failed} = "HTTP/2 error $error" },
    );
    $self->{stream} = { pieces => [] };
    return $self;
}

sub send_request ($self, $method, $uri, %options) {
    my %headers = %{ $options{headers} // {} };
    my $body = $options{body};
    my $stream = $self->{stream} = { pieces => [] };
    my @fields;
    for my $name (sort keys %headers) {
        my $value = $headers{$name};
        next if !defined $value || $OF_CONNECTION{ lc $name };
        push @fields, map { lc $name => $_ } ref $value ? @$value : $value;
    }
    push @fields, 'content-length' => length $body if defined $body && !defined $headers{'Content-Length'};
    $self->{method} = $method;
    $self->{head} = undef;
    $self->{text} = '';
    $self->{engine}->request(
        ':scheme' => 'https',
        ':authority' => $headers{Host} // 'localhost',
        ':path' => $uri,
        ':method' => $method,
        headers => \@fields,
        (defined $body && length $body ? (data => $body) : ()),
        on_headers => sub ($fields) { $stream->{fields} = [@$fields] },
        on_data => sub ($bytes, $) { push @{ $stream->{pieces} }, $bytes if length $bytes; 1 },
        on_done => sub ($fields, $) {
            $stream->{fields} //= [@$fields];
            $stream->{ended} = 1;
        },
        on_error => sub ($error) { $stream->{reset} = "error $error" },
    );
    $self->_flush;
    return $self;
}

sub _flush ($self) {
    while (defined(my $frame = $self->{engine}->next_frame)) {
        $self->SUPER::send($frame);
    }
}

# Takes what the peer sends. False when the time is up.
sub _pump ($self, $deadline) {
    my $read = $self->_read($deadline) // return 0;
    if (!$read) {
        $self->{stream}{reset} = 'the connection ended';
        return 1;
    }
    $self->{engine}->feed($self->{buffer});
    $self->{buffer} = '';
    $self->_flush;
    croak $self->{failed} if $self->{failed};
    return 1;
}

sub _wait ($self, $deadline, $what, $arrived) {
    while (!$arrived->()) {
        croak "the stream ended before $what: $self->{stream}{reset}" if defined $self->{stream}{reset};
        $self->_pump($deadline) or croak "no $what in time";
    }
}

sub _read_head ($self, $deadline) {
    my $stream = $self->{stream};
    $self->_wait($deadline, 'response head', sub { $stream->{fields} });
    my (%headers, @names, $status);
    my @fields = @{ $stream->{fields} };
    while (my ($name, $value) = splice @fields, 0, 2) {
        if ($name eq ':status') { $status = $value; next }
        push @{ $headers{$name} }, $value;
        push @names, $name;
    }
    return PushStream::Response->new(version => '2', status => $status, reason => '', headers => \%headers, names => \@names);
}

sub head ($self, $seconds = PushStream::Client::SECONDS) {
    return $self->{head} //= $self->_read_head(time + $seconds);
}

sub chunk ($self, $seconds = PushStream::Client::SECONDS) {
    my $stream = $self->{stream};
    $self->_wait(time + $seconds, 'data', sub { @{ $stream->{pieces} } || $stream->{ended} });
    return shift @{ $stream->{pieces} } // '';
}

sub chunks_as ($self, @texts) {
    my @chunks;
    for my $text (@texts) {
        my $chunk = '';
        while (length $chunk < length $text) {
            my $piece = $self->chunk;
            last if !length $piece;
            $chunk .= $piece;
        }
        my $more = length $chunk > length $text ? substr $chunk, length $text, length $chunk, '' : '';
        unshift @{ $self->{stream}{pieces} }, $more if length $more;
        push @chunks, $chunk;
    }
    return @chunks;
}

sub response ($self, $seconds = PushStream::Client::SECONDS) {
    my $deadline = time + $seconds;
    my $response = PushStream::Response->new(%{ $self->head($seconds) });
    my $stream = $self->{stream};
    $self->_wait($deadline, 'end of the response', sub { $stream->{ended} });
    $response->{chunks} = [ @{ $stream->{pieces} } ];
    $response->{body} = join '', @{ $stream->{pieces} };
    return $response;
}

# What is left of the response.
sub rest ($self, $seconds = PushStream::Client::SECONDS) {
    return join '', $self->chunks_to_end($seconds);
}

sub is_quiet ($self, $seconds = 0.3) {
    my $stream = $self->{stream};
    my $deadline = time + $seconds;
    while (!@{ $stream->{pieces} } && !$stream->{ended} && !defined $stream->{reset}) {
        $self->_pump($deadline) or return 1;
    }
    return 0;
}

# Has nginx ended the response, and sent nothing more before?
sub is_closed ($self, $seconds = PushStream::Client::SECONDS) {
    my $deadline = time + $seconds;
    my $stream = $self->{stream};
    my $ended = eval {
        $self->_pump($deadline) or die while !$stream->{ended} && !defined $stream->{reset};
        1;
    };
    return !@{ $stream->{pieces} };
}

sub send { croak 'bytes as they are have no place in HTTP/2' }

1;
