# Source files that import each other, directly or over others, can only be understood together: none of the store's do,
# and elsewhere no more than three.

use v5.36;

use Cwd qw(abs_path);
use File::Basename qw(dirname);
use File::Path qw(make_path);
use File::Temp;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Imports qw(circles imports);
use Test::More;

# Every way to import, in a crate of its own.
my %example = (
    'lib.rs' => 'mod a; mod b; mod c; mod d; mod e; pub use a::A; pub struct Root;',
    'a.rs' => <<'RUST',
        use super::b::{self, B as Other};
        pub struct A<'a>(&'a str, char);
        const TEXT: &str = r#"crate::e::E " "#; // crate::e::E
        fn f() -> A<'static> { b::g(); A(TEXT, '\'') }
        #[cfg(test)]
        mod tests { use crate::e::E; }
        #[cfg(test)]
        use crate::{e::{E, F}, d};
RUST
    'b.rs' => "pub struct B; pub fn g() {}\npub(super) use super::c::C;",
    'c.rs' => 'use super::*; pub struct C(A); impl C { fn f() { crate::b::g() } }',
    'd/mod.rs' => 'mod deep; pub struct D; const ALL: [u8; 1] = [deep::KIND]; use crate::b::C;',
    'd/deep.rs' => 'use super::D; pub const KIND: u8 = 1; pub fn f() { super::super::c::C::f() }',
    'e.rs' => 'use super::Root; pub struct E; pub struct F;',
);
my $dir = File::Temp->newdir;
for my $name (keys %example) {
    make_path(dirname("$dir/$name"));
    open my $out, '>', "$dir/$name" or die $!;
    print $out $example{$name};
    close $out or die $!;
}
my $found = imports("$dir/lib.rs");
my %readable;
for my $from (keys %$found) {
    for my $to (keys $found->{$from}->%*) {
        $readable{ $from =~ s{^\Q$dir\E/}{}r }{ $to =~ s{^\Q$dir\E/}{}r } = join ' ', sort keys $found->{$from}{$to}->%*;
    }
}
is_deeply(
    \%readable,
    {
        'a.rs' => { 'b.rs' => 'B g' },
        'c.rs' => { 'a.rs' => 'A', 'b.rs' => 'g' },
        'd/mod.rs' => { 'c.rs' => 'C' },
        'd/deep.rs' => { 'd/mod.rs' => 'D', 'c.rs' => 'C' },
        'e.rs' => { 'lib.rs' => 'Root' },
    },
    'imports are found, at the files that define the names'
);
is_deeply([circles({ a => { b => 1 }, b => { c => 1 }, c => { b => 1, d => 1 }, d => { e => 1 }, e => { f => 1 }, f => { d => 1 } })],
    [['d', 'e', 'f'], ['b', 'c']], 'so are circles');

my $root = dirname(dirname(abs_path(__FILE__)));
my %limits = ('core/lib.rs' => 3, 'worker/lib.rs' => 3, 'worker/main.rs' => 3, 'bench/main.rs' => 3, 'module/lib.rs' => 3);
for my $crate (sort keys %limits) {
    my $imports = imports("$root/src/$crate");
    my @circles = circles($imports);
    my @large = grep { @$_ > $limits{$crate} } @circles;
    ok(!@large, "$crate: no circle of more than $limits{$crate} files");
    show($imports, $_) for @large;
    next if $crate ne 'core/lib.rs';
    my @of_store = grep { grep { m{/core/store/} } @$_ } @circles;
    ok(!@of_store, 'and none in the store');
    show($imports, $_) for @of_store;
}

sub show ($imports, $circle) {
    my %inside = map { $_ => 1 } @$circle;
    diag('a circle of ' . @$circle . ' files:');
    for my $from (@$circle) {
        for my $to (grep { $inside{$_} } sort keys $imports->{$from}->%*) {
            diag("  $from imports from $to: @{[ sort keys $imports->{$from}{$to}->%* ]}" =~ s{\Q$root\E/src/}{}gr);
        }
    }
}

done_testing;
