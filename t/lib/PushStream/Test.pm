package PushStream::Test;

# What a test file needs, in one `use`: Test::More, a real nginx with the module, and clients that show what is on the
# wire.
#
#     use v5.36;
#     use FindBin;
#     use lib "$FindBin::Bin/lib";
#     use PushStream::Test;
#
#     with_nginx <<'CONF', sub ($nginx) {
#     %%MAIN%%
#     events {}
#     http {
#         %%HTTP%%
#         push_stream_shared_memory_size 1m;
#         server {
#             listen 127.0.0.1:%%PORT%%;
#             ...
#         }
#     }
#     CONF
#         is $nginx->post('/pub?id=a', 'hello')->status, 200, 'a message is published';
#     };
#
#     done_testing;
#
# Environment:
#
#     PUSH_STREAM_MODULE   the module; default target/release/libngx_http_push_stream_module.so
#     TEST_NGINX_BINARY    nginx; default `nginx` from PATH
#     TEST_WORKERS         numbers of workers to run every test with; default "1 4"
#     TEST_TRANSPORT       http1 (the default), tls (HTTP/1.1 over TLS), taken-tls (the same, with push_stream_detach_tls on) or http2 (over TLS)
#     TEST_SLOWNESS        multiplies every time limit, for a loaded machine; default 1
#     TEST_SANITIZER       set: nginx and module were built with that sanitizer, and take more memory than they need
#     TEST_KEEP            set: leave the directory of every nginx behind

use v5.36;

use Test::More;
use Time::HiRes qw(sleep time);

use PushStream::Nginx;

use Exporter 'import';
our @EXPORT = (@Test::More::EXPORT, qw(with_nginx over_http2 only_over_http1 only_over_plain_http1 configuration_output refuses accepts wait_until within time sleep));

# A client that hung up is no reason to end a test.
$SIG{PIPE} = 'IGNORE';

# Runs the body once for each number of workers, each time with a fresh nginx, then stops it and reads its error log.
sub with_nginx ($conf, $body, %options) {
    for my $workers (split ' ', $ENV{TEST_WORKERS} // '1 4') {
        subtest "$workers worker" . ($workers == 1 ? '' : 's') => sub {
            my $nginx = PushStream::Nginx->start($conf, workers => $workers, %options);
            my $ended = eval { $body->($nginx); 1 };
            ok $ended, 'the test ran to its end' or diag $@;
            $nginx->stop if $nginx->is_running;
            my @complaints = $nginx->complaints;
            ok !@complaints, 'nothing alarming in the error log' or diag @complaints[0 .. ($#complaints > 19 ? 19 : $#complaints)];
            # Otherwise one failing subtest says little when the cause is in the log.
            diag 'error log: ' . $nginx->log_tail unless Test::More->builder->is_passing;
        };
    }
}

# Does this run speak HTTP/2 where it can?
sub over_http2 { return PushStream::Nginx::transport() eq 'http2' }

# For tests of what HTTP/2 has not: chunks, versions, bytes as they are.
sub only_over_http1 ($reason) {
    plan skip_all => "not over HTTP/2: $reason" if over_http2();
}

# For tests whose clients are programs of their own.
sub only_over_plain_http1 ($reason) {
    plan skip_all => "only over plain HTTP/1: $reason" if PushStream::Nginx::transport() ne 'http1';
}

# What `nginx -t` says; true if it is content, as a list (content, text of stderr and error log).
sub configuration_output ($conf) {
    return PushStream::Nginx->check($conf);
}

# `nginx -t` fails, and says why.
sub refuses ($conf, $reason, $name) {
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    my ($content, $output) = configuration_output($conf);
    my $found = ref $reason ? $output =~ $reason : index($output, $reason) >= 0;
    ok !$content && $found, $name
        or diag $content ? 'it was accepted: ' : "wanted: $reason\ngot: ", $output;
}

# `nginx -t` succeeds. Returns what it said.
sub accepts ($conf, $name) {
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    my ($content, $output) = configuration_output($conf);
    ok $content, $name or diag $output;
    return $output;
}

# It took no longer than that, or what that is on a slow machine.
sub within ($took, $seconds, $name) {
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    my $limit = $seconds * PushStream::Nginx::slowness();
    ok $took < $limit, $name or diag sprintf 'it took %.2f s, and may take %.2f s', $took, $limit;
}

# Asks again and again until the answer is true. Returns it, or the last false one when the time is up.
sub wait_until : prototype(&;$) ($condition, $seconds = 5) {
    my $deadline = time + $seconds * PushStream::Nginx::slowness();
    while (1) {
        my $answer = $condition->();
        return $answer if $answer || time > $deadline;
        sleep 0.01;
    }
}

1;
