package PushStream::Decoder;

# Reads a compressed stream from a client as it comes, by the bytes that are there and no more, and checks its end: the
# trailer of gzip, or the end of the last frame of zstd.

use v5.36;

use Carp qw(croak);
use Compress::Raw::Zlib qw(MAX_WBITS WANT_GZIP Z_OK Z_STREAM_END crc32);
use PushStream::Client;
use PushStream::Zstd;

use constant HEAD => "\x1f\x8b\x08\0\0\0\0\0\0\xff";

# `client` has a response in this coding; its head is read here.
sub new ($class, $client, $wanted = 'gzip') {
    my $coding = $client->head->header('Content-Encoding') // 'none';
    croak "the answer is not in $wanted, its coding is $coding" if $coding ne $wanted;
    my $self = bless { client => $client, bytes => '', text => '', crc => 0, length => 0, wire => 0, ended => 0 }, $class;
    if ($coding eq 'zstd') {
        $self->{frames} = PushStream::Zstd->new;
    }
    else {
        ($self->{inflate}) = Compress::Raw::Zlib::Inflate->new(-WindowBits => -MAX_WBITS(), -AppendOutput => 0, -LimitOutput => 0);
    }
    return $self;
}

# What a whole body in this coding decodes to; nothing if it is none.
sub whole ($class, $coding, $bytes) {
    if ($coding eq 'zstd') {
        my $frames = PushStream::Zstd->new;
        my $text = eval { $frames->decode($bytes) };
        return $frames->has_ended ? $text : undef;
    }
    my ($inflate) = Compress::Raw::Zlib::Inflate->new(-WindowBits => WANT_GZIP);
    my $status = $inflate->inflate($bytes, my $text);
    return $status == Z_STREAM_END && !length $bytes ? $text : undef;
}

sub client ($self) { return $self->{client} }

# Bytes read so far, as sent and as text.
sub sizes ($self) { return @$self{qw(wire length)} }

# Reads a piece of the response; false at its end.
sub _read ($self, $seconds) {
    my $piece = $self->{client}->chunk($seconds);
    $self->{wire} += length $piece;
    if ($self->{frames}) {
        my $text = $self->{frames}->decode($piece);
        $self->{text} .= $text;
        $self->{length} += length $text;
        return length $piece;
    }
    $self->{bytes} .= $piece;
    if (!$self->{headed} && length $self->{bytes} >= length HEAD) {
        substr($self->{bytes}, 0, length HEAD, '') eq HEAD or croak 'this is no head of a gzip member';
        $self->{headed} = 1;
    }
    if ($self->{headed} && !$self->{ended} && length $self->{bytes}) {
        my $status = $self->{inflate}->inflate($self->{bytes}, my $text);
        $status == Z_OK || $status == Z_STREAM_END || $status == Compress::Raw::Zlib::Z_BUF_ERROR() or croak "cannot decode: $status";
        $self->{ended} = $status == Z_STREAM_END;
        $self->{text} .= $text;
        $self->{crc} = crc32($text, $self->{crc});
        $self->{length} += length $text;
    }
    return length $piece;
}

# The next so many bytes of text.
sub text ($self, $count, $seconds = PushStream::Client::SECONDS) {
    while (length $self->{text} < $count) {
        $self->_read($seconds) or croak "the response ended after: $self->{text}";
    }
    return substr $self->{text}, 0, $count, '';
}

# Text up to and including the first match.
sub until ($self, $pattern, $seconds = PushStream::Client::SECONDS) {
    while (1) {
        return substr $self->{text}, 0, $+[0], '' if $self->{text} =~ $pattern;
        $self->_read($seconds) or croak "the response ended after: $self->{text}";
    }
}

# The next event of an EventSource, as a hash; comments are left out.
sub event ($self, $seconds = PushStream::Client::SECONDS) {
    while (1) {
        my %event;
        for my $line (split /\n/, $self->until(qr/\n\n/, $seconds)) {
            $event{$1} = defined $event{$1} ? "$event{$1}\n$2" : $2 if $line =~ /^(\w+): ?(.*)/;
        }
        return \%event if %event;
    }
}

# The rest of the text; dies unless the stream is complete and its end right.
sub rest ($self, $seconds = PushStream::Client::SECONDS) {
    1 while $self->_read($seconds);
    if ($self->{frames}) {
        croak 'the last frame has no end' if !$self->{frames}->has_ended;
        return delete($self->{text}) . ($self->{text} = '');
    }
    croak 'the stream has no end' if !$self->{ended};
    my ($crc, $length) = unpack 'VV', $self->{bytes};
    croak 'the trailer is not eight bytes long' if length $self->{bytes} != 8;
    croak 'the checksum is wrong' if $crc != $self->{crc};
    croak 'the length is wrong' if $length != $self->{length} % 2**32;
    return delete($self->{text}) . ($self->{text} = '');
}

1;
