# Files of keys and revocations are read again when they change; a bad one changes nothing.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;
use PushStream::Token;

my %claims = (sub => '42', jti => 't1', push => { subscribe => ['a'] });
my ($old, $new, $other, $revoked) = map { +{ Authorization => "Bearer $_" } } tokens(
    { key => 'old', claims => \%claims, headers => { kid => '1' } },
    { key => 'new', claims => \%claims, headers => { kid => '2' } },
    { key => 'other', claims => \%claims },
    { key => 'old', claims => { %claims, jti => 't2' }, headers => { kid => '1' } },
);
my $keys = key_dir;
my ($both, $later) = (key_set([ 'old', kid => '1' ], [ 'new', kid => '2' ]), key_set([ 'new', kid => '2' ]));

my $conf = <<"CONF";
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_shared_memory_size 1m;
    push_stream_channels_path \$arg_id;
    push_stream_token required;
    push_stream_token_keys $keys/keys.json;
    push_stream_token_revoked $keys/revoked;

    server {
        listen 127.0.0.1:%%PORT%%;
        location /ev { push_stream_subscriber eventsource; }
        location /poll { push_stream_subscriber polling; }
        location /other { push_stream_subscriber polling; push_stream_token_keys $keys/other.json; }
        location /metrics { push_stream_channels_statistics; push_stream_statistics_format prometheus; }
    }
}
CONF

my $changing = sub ($nginx) {
    my $status = sub ($token, $uri = '/poll?id=a') { $nginx->get($uri, %$token)->status };
    is $status->($old), 304, 'the old key';
    is $status->($revoked), 304, 'nobody is revoked';
    is $status->($new), 401, 'a key that is not there yet';
    is $status->($other, '/other?id=a'), 304, 'another file';
    my $stream = $nginx->subscribe('/ev?id=a', %$old);

    # All at once: each worker looks every five seconds.
    $nginx->expect_in_log(qr/other\.json" is no JSON/);
    write_file("$keys/other.json", '{"keys": [');
    write_file("$keys/revoked", "# since today\njti=t2\n");
    write_file("$keys/keys.json", $both);
    # Readers come while the keys change: none of those with the old key is refused.
    my ($refused, $seen) = (0, 0);
    my $workers = $nginx->worker_count;
    my $is_there = sub { $refused += $status->($old) != 304; return $status->($new) == 304 && $status->($revoked) == 401 };
    # So often in a row that every worker was asked.
    ok((wait_until { $seen = $is_there->() ? $seen + 1 : 0; $seen > 8 * $workers } 12), 'the new key and the revocation count');
    is $refused, 0, 'the old key does all the time';
    is $status->($other, '/other?id=a'), 304, 'a broken file leaves what was read before';
    is $stream->status, 200, 'streams go on';
    $nginx->wait_for_log(qr/other\.json" is no JSON, or has a duplicate member; what was read before stays in force/);
    ok wait_until { $nginx->get('/metrics')->body =~ /^push_stream_token_files_refused_total $workers$/m }, 'each worker has counted it, once';
    is((() = $nginx->log =~ /other\.json" is no JSON/g), $workers, 'and logged it once');
};
for my $workers (split ' ', $ENV{TEST_WORKERS} // '1 4') {
    local $ENV{TEST_WORKERS} = $workers;
    write_file("$keys/keys.json", key_set([ 'old', kid => '1' ]));
    write_file("$keys/other.json", key_set('other'));
    write_file("$keys/revoked", '');
    with_nginx $conf, $changing;
}

# A reload reads the files at once; one that is bad refuses the configuration.
for my $workers (split ' ', $ENV{TEST_WORKERS} // '1 4') {
    local $ENV{TEST_WORKERS} = $workers;
    write_file("$keys/keys.json", $both);
    write_file("$keys/other.json", key_set('other'));
    write_file("$keys/revoked", '');
    with_nginx $conf, sub ($nginx) {
        is $nginx->get('/poll?id=a', %$old)->status, 304, 'the key is there';
        write_file("$keys/keys.json", $later);
        $nginx->reload;
        is $nginx->get('/poll?id=a', %$old)->status, 401, 'and gone with the reload';
        is $nginx->get('/poll?id=a', %$new)->status, 304, 'for another';
        write_file("$keys/revoked", 'everybody');
        refuses $conf, 'revoked" line 1: neither jti=ID nor sub=SUBJECT', 'a bad file of revocations';
    };
}

done_testing;
