package PushStream::Zstd;

# Decodes a stream of Zstandard as it comes, by the system's library.

use v5.36;

use Carp qw(croak);
use FFI::Platypus 2.00;
use FFI::Platypus::Buffer qw(scalar_to_pointer);

use constant ROOM => 128 * 1024;

my $ffi = FFI::Platypus->new(api => 2, lib => 'libzstd.so.1');
$ffi->attach(ZSTD_createDStream => [] => 'opaque');
$ffi->attach(ZSTD_freeDStream => ['opaque'] => 'size_t');
$ffi->attach(ZSTD_decompressStream => [ 'opaque', 'opaque', 'opaque' ] => 'size_t');
$ffi->attach(ZSTD_isError => ['size_t'] => 'unsigned int');
$ffi->attach(ZSTD_getErrorName => ['size_t'] => 'string');

sub new ($class) { return bless { context => ZSTD_createDStream(), ended => 0 }, $class }

# Is everything decoded a sequence of whole frames, one at least?
sub has_ended ($self) { return $self->{ended} }

# What these bytes decode to.
sub decode ($self, $bytes) {
    my ($text, $read, $made) = ('', 0, 0);
    # What is decoded into: ZSTD_inBuffer and ZSTD_outBuffer have a pointer, a size and a position each.
    my $room = "\0" x ROOM;
    my $input = pack 'JJJ', scalar_to_pointer($bytes), length $bytes, 0;
    while ($read < length $bytes || $made == ROOM) {
        my $output = pack 'JJJ', scalar_to_pointer($room), ROOM, 0;
        my $left = ZSTD_decompressStream($self->{context}, scalar_to_pointer($output), scalar_to_pointer($input));
        croak 'cannot decode: ' . ZSTD_getErrorName($left) if ZSTD_isError($left);
        my $before = $read;
        ($read, $made) = map { (unpack 'JJJ')[2] } $input, $output;
        $text .= substr $room, 0, $made;
        $self->{ended} = $left == 0 if $read > $before || $made;
    }
    return $text;
}

sub DESTROY ($self) { ZSTD_freeDStream($self->{context}) }

1;
