# Which files of a Rust crate import which, read from the sources.
#
# What counts, for the file that it is in: `use` of an item, and paths in code (`crate::a::f()`, or `a::f()` after `use
# super::a`), at the file that defines the item. A re-export only passes on: whoever uses it imports the file behind it. A
# module's paths to its own children (`child::KIND` in the table of a mod.rs) do not count, nor does what only tests have.

package PushStream::Imports;

use v5.36;

use Exporter qw(import);
our @EXPORT_OK = qw(imports circles);

# { file => { file that it imports from => { name => 1 } } } of the crate with this root file.
sub imports ($file) {
    my $root = module($file, undef, $file =~ s{/[^/]+$}{}r, [tokens(slurp($file))]);
    my $imports = {};
    gather($root, $imports);
    return $imports;
}

# The strongly connected components of more than one file, largest first (Tarjan).
sub circles ($imports) {
    my ($next, %index, %low, @stack, %on_stack, @circles) = (0);
    my $visit;
    $visit = sub ($file) {
        $index{$file} = $low{$file} = $next++;
        push @stack, $file;
        $on_stack{$file} = 1;
        for my $to (sort keys $imports->{$file}->%*) {
            $visit->($to) if my $new = !defined $index{$to};
            next if !$on_stack{$to};
            my $reached = $new ? $low{$to} : $index{$to};
            $low{$file} = $reached if $reached < $low{$file};
        }
        return if $low{$file} != $index{$file};
        my @circle;
        do { push @circle, pop @stack; delete $on_stack{ $circle[-1] } } until $circle[-1] eq $file;
        push @circles, [sort @circle] if @circle > 1;
    };
    for my $file (sort keys %$imports) { $visit->($file) if !defined $index{$file} }
    return sort { @$b <=> @$a } @circles;
}

sub slurp ($file) { open my $in, '<', $file or die "$file: $!"; local $/; return scalar <$in> }

# Identifiers, `::` and other single characters: no comments, no literals.
sub tokens ($text) {
    my @tokens;
    for ($text) {
        while (!/\G\s*\z/gc) {
            next if /\G\s+/gc || m{\G//[^\n]*}gc || m{\G(/\*(?:[^*/]++|\*(?!/)|/(?!\*)|(?1))*+\*/)}gc;
            next if /\G(?:b|c)?r(#*)".*?"\1/gcs || /\G(?:b|c)?"(?:[^"\\]++|\\.)*+"/gcs;
            next if /\Gb?'(?:[^'\\\n]|\\(?:u\{[^}]*\}|x..|.))'/gc || /\G'\w+/gc || /\G\d\w*/gc;
            /\G(?:r#)?(\$crate|[A-Za-z_]\w*|::|.)/gcs;
            push @tokens, $1;
        }
    }
    return @tokens;
}

# The place behind the bracket that closes the one at $at.
sub behind ($tokens, $at) {
    my $depth = 0;
    while ($at < @$tokens) {
        my $token = $tokens->[$at++];
        $depth += $token =~ /^[{(\[]$/ ? 1 : $token =~ /^[})\]]$/ ? -1 : 0;
        last if $depth == 0;
    }
    return $at;
}

# The place behind the item, statement or field at $at.
sub behind_item ($tokens, $at) {
    my $ends_at_block = ($tokens->[$at + ($tokens->[$at] eq 'pub')] // '') !~ /^(?:use|static|let)$/;
    while ($at < @$tokens && $tokens->[$at] ne '}') {
        my $token = $tokens->[$at];
        return $at + 1 if $token eq ';' || $token eq ',';
        $at = $token =~ /^[{(\[]$/ ? behind($tokens, $at) : $at + 1;
        return $at if $token eq '{' && $ends_at_block;
    }
    return $at;
}

# The imports of the tree at $$at, each as its path and the name that it gets; the name `*` for all of a module.
sub use_tree ($tokens, $at, @path) {
    while (1) {
        my $token = $tokens->[$$at++] // die 'an import without an end';
        if ($token eq '{') {
            my @imports;
            while ($tokens->[$$at] ne '}') {
                push @imports, use_tree($tokens, $at, @path);
                $$at++ if $tokens->[$$at] eq ',';
            }
            $$at++;
            return @imports;
        }
        return [[@path], '*'] if $token eq '*';
        next if $token eq '::';
        push @path, $token if $token ne 'self' || !@path;
        next if $tokens->[$$at] eq '::';
        return [[@path], $path[-1]] if $tokens->[$$at] ne 'as';
        $$at += 2;
        return [[@path], $tokens->[$$at - 1]];
    }
}

# A module: its file, its parent, its children and items by name, the paths behind imported names, the globs, all paths
# that count, the words of its code.
sub module ($file, $parent, $dir, $tokens) {
    my $module = { file => $file, parent => $parent, child => {}, item => {}, import => {}, globs => [], paths => [], words => {} };
    my ($at, $depth, $public) = (0, 0, '');
    while ($at < @$tokens) {
        my ($token, $next) = ($tokens->[$at], $tokens->[$at + 1] // '');
        my $was_public = $public;
        $public = '';
        if ($token eq '#' && ($next eq '[' || $next eq '!')) {
            my $end = behind($tokens, $at + ($next eq '!' ? 2 : 1));
            my $for_tests = join('', @$tokens[$at .. $end - 1]) =~ /^#!?\[cfg\((?:test\)|all\(test\b)/;
            return $module if $for_tests && $next eq '!';
            $at = $end;
            next if !$for_tests;
            $at = behind($tokens, $at + 1) while ($tokens->[$at] // '') eq '#';
            $at = behind_item($tokens, $at);
        } elsif ($token eq 'pub') {
            $public = 1;
            $at++;
            $at = behind($tokens, $at) if $next eq '(' && $tokens->[$at + 1] =~ /^(?:crate|super|self|in)$/;
        } elsif ($token eq 'use' && $next ne '<') {
            $at++;
            for (use_tree($tokens, \$at)) {
                my ($path, $name) = @$_;
                if ($name eq '*') {
                    push $module->{globs}->@*, $path;
                } else {
                    $module->{import}{$name} = $path;
                    push $module->{paths}->@*, { path => $path, passed_on => $was_public && $name };
                }
            }
        } elsif ($token eq 'mod' && $next =~ /^\w+$/ && $tokens->[$at + 2] eq ';') {
            my ($source) = grep { -e } "$dir/$next.rs", "$dir/$next/mod.rs" or die "$file: mod $next has no file";
            $module->{child}{$next} = module($source, $module, "$dir/$next", [tokens(slurp($source))]);
            $at += 3;
        } elsif ($token eq 'mod' && $next =~ /^\w+$/ && $tokens->[$at + 2] eq '{') {
            my $end = behind($tokens, $at + 2);
            $module->{child}{$next} = module($file, $module, "$dir/$next", [@$tokens[$at + 3 .. $end - 2]]);
            $at = $end;
        } else {
            if ($depth == 0 && $token =~ /^(?:struct|enum|union|trait|type|fn|const|static)$/) {
                $module->{item}{ $next eq 'mut' ? $tokens->[$at + 2] : $next } = 1;
            }
            $module->{item}{ $tokens->[$at + 2] } = 1 if $token eq 'macro_rules';
            $depth += $token eq '{' ? 1 : $token eq '}' ? -1 : 0;
            if ($token =~ /^(?:[A-Za-z_]\w*|\$crate)$/ && ($at == 0 || $tokens->[$at - 1] !~ /^(?:\.|::)$/)) {
                $module->{words}{$token} = 1;
                my @path = ($token);
                while (($tokens->[$at + 1] // '') eq '::' && ($tokens->[$at + 2] // '') =~ /^[A-Za-z_]\w*$/) {
                    push @path, $tokens->[$at + 2];
                    $at += 2;
                }
                push $module->{paths}->@*, { path => \@path, in_code => 1 } if @path > 1;
            }
            $at++;
        }
    }
    return $module;
}

# Where a path leads: a module, and an item in it if it is the path of one. Nothing if it leads out of the crate.
sub resolve ($module, $path, $seen = {}) {
    my @path = @$path;
    return if $seen->{"$module @path"}++;
    if ($path[0] =~ /^\$?crate$/) {
        $module = $module->{parent} while $module->{parent};
        shift @path;
    }
    shift @path if @path && $path[0] eq 'self';
    while (@path && $path[0] eq 'super') {
        $module = $module->{parent} // return;
        shift @path;
    }
    while (@path) {
        my $name = shift @path;
        if ($module->{child}{$name} && (@path || !$module->{item}{$name})) {
            $module = $module->{child}{$name};
            next;
        }
        return ($module, $name) if $module->{item}{$name};
        my ($there, $item);
        if (my $import = $module->{import}{$name}) {
            return if "@$import" eq $name;
            ($there, $item) = resolve($module, $import, $seen);
        } else {
            for my $glob ($module->{globs}->@*) {
                my ($globbed, $of_type) = resolve($module, $glob, $seen);
                ($there, $item) = resolve($globbed, ['self', $name], $seen) if $globbed && !defined $of_type;
                last if $there;
            }
        }
        return ($there, $item) if !$there || defined $item;
        $module = $there;
    }
    return $module;
}

sub gather ($module, $imports) {
    my $file = $module->{file};
    $imports->{$file} //= {};
    my $note = sub ($path) {
        my ($there, $item) = resolve($module, $path);
        $imports->{$file}{ $there->{file} }{$item} = 1 if $there && defined $item && $there->{file} ne $file;
    };
    for my $use ($module->{paths}->@*) {
        next if $use->{in_code} && $module->{child}{ $use->{path}[0] };
        next if $use->{passed_on} && !$module->{words}{ $use->{passed_on} };
        $note->($use->{path});
    }
    if ($module->{globs}->@*) {
        for my $word (keys $module->{words}->%*) {
            $note->(['self', $word]) if !grep { $module->{$_}{$word} } qw(item import child);
        }
    }
    gather($_, $imports) for values $module->{child}->%*;
}

1;
