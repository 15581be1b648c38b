# Every ready configuration passes `nginx -t`, without a warning.

use v5.36;
use Cwd qw(abs_path);
use File::Basename qw(basename dirname);
use File::Temp qw(tempdir);
use Test::More;

my $root = dirname(dirname(abs_path(__FILE__)));
# Where nginx is, a mere user does not look.
$ENV{PATH} .= ':/usr/sbin';
my $nginx = $ENV{TEST_NGINX_BINARY} // 'nginx';
my $module = $ENV{PUSH_STREAM_MODULE} // "$root/target/release/libngx_http_push_stream_module.so";
my ($version) = `$nginx -v 2>&1` =~ m{nginx/1\.(\d+)};

sub slurp ($file) { open my $in, '<', $file or die "$file: $!"; local $/; return scalar <$in> }

for my $file (sort glob "$root/nginx-conf/*.conf $root/nginx-conf/cluster/*.conf") {
    my $dir = tempdir('push-stream-conf-XXXXXX', TMPDIR => 1, CLEANUP => 1);
    mkdir "$dir/$_" or die $! for 'modules', 'tmp', 'run', 'logs';
    symlink $module, "$dir/modules/ngx_http_push_stream_module.so" or die $!;

    # Where it goes, and what it listens on, belongs to the machine; everything else is tested as it stands.
    my $conf = slurp($file);
    $conf =~ s{/run/|/var/log/nginx/}{$dir/run/}g;
    $conf =~ s{unix:(?!/)}{unix:$dir/}g;
    $conf =~ s{listen (80|443)\b}{'listen ' . ($1 + 20000)}ge;
    if ($conf =~ s{/etc/nginx/tls/}{$dir/}g) {
        system("openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost -keyout $dir/privkey.pem -out $dir/fullchain.pem 2>/dev/null") == 0
            or die 'openssl';
    }
    # A mere user may not write where nginx would by default.
    my @paths = map { "${_}_temp_path tmp/$_;" } qw(client_body proxy fastcgi uwsgi scgi);
    @paths = () if $conf =~ /client_body_temp_path/;
    push @paths, 'access_log access.log;' unless $conf =~ /access_log/;
    $conf =~ s/^http \{\n/http {\n@paths\n/m;
    open my $out, '>', "$dir/nginx.conf" or die $!;
    print {$out} $conf;
    close $out;

    my $globals = $conf =~ /^pid /m ? '' : "pid $dir/nginx.pid;";
    my $said = `$nginx -p $dir/ -c nginx.conf -e $dir/error.log -g '$globals' -t 2>&1`;
    is($? >> 8, 0, basename($file) . ' is accepted') or diag $said;
    my @warnings = grep { /\[warn\]/ } split /\n/, $said;
    # nginx 1.25.1 has a new word for it, which 1.22 does not know.
    @warnings = grep { !/"listen \.\.\. http2" directive is deprecated/ } @warnings if $version >= 25;
    is("@warnings", '', basename($file) . ' gives no warning');
}
done_testing;
