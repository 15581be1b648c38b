# Every link in a document leads to a file that there is, and to a heading in it; every document is in the book, once.

use v5.36;

use Cwd qw(abs_path);
use File::Basename qw(dirname);
use File::Find qw(find);
use File::Temp;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Markdown qw(anchors broken links);
use Test::More;

# What a document may have.
my $dir = File::Temp->newdir;
my %example = (
    'a.md' => <<'MARKDOWN',
# One `two_three`: four, *five* & [six](b.md#b "title")
## Again
## Again
```sh
# no heading, and [no link](nowhere)
```
`[no](link)`, [`code`](b.md), ![picture](c.png), [up](#again-1), [far](https://example.com/#x), <a>, [by name][name],
[wrong](d.md), [file](c.png#b) and [wrong](b.md#c)

[name]: b.md#no
MARKDOWN
    'b.md' => "# B\n",
    'c.png' => '',
);
for my $name (keys %example) {
    open my $out, '>', "$dir/$name" or die "$name: $!";
    print {$out} $example{$name};
}
is_deeply [ anchors($example{'a.md'}) ], [ 'one-two_three-four-five--six', 'again', 'again-1' ], 'anchors of headings';
is_deeply [ links($example{'a.md'}) ], [split / /, 'b.md#b b.md c.png #again-1 https://example.com/#x d.md c.png#b b.md#c b.md#no'], 'links';
is_deeply [ broken("$dir/a.md") ],
    [ 'd.md: there is no such file', map { "$_: there is no such anchor" } 'c.png#b', 'b.md#c', 'b.md#no' ], 'broken links';

my $root = dirname(dirname(abs_path(__FILE__)));
my @documents = glob "$root/*.md $root/docs/*.md $root/clients/js/*.md $root/.git[hl]*/*.md $root/.git[hl]*/*/*.md";
cmp_ok scalar @documents, '>', 15, 'there are documents';
my $links = 0;
for my $file (@documents) {
    open my $in, '<', $file or die "$file: $!";
    $links += links(do { local $/; scalar <$in> });
    is_deeply [ broken($file) ], [], substr($file, 1 + length $root) . ': each link leads somewhere';
}
cmp_ok $links, '>', 200, 'with links';

open my $in, '<', "$root/docs/SUMMARY.md" or die "SUMMARY.md: $!";
my %chapters;
$chapters{ abs_path("$root/docs/$_") }++ for links(do { local $/; scalar <$in> });
is_deeply [ grep { $chapters{$_} > 1 } sort keys %chapters ], [], 'no document is in the book twice';
is_deeply [ grep { !$chapters{$_} && !m{/SUMMARY\.md$} } glob "$root/docs/*.md" ], [], 'each of docs/ is in the book';

done_testing;
