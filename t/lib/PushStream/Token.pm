# Access tokens, made by a library that applications use (PyJWT), and files of the keys that verify them.

package PushStream::Token;

use v5.36;
use Carp;
use Exporter 'import';
use File::Basename 'dirname';
use File::Spec;
use File::Temp;
use IPC::Open2;
use JSON::PP;

our @EXPORT = qw(tokens token key_set key_dir write_file);

my $PEER = File::Spec->rel2abs(dirname(__FILE__)) . '/../../peers/tokens.py';

# Where the keys of this test are.
my $keys;
sub key_dir { return ($keys //= File::Temp->newdir('push-stream-keys.XXXXXX', TMPDIR => 1))->dirname }

# One token for each of the hashes: key, algorithm, claims, headers. The key is made when it is first named.
sub tokens (@wanted) {
    my @filled = map { { key => 'secret', algorithm => 'HS256', %$_ } } @wanted;
    my $pid = open2(my $from, my $to, '/usr/bin/python3', $PEER, key_dir);
    print $to encode_json(\@filled);
    close $to;
    my $text = do { local $/; <$from> };
    waitpid $pid, 0;
    croak 'no tokens' if $? || !$text;
    return @{ decode_json($text) };
}

# A token of HS256 with the key `secret`.
sub token (%claims) { return (tokens({ claims => \%claims }))[0] }

# A JWK Set of the named keys, each with the members that come with it.
sub key_set (@names) {
    my @keys = map {
        my ($name, %more) = ref ? @$_ : $_;
        +{ %{ decode_json(_slurp(key_dir . "/$name.jwk")) }, %more }
    } @names;
    return JSON::PP->new->canonical->encode({ keys => \@keys });
}

# Writes a file in one step, as who replaces a file that is in use has to.
sub write_file ($path, $text) {
    open my $file, '>', "$path.new" or croak "$path.new: $!";
    print $file $text;
    close $file or croak "$path.new: $!";
    chmod 0644, "$path.new";
    rename "$path.new", $path or croak "$path: $!";
    return $path;
}

sub _slurp ($path) {
    open my $file, '<', $path or croak "$path: $!";
    local $/;
    return <$file>;
}

1;
