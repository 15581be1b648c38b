# Over TLS a stream gives its request back, too; TLS itself stays with the connection.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;
use PushStream::WebSocket;
use File::Temp ();

plan skip_all => 'this nginx has no TLS' if !PushStream::Nginx->has_module('http_ssl');

my $keys = File::Temp->newdir;
system("openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=localhost -days 2 -keyout $keys/key -out $keys/certificate 2>$keys/output") == 0
    or die 'no certificate';

# A client whose bytes go through TLS.
package PushStream::TlsClient {
    use parent -norequire, 'PushStream::Client';
    use IO::Socket::SSL;

    sub new ($class, $port, %options) {
        my $self = PushStream::Client::new($class, $port, %options);
        IO::Socket::SSL->start_SSL($self->socket, SSL_verify_mode => SSL_VERIFY_NONE, SSL_version => $options{version} // 'SSLv23')
            or die "no TLS: $IO::Socket::SSL::SSL_ERROR\n";
        return $self;
    }

    # What TLS has decrypted already is not announced by the socket.
    sub _fill ($self, $deadline) {
        my $socket = $self->socket;
        return PushStream::Client::_fill($self, $deadline) if !$socket->pending;
        return sysread($socket, $self->{buffer}, $socket->pending, length $self->{buffer}) > 0;
    }
}

# The same whether OpenSSL keeps TLS or not.
for my $taken (qw(off on)) {
    note "push_stream_detach_tls $taken";
    with_nginx conf() =~ s/KEYS/$keys/gr =~ s/TAKEN/$taken/r, sub ($nginx) { check($nginx, $taken) };
}

sub conf { return <<'CONF' }
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_shared_memory_size 32m;
    push_stream_channels_path $arg_id;
    push_stream_detach_tls TAKEN;
    push_stream_header_template "head";
    push_stream_footer_template "foot";
    push_stream_subscriber_queue 16m;
    log_format short '$status $uri $ssl_protocol';
    access_log %%DIR%%/short.log short;

    server {
        listen 127.0.0.1:%%PORT%% ssl sndbuf=16k;
        ssl_certificate KEYS/certificate;
        ssl_certificate_key KEYS/key;
        ssl_protocols TLSv1.2 TLSv1.3;
        client_max_body_size 1m;
        client_body_buffer_size 1m;
        keepalive_requests 100000;

        location /pub { access_log off; push_stream_publisher admin; }
        location /status { access_log off; push_stream_channels_statistics; }
        location /metrics { access_log off; push_stream_channels_statistics; push_stream_statistics_format prometheus; }
        location /ev { push_stream_subscriber eventsource; }
        location /ws { push_stream_subscriber websocket; push_stream_header_template ""; push_stream_footer_template ""; push_stream_websocket_allow_publish on; }
        location /skip { push_stream_subscriber; push_stream_subscriber_queue 100k; push_stream_slow_reader skip; }
    }
}
CONF

sub check ($nginx, $taken) {
    my $connect = sub (%options) { PushStream::TlsClient->new($nginx->port, %options) };
    my $subscribe = sub ($uri, %options) {
        my $client = $connect->(%options);
        $client->send_request(GET => $uri);
        $client->head;
        return $client;
    };
    my $publisher = $connect->();
    my $publish = sub ($id, $text) { $publisher->request(POST => "/pub?id=$id", body => $text)->status };
    my $subscribers = sub { $connect->()->request(GET => '/status')->json->{subscribers} };
    my $logged = sub ($line) {
        wait_until { open my $file, '<', $nginx->dir . '/short.log' or return 0; grep { $_ eq "$line\n" } <$file> };
    };

    for my $version (qw(TLSv1_2 TLSv1_3)) {
        my $stream = $subscribe->('/ev?id=a', version => $version);
        my $protocol = $version =~ s/_/./r;
        ok $logged->("200 /ev $protocol"), "$version: a stream gives its request back";
        is $stream->chunk, ": head\n", 'its header';
        is $publish->('a', "message $_"), 200, 'a message' for 1 .. 2;
        is $stream->chunk, "data: message $_\n\n", 'arrives' for 1 .. 2;
        $publisher->request(DELETE => '/pub?id=a');
        is join('', $stream->chunks_to_end), "data: Channel deleted\n\n: foot\n", 'the end';
        ok $stream->is_closed, 'and the end of the connection';

        my $socket = bless { client => $connect->(version => $version) }, 'PushStream::WebSocket';
        my %handshake = PushStream::WebSocket::handshake();
        $socket->client->send(join '', "GET /ws?id=a HTTP/1.1\r\nHost: x\r\n", map({"$_: $handshake{$_}\r\n"} sort keys %handshake), "\r\n");
        is $socket->client->head->status, 101, 'a WebSocket';
        ok $logged->("101 /ws $protocol"), 'gives its request back';
        for my $text (short => 'x' x 100_000) {
            $socket->send(PushStream::WebSocket::TEXT, $text);
            ok $socket->text eq $text, 'echoed: ' . length $text;
        }
        $socket->send(PushStream::WebSocket::CLOSE, pack 'n', 1000);
        is_deeply [ $socket->next_frame ], [ PushStream::WebSocket::CLOSE, pack 'n', 1000 ], 'closed';
        ok $socket->client->is_closed, 'and the connection ends';
    }

    my ($count) = $connect->()->request(GET => '/metrics')->body =~ /^push_stream_tls_taken_over_total (\d+)/m;
    is $count, $taken eq 'on' ? 2 : 0, 'TLS 1.3 is taken over' . ($taken eq 'on' ? '' : ' where that is wanted');

    # What was offered to TLS must be offered again as it was, whatever happens to the queue meanwhile.
    my @slow = map { $subscribe->($_, receive_buffer => 4096) } '/ev?id=b', '/skip?id=b';
    my $message = sub ($n) { sprintf('%04d:', $n) . chr(97 + $n % 26) x 40_000 };
    $publish->('b', $message->($_)) for 1 .. 50;
    $publisher->request(DELETE => '/pub?id=b');
    my @got = $slow[0]->chunks_to_end(30);
    ok join('', @got) eq join('', ": head\n", map({ 'data: ' . $message->($_) . "\n\n" } 1 .. 50), "data: Channel deleted\n\n: foot\n"),
        'a slow reader gets every byte';
    my ($last, $wrong) = (0, 0);
    @got = $slow[1]->chunks_to_end(30);
    is shift @got, 'head', 'one that misses messages';
    is join('', splice @got, -2), 'Channel deletedfoot', 'gets the end';
    my $in_a_row = 0;
    for my $chunk (@got) {
        my ($n) = $chunk =~ /^(\d{4}):/;
        $wrong++ if !$n || $n <= $last || $chunk ne $message->($n);
        $in_a_row = $n && $n == $last + 1 ? $in_a_row + 1 : 1;
        $last = $n // $last;
    }
    is $wrong, 0, 'and whole messages before';
    # Unless TLS was offered at once more than the queue may hold: that must stay, and the notice of the end is the last.
    my $fills_queue = $in_a_row * length $message->(1) > 100 * 1024;
    ok $last == 50 || $fills_queue, 'the last one among them' or diag "$last of " . @got;
    cmp_ok scalar @got, '<', 50, 'but not all';
    $_->close for @slow;

    my @left = map { $subscribe->('/ev?id=c') } 1 .. 3;
    $left[0]->close;
    ok wait_until { $subscribers->() == 2 }, 'who leaves is noticed';
    $nginx->signal('QUIT');
    is join('', $_->chunks_to_end), ": head\n: foot\n", 'quit ends the others' for @left[1, 2];
    is $nginx->wait_for_exit, 0, 'and nginx';
}

done_testing;
