# The bindings have nginx's bit fields where C has them: each one of every structure of nginx, set by the bindings' setter and by a
# C compiler, makes the same bytes.
#
# bindgen 0.72 had some of a request two bits beside their places with nginx 1.30, where a port of 16 bits precedes them: a stream's
# chunks had no lengths then.

use v5.36;

use Cwd qw(abs_path);
use File::Basename qw(dirname);
use File::Temp;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;

$ENV{PATH} .= ':' . ($ENV{CARGO_HOME} || ($ENV{HOME} || '/root') . '/.cargo') . '/bin';
plan skip_all => 'there is no rustc' if system('rustc --version >/dev/null 2>&1') != 0;

my $slurp = sub ($file) { open my $in, '<:raw', $file or die "$file: $!"; local $/; return scalar <$in> };

# There may be bindings of several builds. The module's debug information says which are its own.
my $module = PushStream::Nginx::module();
my ($hash) = $slurp->($module) =~ m{/build/nginx-sys-([0-9a-f]+)/out\0};
plan skip_all => 'the module does not tell which bindings it was built with' if !$hash;
my $built = dirname($module) . "/build/nginx-sys-$hash";
plan skip_all => "there is no $built" if !-e "$built/out/bindings.rs";
my $output = $slurp->("$built/output");
my ($include) = $output =~ /^cargo::?metadata=include=(.+)$/m or die 'no directories of headers';
my ($flags) = $output =~ /^cargo::?metadata=cflags=(.*)$/m or die 'no flags';

# Structure => [ field, ... ]
my %fields;
my $structure;
for (split /\n/, $slurp->("$built/out/bindings.rs")) {
    $structure = $1 if /^impl (\w+) \{/;
    push $fields{$structure}->@*, $1 if $structure && /^    pub fn set_(\w+)\(&mut self, val:/;
    undef $structure if /^\}/;
}
# Also the system's have some; and what is unnamed in C has no name to be asked by.
delete $fields{$_} for grep { !/^ngx_/ || /__bindgen_ty_/ } keys %fields;
cmp_ok scalar(map { @$_ } values %fields), '>', 150, 'the bit fields of nginx were found';
ok((grep { $_ eq 'chunked' } $fields{ngx_http_request_s}->@*), 'those of a request among them');

my (@rust, @c);
for my $name (sort keys %fields) {
    my $type = $name =~ /_s$/ ? "struct $name" : $name;
    push @rust, qq{    println!("$name: {} bytes", size_of::<$name>());};
    push @c, qq/    printf("$name: %zu bytes\\n", sizeof($type));/;
    for my $field ($fields{$name}->@*) {
        # What is a word of Rust has a dash at its end.
        my $in_c = $field =~ s/_$//r;
        push @rust, qq/    { let mut x: $name = unsafe { zeroed() }; x.set_$field(!0); show("$name.$in_c", &x); }/;
        push @c, qq/    { static $type x; x.$in_c = ~0; show("$name.$in_c", &x, sizeof x); }/;
    }
}

my $dir = File::Temp->newdir('push-stream-test-XXXXXX', TMPDIR => 1);
my $compiled = sub ($file, $text, @command) {
    open my $out, '>', "$dir/$file" or die $!;
    print {$out} $text;
    close $out or die $!;
    system(@command, '-o', "$dir/$file.out", "$dir/$file") == 0 or return;
    return [ split /\n/, scalar `$dir/$file.out` ];
};

my $c = $compiled->('fields.c', join("\n", <<'C', @c, "    return 0;\n}\n"), 'gcc', '-w', (split ' ', $flags), map { "-I$_" } split /:/, $include);
#include <ngx_config.h>
#include <ngx_core.h>
#include <ngx_http.h>
#if __has_include(<ngx_stream.h>)
#include <ngx_stream.h>
#endif
#include <stdio.h>

static void show(const char *name, const void *data, size_t size) {
    printf("%s:", name);
    for (size_t i = 0; i < size; i++)
        if (((const unsigned char *) data)[i]) printf(" %zu:%02x", i, ((const unsigned char *) data)[i]);
    printf("\n");
}

int main(void) {
C
ok $c, 'the C compiler has made a program' or do { done_testing; exit };

my $bindings = "$built/out/bindings.rs";
my $rust = $compiled->('fields.rs', join("\n", qq{mod bindings { include!("$bindings"); }}, <<'RUST', @rust, "}\n"), 'rustc', '--edition=2021', '--cap-lints=allow');
use bindings::*;
use std::mem::{size_of, zeroed};

fn show<T>(name: &str, value: &T) {
    print!("{name}:");
    // SAFETY: a structure without references, all of whose bytes were written.
    let bytes = unsafe { std::slice::from_raw_parts((value as *const T).cast::<u8>(), size_of::<T>()) };
    for (at, byte) in bytes.iter().enumerate().filter(|(_, byte)| **byte != 0) {
        print!(" {at}:{byte:02x}");
    }
    println!();
}

fn main() {
RUST
ok $rust, 'and so has the Rust compiler' or do { done_testing; exit };

cmp_ok scalar(@$c), '>', 150, 'each field is there';
is_deeply $rust, $c, 'each one where C has it';

done_testing;
