# A reload that no reader notices whose TLS was taken over from OpenSSL: its keys and record numbers go to the new worker.
# The clients' OpenSSL ends a connection with an error at the first record that has not the next number, or another key.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;
use PushStream::WebSocket;
use PushStream::Talker;

plan skip_all => 'this nginx has no TLS' if !PushStream::Nginx->has_module('http_ssl');
only_over_plain_http1 'it is about TLS itself';

my $conf = <<'CONF';
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_shared_memory_size 16m;
    push_stream_channels_path $arg_id;
    push_stream_store_messages on;
    push_stream_detach_tls on;
    ssl_certificate %%CERTIFICATE%%;
    ssl_certificate_key %%KEY%%;
    ssl_protocols TLSv1.3;

    server {
        listen 127.0.0.1:%%PORT%% ssl sndbuf=32k;

        location /pub { push_stream_publisher admin; }
        location /sub { push_stream_subscriber; push_stream_message_template "~text~;"; push_stream_footer_template "foot"; }
        location /ev { push_stream_subscriber eventsource; }
        location /ordered { push_stream_subscriber eventsource; push_stream_resume ordered; }
        location /ws { push_stream_subscriber websocket; push_stream_websocket_allow_publish on; }
        location /status { push_stream_channels_statistics; }
        location /metrics { push_stream_channels_statistics; push_stream_statistics_format prometheus; }
    }
}
CONF

# What of the tests' nginx is used by clients of plain HTTP, over TLS.
package Encrypted {
    sub new ($class, $nginx) { return bless { nginx => $nginx }, $class }
    sub connect ($self, %options) { return PushStream::Client->new($self->{nginx}->port, tls => ['http/1.1'], %options) }
    sub ask ($self, $method, $uri, %options) { return $self->connect->request($method => $uri, %options) }
    sub publish ($self, $id, $text, @headers) { return $self->ask(POST => "/pub?id=$id", body => $text, headers => {@headers})->status }
    sub subscribe ($self, $uri, %options) {
        my $client = $self->connect(%options);
        $client->send_request(GET => $uri);
        $client->head;
        return $client;
    }
    sub metric ($self, $name) { return $self->ask(GET => '/metrics')->body =~ /^push_stream_\Q$name\E (\d+)$/m ? $1 : undef }
    sub queued ($self) {
        my $queued = 0;
        $queued += $_ for $self->ask(GET => '/metrics')->body =~ /^push_stream_worker_queue_bytes\{.*\} (\d+)$/mg;
        return $queued;
    }
    sub subscribers ($self) { return $self->ask(GET => '/status')->json->{subscribers} }
}

with_nginx $conf, sub ($nginx) {
    my $tls = Encrypted->new($nginx);
    my $stream = $tls->subscribe('/sub?id=a');
    my $event = $tls->subscribe('/ev?id=a/b');
    my $ordered = $tls->subscribe('/ordered?id=a');
    my $socket = PushStream::WebSocket->new($tls, '/ws?id=c');
    # It reads nothing for a while: ciphertext and messages wait.
    my $slow = $tls->subscribe('/sub?id=slow', receive_buffer => 4096);
    my %peers = map {
        my $peer = PushStream::Talker->new('openssl', 's_client', '-connect', '127.0.0.1:' . $nginx->port, '-tls1_3', '-ciphersuites', $_);
        $peer->hears($_) or die "no $_\n";
        $peer->say("GET /ev?id=a HTTP/1.1\r\nHost: x\r\n\r\n");
        ($_ => $peer);
    } qw(TLS_AES_128_GCM_SHA256 TLS_AES_256_GCM_SHA384 TLS_CHACHA20_POLY1305_SHA256);
    ok wait_until { $tls->metric('tls_taken_over_total') == 8 }, 'the TLS of all readers was taken over';

    my @large = map { "$_ " . 'x' x 60_000 } 1 .. 10;
    $tls->publish('slow', $_) for @large;
    my ($id, $handed) = (0, 0);
    my $round = sub ($name) {
        my $wrong = 0;
        for (1 .. 3) {
            my $text = $name . ' ' . ++$id;
            $wrong++ if $tls->publish('a', $text, 'Event-Id' => $id) != 200;
            $wrong++ if $stream->chunk ne "$text;";
            for my $reader ($event, $ordered) { $wrong++ if $reader->event->{data} ne $text }
            for my $peer (values %peers) { $wrong++ if !$peer->hears("data: $text\n\n") }
        }
        $tls->publish('c', $name);
        $wrong++ if $socket->text ne $name;
        $socket->send(1, "from the client $name");
        $wrong++ if $socket->text ne "from the client $name";
        is $wrong, 0, "all messages, $name";
    };
    $round->('at first');
    my $update = sub ($name) {
        for my $suite (sort keys %peers) {
            $peers{$suite}->say("K\n");
            ok $peers{$suite}->hears('KEYUPDATE'), "$suite: new keys in both directions $name";
        }
    };
    $update->('before the reload');
    for my $turn (1 .. 3) {
        # Then the beginning of what waits is ciphertext.
        ok wait_until { $tls->queued > 0 }, 'the slow reader waits';
        $nginx->reload;
        $handed += 8;
        ok wait_until { $tls->metric('subscribers_handed_over_total') == $handed }, "reload $turn hands all over";
        $round->("after reload $turn");
        $update->("after reload $turn");
        $tls->publish('slow', "reload $turn");
    }
    is $tls->metric('tls_taken_over_total'), 8, 'a reader that is handed over is not counted as taken over again';
    is $tls->subscribers, 8, 'and is one subscriber';
    my $wrong = 0;
    for my $text (@large, map { "reload $_" } 1 .. 3) { $wrong++ if $slow->chunk ne "$text;" }
    is $wrong, 0, 'a slow reader gets all that waited';
    ok wait_until { $tls->queued == 0 }, 'and nothing is counted as waiting any more';

    # Half of a record of the client has come.
    my $half = $tls->subscribe('/ev?id=a');
    ok wait_until { $tls->metric('tls_taken_over_total') == 9 }, 'another reader';
    open my $raw, '+<&', fileno $half->socket or die "cannot dup: $!\n";
    syswrite $raw, "\x17\x03\x03\x00\x20" . 'x' x 10;
    $round->('with half a record');
    $nginx->reload;
    $handed += 9;
    ok wait_until { $tls->metric('subscribers_handed_over_total') == $handed }, 'handed over with half a record';
    $round->('after it');
    is $half->event->{data}, "with half a record @{[ $id - 5 ]}", 'who sent it gets messages';
    syswrite $raw, 'x' x 21;
    ok $tls->subscribers == 9, 'nothing is done before the last byte has come';
    syswrite $raw, 'x';
    ok wait_until { $tls->metric('subscribers_closed_total{reason="protocol_error"}') == 1 }, 'the record is put together, and is not authentic';

    # All ends are those of TLS.
    $tls->ask(DELETE => "/pub?id=$_") for qw(a b slow);
    is_deeply [ $stream->chunks_to_end ], [ 'Channel deleted;', 'foot' ], 'a stream ends';
    ok $stream->is_closed, 'with nothing behind it';
    for my $suite (sort keys %peers) {
        ok $peers{$suite}->hears('Channel deleted'), "$suite: the end";
        ok $peers{$suite}->hears('closed'), 'by close_notify';
    }
};

# Workers are killed in the middle of a handover: a reader goes on, or ends; none gets a wrong record.
with_nginx $conf, sub ($nginx) {
    $nginx->expect_in_log(qr/exited on signal 9/);
    my $tls = Encrypted->new($nginx);
    my ($delivered, $wrong, $kept, $lost) = (0, 0, 0, 0);
    for my $turn (1 .. 4) {
        my @readers = map { $tls->subscribe('/sub?id=k') } 1 .. 20;
        my %old = map { $_ => 1 } $nginx->worker_pids;
        $tls->publish('k', "before $turn");
        $_->chunk eq "before $turn;" or $wrong++ for @readers;
        $nginx->signal('HUP');
        # Nobody can tell when it is; so whom, and how late, changes.
        wait_until { grep { !$old{$_} } $nginx->worker_pids(leaving => 1) };
        sleep 0.002 * $turn;
        my @victims = grep { $turn % 2 ? $old{$_} : !$old{$_} } $nginx->worker_pids(leaving => 1);
        kill KILL => $victims[0] if @victims;
        wait_until {
            my @pids = $nginx->worker_pids(leaving => 1);
            @pids == $nginx->worker_count && !grep { $old{$_} } @pids;
        } 20;
        wait_until { (eval { $tls->publish('k', "after $turn") } // 0) == 200 };
        for my $reader (@readers) {
            my $chunk = eval { $reader->chunk };
            $chunk = eval { $reader->chunk } while defined $chunk && $chunk ne "after $turn;" && length $chunk && $chunk ne 'foot';
            if (($chunk // '') eq "after $turn;") { $kept++ }
            else {
                $lost++;
                my $error = $reader->socket->errstr // '';
                $wrong++ if $error =~ /bad record mac|decryption failed|wrong version|unexpected message/i;
            }
        }
        @readers = ();
    }
    is $wrong, 0, "no wrong record: $kept readers went on, $lost ended";
};

done_testing;
