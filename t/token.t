# push_stream_token: who may subscribe and publish where, by access tokens.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;
use PushStream::Token;
use JSON::PP;

my $now = int time;
my %claims = (sub => '42', jti => 't1', exp => $now + 600, push => { subscribe => [ 'news', 'user.42.*' ], publish => ['chat.7'] });
my @algorithms = qw(HS256 HS384 HS512 RS256 RS384 RS512 PS256 PS384 PS512 ES256 ES384 EdDSA);
my @by_algorithm = tokens(map { { key => "key-$_", algorithm => $_, claims => \%claims, headers => { kid => $_ } } } @algorithms);
my ($good, $expired, $early, $unscoped, $stranger, $anybody, $symfony, $symfony1, $centrifugo, $everything) = tokens(
    { claims => \%claims },
    { claims => { %claims, exp => $now - 60 } },
    { claims => { %claims, nbf => $now + 600 } },
    { claims => { sub => '42' } },
    { key => 'other', claims => \%claims },
    { claims => { sub => 'ann', push => { subscribe => ['news'] }, aud => ['push'], iss => 'https://a.example' } },
    { claims => { mercure => { subscribe => [ 'news', 'user.42.*' ], publish => ['*'] } } },
    { headers => { typ => 'at+jwt' }, claims => { exp => $now + 600, authorization_details => [ { type => 'https://mercure.rocks/authorization-detail', actions => ['subscribe'], topics => [ { match => 'news' } ] } ] } },
    { claims => { sub => '42', channel => 'news' } },
    { claims => { mercure => { publish => ['*'] } } },
);
write_file(key_dir . '/keys.json', key_set('secret'));
write_file(key_dir . '/all.json', key_set(map { [ "key-$_", kid => $_, alg => $_ ] } @algorithms));
my $keys = key_dir;

my $conf = <<"CONF";
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_shared_memory_size 1m;
    push_stream_channels_path \$arg_id;
    push_stream_token_keys $keys/keys.json;
    push_stream_token required;
    log_format token "\$uri \$status sub=\$push_stream_token_sub jti=\$push_stream_token_jti exp=\$push_stream_token_exp error=\$push_stream_token_error";
    limit_conn_zone \$push_stream_token_sub zone=subjects:1m;
    limit_conn_status 429;
    large_client_header_buffers 4 32k;

    server {
        listen 127.0.0.1:%%PORT%%;
        access_log %%DIR%%/token.log token;

        location /ev { push_stream_subscriber eventsource; }
        location /poll { push_stream_subscriber polling; }
        location /pub { push_stream_publisher admin; push_stream_batch_publish on; push_stream_admin_api on; }
        location /plain { push_stream_publisher admin; push_stream_token off; }
        location /optional { push_stream_subscriber polling; push_stream_token optional; }
        location /all { push_stream_subscriber polling; push_stream_token_keys $keys/all.json; }
        location /pem { push_stream_subscriber polling; push_stream_token_keys $keys/key-RS256.pem algorithms=RS256,PS256; }
        location /cookie { push_stream_subscriber polling; push_stream_token_from cookie=my.token query=t \$http_x_token; }
        location /aud { push_stream_subscriber polling; push_stream_token_audience other push; push_stream_token_keys $keys/keys.json issuer=https://a.example; }
        location /mercure { push_stream_subscriber polling; push_stream_token_claims mercure; }
        location /hub { push_stream_publisher admin; push_stream_admin_api on; push_stream_token_claims mercure; }
        location /centrifugo { push_stream_subscriber polling; push_stream_token_claims centrifugo; }
        location /one { push_stream_subscriber eventsource; limit_conn subjects 1; }
        location /own { push_stream_subscriber polling; push_stream_channels_path user.\$push_stream_token_sub.mail; }
        location /cors { push_stream_subscriber polling; push_stream_allowed_origins https://page.example; }
        location /status { push_stream_channels_statistics; }
        location /metrics { push_stream_channels_statistics; push_stream_statistics_format prometheus; }
    }
}
CONF

for (
    [ 'push_stream_token_keys' => "push_stream_token_keys $keys/none.json", qr/file "\Q$keys\E\/none\.json" cannot be read: No such file/, 'a file that is not there' ],
    [ 'push_stream_token_keys' => "push_stream_token_keys $keys", qr/cannot be read: it is no regular file/, 'a directory' ],
    [ 'push_stream_token_keys' => "push_stream_token_keys $keys/key-RS256.private", qr/key-RS256\.private" has a private key: the public one is wanted/, 'a private key' ],
    [ 'push_stream_token_keys' => "push_stream_token_keys $keys/keys.json algorithms=RS256", qr/keys\.json" has no key for the given algorithms/, 'no key for the algorithms' ],
    [ 'push_stream_token_keys' => "push_stream_token_keys $keys/keys.json algorithms=none", qr/"algorithms=none" names an algorithm that is not supported/, 'none' ],
    [ 'push_stream_token_keys' => "push_stream_token_keys $keys/keys.json color=red", qr/"color=red" is neither issuer=URL nor algorithms=/, 'another word' ],
    [ 'push_stream_token_from' => 'push_stream_token_from header', qr/"header" is none of bearer, cookie=NAME, query=NAME and a \$variable/, 'another place' ],
    [ 'push_stream_token_from' => 'push_stream_token_from bearer; push_stream_token_from bearer', qr/"push_stream_token_from" directive is duplicate/, 'twice' ],
    [ 'push_stream_token_leeway' => 'push_stream_token_leeway 301s', qr/"301s" is no time of at most 5m/, 'too much leeway' ],
    [ 'push_stream_token_claims' => 'push_stream_token_claims jwt', qr/invalid value "jwt"/, 'another dialect' ],
    [ 'push_stream_token_revoked' => "push_stream_token_revoked $keys/keys.json", qr/keys\.json" line 1: neither jti=ID nor sub=SUBJECT/, 'a file that revokes nothing' ],
) {
    my ($name, $line, $reason, $what) = @$_;
    my ($ok, $said) = PushStream::Nginx->check($conf =~ s/(location \/ev \{)/$1 $line;/r);
    ok !$ok, "$name is refused: $what";
    like $said, $reason, '... with the reason';
}
{
    my ($ok, $said) = PushStream::Nginx->check($conf =~ s/^ *push_stream_token_keys.*\n//mr);
    ok !$ok, 'tokens without keys are refused';
    like $said, qr/push_stream_token needs push_stream_token_keys\. in location "\/ev"/, '... with the location';
}

with_nginx $conf, sub ($nginx) {
    my $ask = sub ($uri, $token = undef, @more) { $nginx->get($uri, (defined $token ? (Authorization => "Bearer $token") : ()), @more) };
    my $is_refused = sub ($answer, $status, $challenge, $explain, $what) {
        is_deeply [ $answer->status, $answer->header('WWW-Authenticate'), $answer->explain ], [ $status, $challenge, $explain ], $what;
    };
    my $invalid = 'Bearer error="invalid_token"';

    is $ask->('/poll?id=news', $good)->status, 304, 'a granted channel';
    is $ask->('/poll?id=news/user.42.mail', $good)->status, 304, 'several';
    $is_refused->($ask->('/poll?id=news'), 401, 'Bearer', 'No token.', 'no token');
    $is_refused->($ask->('/poll?id=news', $expired), 401, $invalid, 'Token has expired.', 'an expired token');
    $is_refused->($ask->('/poll?id=news', $early), 401, $invalid, 'Token is not valid yet.', 'one of tomorrow');
    $is_refused->($ask->('/poll?id=news', $stranger), 401, $invalid, "Token's signature is not valid.", 'one of somebody else');
    $is_refused->($ask->('/poll?id=news', 'x'), 401, $invalid, 'Token is no JSON Web Signature in the compact form.', 'no token at all');
    $is_refused->($ask->('/poll?id=news', 'x' x 9000), 401, $invalid, 'Token is longer than 8 KiB.', 'one that is too long') if ($ENV{TEST_TRANSPORT} // '') ne 'http2';
    my $scope = 'Bearer error="insufficient_scope"';
    $is_refused->($ask->('/poll?id=news/user.43.mail', $good), 403, $scope, 'Token does not grant the channels.', 'a channel that is not granted');
    $is_refused->($ask->('/poll?id=news', $unscoped), 403, $scope, 'Token does not grant the channels.', 'a token that grants nothing');
    is $ask->('/poll?id=', $good)->status, 400, 'no channel is another mistake';
    is $nginx->request(GET => '/poll?id=news', headers => { Authorization => "bEARER  $good" })->status, 304, 'the scheme is in any case';
    is $nginx->request(GET => '/poll?id=news', headers => { Authorization => "Basic $good" })->status, 401, 'but the right one';

    my $stream = $nginx->subscribe('/ev?id=news', Authorization => "Bearer $good");
    is $stream->status, 200, 'a stream';
    is $ask->('/ev?id=chat.7', $good)->status, 403, 'publishing is not subscribing';
    is $nginx->post('/pub?id=news', 'x', Authorization => "Bearer $good")->status, 403, 'and the other way round';
    is $nginx->post('/pub?id=chat.7', 'x')->status, 401, 'publishers need a token';
    is $nginx->post('/pub?id=chat.7', 'x', Authorization => "Bearer $good")->status, 200, 'and a grant';
    is $nginx->put('/pub?id=chat.7/news', 'x', Authorization => "Bearer $good")->status, 403, 'for each channel';
    is $nginx->delete('/pub?id=news', Authorization => "Bearer $good")->status, 403, 'deleting is a change, too';
    is $ask->('/pub?id=news', $good)->status, 403, 'and so are figures';
    is $nginx->post('/plain?id=news', 'hello')->status, 200, 'unless tokens are off';
    is $stream->event->{data}, 'hello', 'readers get what they are granted';
    my $batch = $nginx->post('/pub?id=x', qq({"channels":["chat.7"],"text":"a"}\n{"channels":["news"],"text":"b"}\n), Authorization => "Bearer $good", 'Content-Type' => 'application/x-ndjson');
    is_deeply [ map { $_->{status} } map { decode_json($_) } split /\n/, $batch->body ], [ 200, 403 ], 'a batch is judged line by line';
    is $ask->('/pub?list', $good)->status, 403, 'operators need a grant for all that they list';
    is $nginx->delete('/pub?prefix=chat', Authorization => "Bearer $good")->status, 403, 'or delete';
    is $ask->('/hub?list', $everything)->status, 200, 'as who may do everything has';

    is $ask->('/all?id=news', $by_algorithm[$_])->status, 304, "a token of $algorithms[$_]" for keys @algorithms;
    my %of = map { $algorithms[$_] => $by_algorithm[$_] } keys @algorithms;
    is $ask->('/pem?id=news', $of{RS256})->status, 304, 'a key in PEM';
    is $ask->('/pem?id=news', $of{ES256})->status, 401, 'verifies its own';

    is $ask->('/optional?id=anything')->status, 304, 'where tokens are optional, none is needed';
    is $ask->('/optional?id=news', $good)->status, 304, 'one that is there counts';
    is $ask->('/optional?id=anything', $good)->status, 403, 'for what it grants';
    is $ask->('/optional?id=news', $expired)->status, 401, 'if it is valid';

    is $nginx->get('/cookie?id=news', Cookie => "a=b; my.token=$good;c=d")->status, 304, 'a cookie';
    is $nginx->get('/cookie?id=news', Cookie => "xmy.token=$good")->status, 401, 'of that name';
    is $nginx->get("/cookie?id=news&t=$good")->status, 304, 'an argument';
    is $nginx->get('/cookie?id=news', 'X-Token' => $good)->status, 304, 'a variable';
    is $ask->('/cookie?id=news', $good)->status, 401, 'and nothing else';
    is $nginx->get("/poll?id=news", Cookie => "__Secure-push_stream_token=$good")->status, 304, 'a cookie by default';
    is $nginx->get("/poll?id=news&access_token=$good")->status, 401, 'but no argument';

    is $ask->('/aud?id=news', $anybody)->status, 304, 'audience and issuer';
    is $ask->('/poll?id=news', $anybody)->explain, 'Token is for another audience.', 'an audience that nobody here is';
    is $ask->('/aud?id=news', $good)->explain, "Token's issuer is not trusted.", 'no issuer';
    is $ask->('/mercure?id=news/user.42.x', $symfony)->status, 304, "Mercure's claim";
    is $ask->('/mercure?id=user.43.x', $symfony)->status, 403, '... and what it does not grant';
    is $ask->('/mercure?id=news', $symfony1)->status, 304, "Mercure's authorization details";
    is $ask->('/mercure?id=user.42.x', $symfony1)->status, 403, '... and what they do not grant';
    is $ask->('/centrifugo?id=news', $centrifugo)->status, 304, "Centrifugo's subscription token";
    is $ask->('/centrifugo?id=user.42.x', $centrifugo)->status, 403, '... and what it does not grant';
    is $ask->('/poll?id=news', $symfony)->status, 403, 'one dialect is not another';

    is $ask->('/own', $good)->status, 304, 'a path of the subject';
    my $one = $nginx->subscribe('/one?id=news', Authorization => "Bearer $good");
    is $one->status, 200, 'a subject may have one connection';
    is $ask->('/one?id=news', $good)->status, 429, 'and no second';
    is $nginx->request(OPTIONS => '/cors?id=news', headers => { Origin => 'https://page.example' })->status, 200, 'a preflight has no token';
    like $nginx->request(OPTIONS => '/cors?id=news')->header('Access-Control-Allow-Headers'), qr/^Authorization,/, 'and allows one';

    my $lines = sub { open my $file, '<', $nginx->dir . '/token.log' or die $!; join '', <$file> };
    my $exp = $claims{exp};
    ok wait_until { $lines->() =~ m{^/poll 304 sub=42 jti=t1 exp=$exp error=-$}m }, 'variables of a token';
    like $lines->(), qr{^/poll 401 sub=- jti=- exp=- error=missing$}m, '... of none';
    like $lines->(), qr{^/poll 401 sub=- jti=- exp=- error=expired$}m, '... of one that is not valid';
    like $lines->(), qr{^/poll 403 sub=42 jti=t1 exp=$exp error=insufficient_scope$}m, '... of one that does not grant it';
    like $lines->(), qr{^/plain 200 sub=- jti=- exp=- error=-$}m, '... where there are none';

    my $counts = sub ($pattern) { wait_until { $nginx->get('/metrics')->body =~ $pattern } };
    ok $counts->(qr/^push_stream_subscribers_refused_total\{reason="unauthorized"\} [1-9]/m), 'refused subscribers are counted';
    ok $counts->(qr/^push_stream_subscribers_refused_total\{reason="forbidden"\} [1-9]/m), '... for their grants, too';
    ok $counts->(qr/^push_stream_messages_refused_total\{reason="unauthorized"\} 1$/m), 'and refused messages';
    like $nginx->get('/metrics')->body, qr/^push_stream_token_files_refused_total 0$/m, 'no file was refused';
};

done_testing;
