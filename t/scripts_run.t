# scripts/run: refuses what cannot work, publishes what is posted, and leaves nothing behind.

use v5.36;
use Cwd qw(abs_path);
use File::Basename qw(dirname);
use File::Path qw(remove_tree);
use HTTP::Tiny;
use IO::Socket::INET;
use Test::More;
use Time::HiRes qw(sleep);

my $root = dirname(dirname(abs_path(__FILE__)));
use lib dirname(abs_path(__FILE__)) . '/browser';
use Demo;

sub run_fails_with ($name, $pattern, @options) {
    my $said = `$root/scripts/run @options 2>&1`;
    isnt($? >> 8, 0, "$name: refused");
    like($said, $pattern, "$name: says why");
}

subtest 'what cannot work is refused' => sub {
    my ($port, $taken);
    until ($taken) {
        $port = 12_001 + int rand 20_000;
        # Those before it are free.
        my @before = map { IO::Socket::INET->new(Listen => 1, LocalAddr => '127.0.0.1', LocalPort => $port - $_) // () } 1, 2;
        next if @before < 2;
        $taken = IO::Socket::INET->new(Listen => 1, LocalAddr => '127.0.0.1', LocalPort => $port);
    }
    run_fails_with('a taken port', qr/cannot listen on 127\.0\.0\.1:$port: taken/, '--port', $port);
    run_fails_with("a port of the worker's taken", qr/port $port, the worker's, is taken/, '--port', $port - $_) for 1, 2;
    run_fails_with('no port', qr/"http" is no port/, '--port', 'http');
    run_fails_with('a port out of range', qr/"70000" is no port/, '--port', 70000);
    run_fails_with('a missing value', qr/--port wants a value/, '--port');
    run_fails_with('an unknown option', qr/unknown option "--prot"/, '--prot', 1);
};

subtest 'a comment is cleaned, formatted and published to its three channels' => sub {
    my $demo = Demo->start;
    my $http = HTTP::Tiny->new;
    my $response = $http->post($demo->url . 'comments', {
        headers => { 'Content-Type' => 'application/json' },
        content => '{"id":"c1","forum":"demo","thread":"t1","author":{"id":"u1","name":"Ann"},"message":"<b>Hi</b><script>x</script>"}',
    });
    is(substr($response->{status}, 0, 1), 2, 'the worker takes it') or diag "$response->{status} $response->{content}";
    for my $channel ('thread.t1', 'forum.demo', 'user.u1') {
        my $recent;
        for (1 .. 100) {
            $recent = $http->get($demo->url . "recent/$channel");
            last if $recent->{status} == 200;
            sleep 0.05;
        }
        is($recent->{status}, 200, "$channel has it");
        like($recent->{content}, qr/"id":\s*"c1"/, "$channel: with its id");
        like($recent->{content}, qr{<b>Hi}, "$channel: with its markup");
        unlike($recent->{content}, qr/script/, "$channel: without what could run");
        is($recent->{content} =~ tr/\n//, 1, "$channel: on one line, once");
    }
    my $stats = $http->get($demo->url . 'stats/thread.t1');
    like($stats->{content}, qr/"published_messages": 1, "stored_messages": 1, "subscribers": 0/, 'and the figures are right');
    is($http->get($demo->url . 'pub?id=thread.t1')->{status}, 404, 'readers cannot publish');
    like($http->get($demo->url . 'console?worker=0')->{content}, qr/"pipeline":"comments"/, "the console shows the worker's pipeline");
    is($http->get($demo->url . 'worker/stats')->{status}, 404, 'which readers cannot ask by themselves');
    $demo->stop;
    ok(!IO::Socket::INET->new(PeerAddr => '127.0.0.1:' . $demo->{port}), 'nobody listens any more');
};

subtest 'if one of the two dies, the other does not stay' => sub {
    my $demo = Demo->start(quiet => 1);
    kill QUIT => $demo->nginx_pid;
    waitpid delete $demo->{pid}, 0;
    isnt($? >> 8, 0, 'scripts/run fails');
    is(join(' ', $demo->processes), '', 'nothing is left');
    remove_tree($demo->dir);
};

done_testing;
