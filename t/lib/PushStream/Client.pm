package PushStream::Client;

# One connection to nginx, that reads exactly what is on the wire: each chunk by itself, nothing merged, nothing guessed.
# Every read has a time limit and dies when it passes, so that no test can hang.

use v5.36;

use Carp qw(croak);
use IO::Select;
use IO::Socket::INET;
use Socket qw(IPPROTO_TCP TCP_NODELAY);
use Time::HiRes qw(time);

sub SECONDS { return 5 * ($ENV{TEST_SLOWNESS} || 1) }

# tls => the protocols to offer (ALPN); without it the connection is a plain one.
sub new ($class, $port, %options) {
    my $socket = IO::Socket::INET->new(
        PeerAddr => '127.0.0.1',
        PeerPort => $port,
        Timeout => SECONDS,
        ($options{receive_buffer} ? (Sockopts => [ [ SO_RCVBUF => $options{receive_buffer} ] ]) : ()),
    ) or croak "cannot connect: $@";
    binmode $socket;
    # Or the second of two small writes waits for the kernel to acknowledge the first.
    setsockopt $socket, IPPROTO_TCP, TCP_NODELAY, 1;
    $class->_start_tls($socket, $options{tls}) if $options{tls};
    return bless { socket => $socket, buffer => '', method => 'GET', text => '', tls => !!$options{tls} }, $class;
}

# Nobody is to be convinced of anything here: the certificate is not looked at.
sub _start_tls ($class, $socket, $protocols) {
    require IO::Socket::SSL;
    IO::Socket::SSL->start_SSL($socket, SSL_verify_mode => 0, SSL_alpn_protocols => $protocols, Timeout => SECONDS)
        or croak 'no TLS: ' . IO::Socket::SSL::errstr();
    # What makes the socket readable may be no data, and what is readable may have been read ahead.
    $socket->blocking(0);
}

sub socket ($self) { return $self->{socket} }
sub local_port ($self) { return $self->{socket}->sockport }

# --- sending ---

# Sends bytes as they are.
sub send ($self, $bytes) {
    my $socket = $self->{socket};
    # TLS would send what Perl has in memory for them.
    utf8::downgrade($bytes);
    while (length $bytes) {
        IO::Select->new($socket)->can_write(SECONDS) or croak 'cannot send: time is up';
        # TLS has records of 16 KiB: what waits for the socket must be offered again as it was.
        my $sent = syswrite $socket, $bytes, $self->{tls} ? 16384 : 65536;
        next if !defined $sent && $self->{tls} && $!{EAGAIN};
        defined $sent or croak "cannot send: $!";
        substr $bytes, 0, $sent, '';
    }
    return $self;
}

# headers => { Name => value, Twice => [ one, two ] }, body => bytes, version => '1.0'
sub send_request ($self, $method, $uri, %options) {
    my %headers = (Host => 'localhost', %{ $options{headers} // {} });
    my $body = $options{body};
    $headers{'Content-Length'} //= length $body if defined $body && !exists $headers{'Transfer-Encoding'};
    my $version = $options{version} // '1.1';
    my $head = "$method $uri HTTP/$version\r\n";
    for my $name (sort keys %headers) {
        my $value = $headers{$name};
        $head .= "$name: $_\r\n" for ref $value ? @$value : $value // next;
    }
    $self->{method} = $method;
    $self->{head} = undef;
    return $self->send("$head\r\n" . ($body // ''));
}

# A whole exchange on this connection.
sub request ($self, $method, $uri, %options) {
    return $self->send_request($method, $uri, %options)->response;
}

# --- reading ---

# Reads more. False at the end of the connection.
sub _fill ($self, $deadline) {
    my $read = $self->_read($deadline) // croak 'nothing more to read in time; so far: ' . _shown($self->{buffer});
    return $read > 0;
}

# Reads what comes first: how many bytes; 0 at the end of the connection, undef when the time is up before.
sub _read ($self, $deadline) {
    my $socket = $self->{socket};
    while (1) {
        if (!$self->{tls} || !$socket->pending) {
            my $left = $deadline - time;
            return undef if !IO::Select->new($socket)->can_read($left > 0 ? $left : 0);
        }
        my $read = sysread $socket, $self->{buffer}, 65536, length $self->{buffer};
        return $read if defined $read;
        next if $self->{tls} && $!{EAGAIN};
        # A peer that vanishes within TLS is an error to OpenSSL; to the tests it is an end like any other.
        return 0 if $!{ECONNRESET} || $self->{tls};
        croak "cannot read: $!";
    }
}

sub _line ($self, $deadline) {
    while ((my $end = index $self->{buffer}, "\r\n") < 0) {
        $self->_fill($deadline) or croak 'the connection ended within a line: ' . _shown($self->{buffer});
    }
    my $end = index $self->{buffer}, "\r\n";
    my $line = substr $self->{buffer}, 0, $end;
    substr $self->{buffer}, 0, $end + 2, '';
    return $line;
}

sub _bytes ($self, $count, $deadline) {
    while (length $self->{buffer} < $count) {
        $self->_fill($deadline) or croak 'the connection ended within a body';
    }
    return substr $self->{buffer}, 0, $count, '';
}

# That many bytes, as they are.
sub bytes ($self, $count, $seconds = SECONDS) { return $self->_bytes($count, time + $seconds) }

# The response head; read once, then remembered until the next request.
sub head ($self, $seconds = SECONDS) {
    return $self->{head} //= $self->_read_head(time + $seconds);
}

sub _read_head ($self, $deadline) {
    my $status_line = $self->_line($deadline);
    my ($version, $status, $reason) = $status_line =~ m{^HTTP/(\d\.\d) (\d{3}) ?(.*)}
        or croak 'this is no status line: ' . _shown($status_line);
    my (%headers, @names);
    while (length(my $line = $self->_line($deadline))) {
        my ($name, $value) = $line =~ /^([^:\s]+):[ \t]*(.*?)[ \t]*$/ or croak 'this is no header: ' . _shown($line);
        push @{ $headers{ lc $name } }, $value;
        push @names, $name;
    }
    return PushStream::Response->new(
        version => $version, status => $status, reason => $reason, headers => \%headers, names => \@names,
    );
}

sub status ($self) { return $self->head->status }
sub header ($self, $name) { return $self->head->header($name) }

# The next chunk of a chunked response; '' is the last one, and the connection is free for the next request.
sub chunk ($self, $seconds = SECONDS) {
    croak 'the response is not chunked' if ($self->head($seconds)->header('Transfer-Encoding') // '') ne 'chunked';
    my $deadline = time + $seconds;
    my $size = $self->_line($deadline);
    $size =~ /^[0-9a-fA-F]+$/ or croak 'this is no chunk size: ' . _shown($size);
    my $chunk = $self->_bytes(hex $size, $deadline);
    my $end = $self->_line($deadline);
    croak 'a chunk does not end where it should: ' . _shown($end) if length $end;
    return $chunk;
}

# The next chunks, one for each of the texts that are expected. Over HTTP/2, where what is sent together shares a frame, as many
# bytes as each text has.
sub chunks_as ($self, @texts) {
    return map { $self->chunk } @texts;
}

# The chunks up to the last one, which is left out.
sub chunks_to_end ($self, $seconds = SECONDS) {
    my $deadline = time + $seconds;
    my @chunks;
    while (length(my $chunk = $self->chunk($deadline - time))) {
        push @chunks, $chunk;
    }
    return @chunks;
}

# What chunks hold, until it matches. Returns everything read since the last call; dies if the response ends before.
sub text_until ($self, $pattern, $seconds = SECONDS) {
    my $deadline = time + $seconds;
    my $text = '';
    while ($text !~ $pattern) {
        my $chunk = $self->chunk($deadline - time);
        croak "the response ended without $pattern: " . _shown($text) if !length $chunk;
        $text .= $chunk;
    }
    return $text;
}

# The whole response.
sub response ($self, $seconds = SECONDS) {
    my $deadline = time + $seconds;
    my $head = $self->head($seconds);
    my $response = PushStream::Response->new(%$head);
    $self->{head} = undef;
    return $response if $head->status < 200 || $head->status == 204 || $head->status == 304 || $self->{method} eq 'HEAD';
    if (($head->header('Transfer-Encoding') // '') eq 'chunked') {
        local $self->{head} = $head;
        $response->{chunks} = [ $self->chunks_to_end($deadline - time) ];
        $response->{body} = join '', @{ $response->{chunks} };
    }
    elsif (defined(my $length = $head->header('Content-Length'))) {
        $response->{body} = $self->_bytes($length, $deadline);
    }
    else {
        $response->{body} = $self->rest($deadline - time);
    }
    return $response;
}

# Everything up to the end of the connection, as it is.
sub rest ($self, $seconds = SECONDS) {
    my $deadline = time + $seconds;
    1 while $self->_fill($deadline);
    return delete($self->{buffer}) . ($self->{buffer} = '');
}

# Bytes as they are, until they match.
sub raw_until ($self, $pattern, $seconds = SECONDS) {
    my $deadline = time + $seconds;
    while ($self->{buffer} !~ $pattern) {
        $self->_fill($deadline) or croak "the connection ended without $pattern: " . _shown($self->{buffer});
    }
    my $raw = $self->{buffer};
    $self->{buffer} = '';
    return $raw;
}

# Does nothing at all arrive?
sub is_quiet ($self, $seconds = 0.3) {
    return 0 if length $self->{buffer};
    return !defined $self->_read(time + $seconds);
}

# Has the server closed the connection, and sent nothing more before?
sub is_closed ($self, $seconds = SECONDS) {
    my $ended = eval { !$self->_fill(time + $seconds) };
    return $ended && !length $self->{buffer};
}

sub close ($self) {
    CORE::close $self->{socket};
}

# Ends the connection with a reset, as a broken network does.
sub reset ($self) {
    setsockopt $self->{socket}, SOL_SOCKET, SO_LINGER, pack 'll', 1, 0;
    return $self->{socket}->close(SSL_no_shutdown => 1) if $self->{tls};
    $self->close;
}

# --- EventSource ---

# The next event as a browser would dispatch it: { id, event, data, comments }. What is not in the stream is not in the
# hash. Comments before the event come with it.
sub event ($self, $seconds = SECONDS) {
    my $deadline = time + $seconds;
    my %event;
    while (1) {
        my $line = $self->_stream_line($deadline);
        if (!length $line) {
            return \%event if exists $event{data};
            next;
        }
        my ($name, $value) = $line =~ /^([^:]*)(?:: ?(.*))?$/s;
        if ($name eq '') { push @{ $event{comments} }, $value }
        elsif ($name eq 'data') { $event{data} = exists $event{data} ? "$event{data}\n$value" : $value }
        else { $event{$name} = $value }
    }
}

# The next comment, if it comes before any event.
sub comment ($self, $seconds = SECONDS) {
    my $line = $self->_stream_line(time + $seconds);
    return $line =~ /^: ?(.*)/s ? $1 : croak 'this is no comment: ' . _shown($line);
}

sub _stream_line ($self, $deadline) {
    while ($self->{text} !~ /\n/) {
        my $chunk = $self->chunk($deadline - time);
        croak 'the stream ended' if !length $chunk;
        $self->{text} .= $chunk;
    }
    $self->{text} =~ s/^(.*?)\r?\n//s;
    return $1;
}

sub _shown ($bytes) {
    my $short = length $bytes > 500 ? substr($bytes, 0, 500) . '...' : $bytes;
    return '"' . $short =~ s/([^\x20-\x7e])/sprintf '\\x%02x', ord $1/ger . '"';
}

package PushStream::Response;

use v5.36;

sub new ($class, %fields) {
    return bless { body => '', chunks => [], %fields }, $class;
}

sub status ($self) { return $self->{status} }
sub body ($self) { return $self->{body} }
sub chunks ($self) { return @{ $self->{chunks} } }

# The value; several are joined as RFC 9110 §5.3 says; undef if there is none.
sub header ($self, $name) {
    my $values = $self->{headers}{ lc $name } // return undef;
    return join ', ', @$values;
}

# The values of a header, one per line that was sent.
sub headers ($self, $name) { return @{ $self->{headers}{ lc $name } // [] } }

# The names as sent, in order.
sub header_names ($self) { return @{ $self->{names} } }

sub explain ($self) { return $self->header('X-Nginx-PushStream-Explain') }

sub json ($self) { return JSON::PP::decode_json($self->{body}) }

1;
