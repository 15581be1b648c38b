# The links and anchors of Markdown files, as GitHub and mdBook make them.

package PushStream::Markdown;

use v5.36;

use File::Basename qw(dirname);
use File::Spec;

use Exporter qw(import);
our @EXPORT_OK = qw(anchors links broken slurp);

sub slurp ($file) { open my $in, '<:encoding(UTF-8)', $file or die "$file: $!"; local $/; return scalar <$in> }

# The text without what stands in fences, so that a comment of a shell is no heading.
sub prose ($text) {
    my ($fence, @kept);
    for my $line (split /\n/, $text, -1) {
        if (defined $fence) { undef $fence if $line =~ /^\s*\Q$fence\E+\s*$/ }
        elsif ($line =~ /^\s*(```+|~~~+)/) { $fence = $1 }
        else { push @kept, $line }
    }
    return join "\n", @kept;
}

# The anchors of its headings. Of equal ones, the later have a number.
sub anchors ($text) {
    my (%seen, @anchors);
    for my $heading (prose($text) =~ /^ {0,3}#{1,6} +(.*?)(?: +#+)? *$/mg) {
        $heading =~ s/!?\[([^\]]*)\]\([^)]*\)/$1/g;
        my $anchor = lc $heading;
        $anchor =~ s/[^\w\- ]//g;
        $anchor =~ tr/ /-/;
        push @anchors, $anchor . ($seen{$anchor}++ ? '-' . ($seen{$anchor} - 1) : '');
    }
    return @anchors;
}

# Where its links and images lead: as they are written, in order.
sub links ($text) {
    my $prose = prose($text);
    # What is code is no link, but may be the text of one.
    $prose =~ s/(`+)(?!`).*?(?<!`)\1(?!`)/code/gs;
    my $title = qr/(?:\s+(?:"[^"]*"|'[^']*'))?/;
    my @links;
    push @links, $1 // $2 while $prose =~ /\]\(\s*<?([^)\s>]+)>?$title\s*\)|^ {0,3}\[[^\]]+\]: *<?([^\s>]+)>?$title *$/mg;
    return @links;
}

# What is wrong with the links of a file: a list of texts. Those to other hosts are not followed.
sub broken ($file) {
    my @wrong;
    for my $link (links(slurp($file))) {
        next if $link =~ /^[a-z][a-z0-9+.-]*:/i;
        my ($path, $anchor) = $link =~ /^([^#]*)(?:#(.*))?$/;
        my $to = length $path ? File::Spec->catfile(dirname($file), $path) : $file;
        if (!-e $to) { push @wrong, "$link: there is no such file" }
        elsif (defined $anchor && ($to !~ /\.md$/ || !grep { $_ eq $anchor } anchors(slurp($to)))) {
            push @wrong, "$link: there is no such anchor";
        }
    }
    return @wrong;
}

1;
