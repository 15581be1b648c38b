# push_stream_detach_tls: an idle stream's TLS is taken over from OpenSSL, and no client can tell.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;
use File::Temp ();
use PushStream::Talker;

plan skip_all => 'this nginx has no TLS' if !PushStream::Nginx->has_module('http_ssl');
only_over_plain_http1 'it is about TLS itself';

# More by an environment variable: how many connections with clients that do anything.
my $connections = $ENV{TEST_TLS_CONNECTIONS} // 60;

my $scratch = File::Temp->newdir('push-stream-test-XXXXXX', TMPDIR => 1);

sub compile ($name, $source, @flags) {
    my @command = ('gcc', '-O1', '-o', "$scratch/$name", $source, @flags);
    system(@command) == 0 or die "gcc made no $name\n";
    return "$scratch/$name";
}

my $client = compile('tls_client', "$FindBin::Bin/peers/tls_client.c", '-lssl', '-lcrypto');

my $conf = <<'CONF';
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_shared_memory_size 32m;
    push_stream_channels_path $arg_id;
    push_stream_header_template "head";
    push_stream_detach_tls on;
    ssl_certificate %%CERTIFICATE%%;
    ssl_certificate_key %%KEY%%;
    ssl_protocols TLSv1.2 TLSv1.3;
    ssl_session_cache shared:sessions:1m;
    client_max_body_size 1m;
    client_body_buffer_size 1m;
    keepalive_requests 1000000;

    server {
        listen 127.0.0.1:%%PORT%% ssl;
        location /pub { push_stream_publisher admin; }
        location /ev { push_stream_subscriber eventsource; }
        location /status { push_stream_channels_statistics; }
        location /metrics { push_stream_channels_statistics; push_stream_statistics_format prometheus; }
    }
}
CONF

with_nginx $conf, sub ($nginx) {
    my $connect = sub { PushStream::Client->new($nginx->port, tls => ['http/1.1']) };
    my $ask = sub ($method, $uri, %options) { $connect->()->request($method => $uri, %options) };
    my $publish = sub ($id, $text) { $ask->(POST => "/pub?id=$id", body => $text)->status };
    my $metric = sub ($name) { $ask->(GET => '/metrics')->body =~ /^push_stream_\Q$name\E (\d+)$/m ? $1 : undef };
    my $subscribers = sub ($id) { my $answer = $ask->(GET => "/status?id=$id"); $answer->status == 200 ? $answer->json->{subscribers} : 0 };

    my $seed = $ENV{TEST_TLS_SEED} // $$;
    my $said = qx{$client @{[ $nginx->port ]} $connections $seed};
    is $? >> 8, 0, "clients that do anything get what they should (seed $seed)" or diag $said;
    ok wait_until { $metric->('tls_taken_over_total') == $connections }, 'and all were taken over';
    is $metric->(qq(tls_kept_total{reason="$_"})), 0, "none was kept for being $_" for qw(protocol unknown);

    subtest 'openssl s_client' => sub {
        for my $suite (qw(TLS_AES_128_GCM_SHA256 TLS_CHACHA20_POLY1305_SHA256)) {
            my $peer = PushStream::Talker->new('openssl', 's_client', '-connect', '127.0.0.1:' . $nginx->port, '-tls1_3', '-ciphersuites', $suite);
            ok $peer->hears($suite), $suite;
            $peer->say("GET /ev?id=s HTTP/1.1\r\nHost: x\r\n\r\n");
            ok $peer->hears(": head\n"), 'the head';
            for my $key (qw(k K K k)) {
                $peer->say("$key\n");
                ok $peer->hears('KEYUPDATE'), "a KeyUpdate ($key)";
                $publish->('s', "after $key");
                ok $peer->hears("data: after $key\n\n"), 'a message after it';
            }
            $ask->(DELETE => '/pub?id=s');
            ok $peer->hears('Channel deleted'), 'the end';
            ok $peer->hears('closed'), 'which s_client takes for one';
        }
    };

    subtest 'curl' => sub {
        my $peer = PushStream::Talker->new(qw(curl -skN --http1.1), 'https://127.0.0.1:' . $nginx->port . '/ev?id=c');
        ok $peer->hears(": head\n"), 'the head';
        my $text = 'x' x 100_000;
        $publish->('c', $text);
        ok $peer->hears("data: $text\n\n"), 'a long message';
        $ask->(DELETE => '/pub?id=c');
        ok $peer->hears('Channel deleted'), 'the end';
    };

    subtest 'GnuTLS' => sub {
        plan skip_all => 'no gnutls-cli' if !grep { -x "$_/gnutls-cli" } split /:/, $ENV{PATH};
        my $peer = PushStream::Talker->new(qw(gnutls-cli --insecure --inline-commands --priority NORMAL:-VERS-ALL:+VERS-TLS1.3 -p), $nginx->port, '127.0.0.1');
        ok $peer->hears('Simple Client Mode'), 'a handshake';
        $peer->say("GET /ev?id=g HTTP/1.1\nHost: x\n\n");
        ok $peer->hears(': head'), 'the head';
        for my $turn (1 .. 3) {
            $peer->say("^rekey^\n");
            ok $peer->hears('key'), 'rekeyed';
            $publish->('g', "after $turn");
            ok $peer->hears("data: after $turn"), 'a message after it';
        }
    };

    subtest 'Python' => sub {
        my $peer = PushStream::Talker->new('python3', '-u', '-c', <<'PYTHON', $nginx->port);
import socket, ssl, sys
context = ssl.create_default_context()
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
client = context.wrap_socket(socket.create_connection(("127.0.0.1", int(sys.argv[1]))))
client.sendall(b"GET /ev?id=p HTTP/1.1\r\nHost: x\r\n\r\n")
while data := client.recv(70000):
    sys.stdout.write(data.decode())
print("end of", client.version())
PYTHON
        ok $peer->hears(": head\n"), 'the head';
        $publish->('p', 'hello');
        ok $peer->hears("data: hello\n\n"), 'a message';
        $ask->(DELETE => '/pub?id=p');
        ok $peer->hears('end of TLSv1.3'), 'a proper end';
    };

    subtest 'who does not keep to TLS' => sub {
        my %subscribed = map {
            my $reader = $connect->();
            $reader->send_request(GET => "/ev?id=$_");
            $reader->chunk;
            ok wait_until { $subscribers->($_) == 1 }, 'a reader';
            $_ => $reader;
        } qw(noise flood);
        my $taken = $metric->('tls_taken_over_total');
        # Bytes beside TLS.
        my $raw = dup($subscribed{noise}->socket);
        syswrite $raw, "\x17\x03\x03\x00\x20" . 'x' x 32;
        ok wait_until { $subscribers->('noise') == 0 }, 'a record that is not authentic ends the connection';
        my $answer = '';
        1 while sysread $raw, $answer, 4096, length $answer;
        is substr($answer, -24, 5), "\x17\x03\x03\x00\x13", 'with an alert, which is sealed';
        my $sent = eval { $subscribed{flood}->send('x' x 4096) for 1 .. 100; 1 };
        ok wait_until { $subscribers->('flood') == 0 }, 'data without an end that nobody has asked for do, too';
        ok wait_until { $metric->('subscribers_closed_total{reason="protocol_error"}') == 2 }, 'which is counted';
    };

    subtest 'TLS 1.2' => sub {
        my $peer = PushStream::Talker->new('openssl', 's_client', '-connect', '127.0.0.1:' . $nginx->port, '-tls1_2');
        ok $peer->hears('TLSv1.2'), 'a handshake';
        $peer->say("GET /ev?id=two HTTP/1.1\r\nHost: x\r\n\r\n");
        ok $peer->hears(": head\n"), 'the head';
        ok wait_until { $metric->('tls_kept_total{reason="protocol"}') == 1 }, 'stays with OpenSSL';
        $publish->('two', 'hello');
        ok $peer->hears("data: hello\n\n"), 'and gets its messages';
    };
};

# A second descriptor of a socket, for what is not to pass through its TLS.
sub dup ($socket) {
    open my $raw, '+<&', fileno $socket or die "cannot dup: $!\n";
    $raw->blocking(1);
    return $raw;
}

subtest 'a library that does not let a connection go' => sub {
    open my $source, '>', "$scratch/old.c" or die;
    print {$source} 'unsigned long OpenSSL_version_num(void) { return 0x1010117fL; }';
    close $source;
    my $old = compile('old.so', "$scratch/old.c", '-shared', '-fPIC');
    local $ENV{LD_PRELOAD} = $old;
    refuses $conf, 'push_stream_detach_tls on is not possible: this nginx has no OpenSSL 3.0 or later', 'is named';
    accepts $conf =~ s/push_stream_detach_tls on/push_stream_detach_tls off/r, 'and is no matter while it is off';
};

done_testing;
