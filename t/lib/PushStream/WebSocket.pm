package PushStream::WebSocket;

# The client's end of a WebSocket: frames as they are on the wire, right or wrong.

use v5.36;

use Carp qw(croak);
use Compress::Raw::Zlib qw(MAX_WBITS Z_OK Z_BUF_ERROR Z_SYNC_FLUSH);
use MIME::Base64 qw(encode_base64);

# The key of the C module's own tests, and the answer to it.
use constant {
    KEY => '/mQoZf6pRiv8+6o72GncLQ==',
    ACCEPT => 'RaIOIcQ6CBoc74B9EKdH0avYZnw=',
    TEXT => 0x1,
    BINARY => 0x2,
    CLOSE => 0x8,
    PING => 0x9,
    PONG => 0xa,
};

sub handshake {
    return (Upgrade => 'websocket', Connection => 'Upgrade', 'Sec-WebSocket-Key' => KEY, 'Sec-WebSocket-Version' => 13);
}

# Shakes hands on a connection of its own; `more` are bytes sent together with the request.
sub new ($class, $nginx, $uri, %options) {
    my $client = $nginx->connect;
    my %headers = (handshake(), %{ $options{headers} // {} });
    my $head = join '', "GET $uri HTTP/1.1\r\nHost: localhost\r\n", map({"$_: $headers{$_}\r\n"} sort keys %headers), "\r\n";
    $client->send($head . ($options{more} // ''));
    my $answer = $client->head;
    croak 'no switch of protocols but ' . $answer->status if $answer->status != 101;
    my $self = bless { client => $client, answer => $answer }, $class;
    my $agreed = $answer->header('Sec-WebSocket-Extensions') // '';
    if ($agreed =~ /^permessage-deflate\b/) {
        $self->{window_bits} = $agreed =~ /server_max_window_bits=(\d+)/ ? $1 : MAX_WBITS;
        $self->{forgets} = $agreed =~ /server_no_context_takeover/;
    }
    return $self;
}

# Messages that came compressed so far, all of them, and their bytes as sent and as text.
sub compressed ($self) { return $self->{compressed} // 0 }
sub sizes ($self) { return ($self->{wire} // 0, $self->{length} // 0) }

# A message as a client compresses it, by itself, without the end of the last block.
sub deflated ($text, %options) {
    my ($deflate) = Compress::Raw::Zlib::Deflate->new(
        -WindowBits => -($options{window_bits} // MAX_WBITS), -Level => $options{level} // 6, -AppendOutput => 1);
    my $out = '';
    for (my $at = 0; $at < length $text; $at += 1 << 20) {
        $deflate->deflate(substr($text, $at, 1 << 20), $out) == Z_OK or croak 'cannot compress';
    }
    $deflate->flush($out, Z_SYNC_FLUSH) == Z_OK or croak 'cannot compress';
    $out =~ s/\0\0\xff\xff\z// or croak 'no end';
    return $out;
}

sub _inflate ($self, $payload) {
    delete $self->{inflate} if $self->{forgets};
    # The window is what was agreed on, and no byte more.
    $self->{inflate} //= Compress::Raw::Zlib::Inflate->new(-WindowBits => -$self->{window_bits}, -LimitOutput => 0);
    $payload .= "\0\0\xff\xff";
    my $status = $self->{inflate}->inflate($payload, my $text);
    $status == Z_OK || $status == Z_BUF_ERROR or croak "cannot decode: $status";
    croak 'bytes are left over' if length $payload;
    return $text;
}

sub answer ($self) { return $self->{answer} }
sub client ($self) { return $self->{client} }

# A frame as a client sends it: masked, unless mask => undef.
sub frame ($opcode, $payload, %options) {
    my $first = ($options{more} ? 0 : 0x80) | ($options{rsv} // 0) | $opcode;
    my $mask = exists $options{mask} ? $options{mask} : 'mAsK';
    my $length = length $payload;
    my $bit = defined $mask ? 0x80 : 0;
    my $header = $length < 126 ? pack('CC', $first, $bit | $length)
        : $length < 65536 ? pack('CCn', $first, $bit | 126, $length)
        : pack('CCQ>', $first, $bit | 127, $length);
    return $header . $payload if !defined $mask;
    return $header . $mask . ($payload ^. substr($mask x ($length / 4 + 1), 0, $length));
}

sub send ($self, $opcode, $payload, %options) {
    $self->{client}->send(frame($opcode, $payload, %options));
    return $self;
}

sub send_bytes ($self, $bytes) {
    $self->{client}->send($bytes);
    return $self;
}

# The next frame: (opcode, payload). Servers send them whole and unmasked.
sub next_frame ($self, @seconds) {
    my ($first, $length) = unpack 'CC', $self->{client}->bytes(2, @seconds);
    my $rsv1 = $first & 0x40 && $self->{window_bits} && !($first & 0x8);
    croak sprintf('a frame that begins with %02x', $first) if ($first & 0xb0) != 0x80 || $first & 0x40 && !$rsv1 || $length & 0x80;
    if ($length == 126) { $length = unpack 'n', $self->{client}->bytes(2, @seconds) }
    elsif ($length == 127) { $length = unpack 'Q>', $self->{client}->bytes(8, @seconds) }
    my $payload = $self->{client}->bytes($length, @seconds);
    $self->{wire} += length $payload;
    if ($rsv1) {
        $self->{compressed}++;
        $payload = $self->_inflate($payload);
    }
    $self->{length} += length $payload;
    return ($first & 0xf, $payload);
}

# The payload of the next frame, which must be a text.
sub text ($self, @seconds) {
    my ($opcode, $payload) = $self->next_frame(@seconds);
    croak "a frame of type $opcode" if $opcode != TEXT;
    return $payload;
}

# The payload of the close frame that must come next, with the end of the connection behind it.
sub close_payload ($self, @seconds) {
    my ($opcode, $payload) = $self->next_frame(@seconds);
    croak "a frame of type $opcode instead of a close: $payload" if $opcode != CLOSE;
    croak 'something after the close frame' if length $self->{client}->rest(@seconds);
    return $payload;
}

1;
