# The recipes of docs/access.md do what they say.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;
use PushStream::Token;
use PushStream::WebSocket;

use MIME::Base64 qw(encode_base64url);
use Digest::MD5 qw(md5);

plan skip_all => 'the recipes name their own ports' if ($ENV{TEST_TRANSPORT} // 'plain') ne 'plain';
for my $module (qw(http_auth_request http_secure_link http_ssl)) {
    plan skip_all => "this nginx has no $module" if !PushStream::Nginx->has_module($module);
}

my $keys = File::Temp->newdir;
chmod 0755, "$keys";
my $openssl = sub (@arguments) {
    system("cd $keys && openssl @arguments >/dev/null 2>&1") == 0 or die "openssl @arguments failed\n";
};
$openssl->("req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=$_ -keyout $_.key -out $_.pem") for qw(server publishers-ca);
$openssl->('req -newkey rsa:2048 -nodes -subj /CN=app -keyout app.key -out app.csr');
$openssl->('x509 -req -in app.csr -CA publishers-ca.pem -CAkey publishers-ca.key -CAcreateserial -days 2 -out app.pem');
open my $users, '>', "$keys/publishers" or die;
print {$users} "app:{PLAIN}secret\n";
close $users;

# The blocks as the document has them, by their headings.
my $document = do { local (@ARGV, $/) = "$FindBin::Bin/../docs/access.md"; <> };
my %recipe = $document =~ /^## (.+?)\n(?:(?!^## ).)*?^```nginx\n(.*?)^```/msg;
my @wanted = ('Publishing on a unix socket only', 'By address', 'With a password', 'By asking your application',
    'By signed URLs that expire', 'By certificate', 'By access tokens', 'Tokens of Mercure', 'Tokens of Centrifugo');
ok $recipe{$_}, "there is a recipe: $_" for @wanted;

my $unix = $recipe{'Publishing on a unix socket only'} =~ s{/run/}{%%DIR%%/}r;
my $tls = $recipe{'By certificate'} =~ s{listen 127.0.0.1:9443 ssl}{listen unix:%%DIR%%/tls.sock ssl}r =~ s{/etc/nginx}{$keys}gr;
my $asking = $recipe{'By asking your application'} =~ s/127\.0\.0\.1:9000/127.0.0.1:%%PORT%%/r;
my $password = $recipe{'With a password'} =~ s{/etc/nginx}{$keys}r =~ s{/pub}{/password}r;
my $address = $recipe{'By address'} =~ s{/pub}{/address}r;

my %token = map { $_ => $recipe{$_} =~ s{/etc/nginx/}{@{[ key_dir ]}/}gr } 'By access tokens', 'Tokens of Mercure', 'Tokens of Centrifugo';
my ($subscriber, $publisher, $mercure, $centrifugo) = tokens(
    { claims => { sub => '42', jti => 'one', push => { subscribe => [ 'news', 'user.42.*' ] } } },
    { claims => { sub => 'app', push => { publish => ['news'] } } },
    { claims => { mercure => { subscribe => ['news'] } } },
    { claims => { sub => '42', channel => 'news' } },
);
write_file(key_dir . '/push-keys.json', key_set('secret'));
write_file(key_dir . '/revoked-tokens', "jti=two\n");

my $conf = <<"CONF";
%%MAIN%%
events {}
http {
    %%HTTP%%
    limit_conn_zone \$push_stream_token_sub zone=subjects:1m;
    push_stream_shared_memory_size 2m;
    push_stream_store_messages on;
    server {
        listen 127.0.0.1:%%PORT%%;
        set_real_ip_from 127.0.0.1;
        real_ip_header X-Real-IP;
        $address
        $password
        $asking
        $recipe{'By signed URLs that expire'}
        @{[ values %token ]}
        # What the application answers: who has the cookie may follow news.
        location = /may-subscribe-application { return 204; }
    }
    $unix
    $tls
}
CONF
# The application is another location of the same nginx.
$conf =~ s{/may-subscribe;(\s+proxy_pass_request_body)}{/application;$1};
$conf =~ s{location = /may-subscribe-application \{ return 204; \}}{location = /application {
            if (\$http_x_channel !~ ^news) { return 403; }
            if (\$http_cookie != "user=ann") { return 401; }
            return 204;
        }};

with_nginx $conf, sub ($nginx) {
    $nginx->expect_in_log(qr/limiting connections by zone "subjects"/);
    # The error log tells of everybody who was turned away.
    my $curl = sub (@arguments) {
        my $output = qx{curl -s -o /dev/null -w '%{http_code}' -m 5 @arguments 2>/dev/null};
        return $output;
    };
    my $socket = '--unix-socket ' . $nginx->dir . '/push-stream.sock';
    is $curl->("$socket -d text 'http://localhost/pub?id=news'"), 200, 'unix socket: published';
    is $nginx->post('/pub?id=news', 'x')->status, 404, 'and nowhere else';

    is $nginx->post('/address?id=news', 'x')->status, 200, 'address: this machine may';
    is $nginx->post('/address?id=news', 'x', 'X-Real-IP' => '192.0.2.1')->status, 403, 'another may not';

    my $basic = sub ($text) { (Authorization => 'Basic ' . MIME::Base64::encode_base64($text, '')) };
    is $nginx->post('/password?id=news', 'x')->status, 401, 'password: without';
    is $nginx->post('/password?id=news', 'x', $basic->('app:wrong'))->status, 401, 'with a wrong one';
    is $nginx->post('/password?id=news', 'x', $basic->('app:secret'))->status, 200, 'with the right one';

    is $nginx->get('/sub/news')->status, 401, 'application: nobody known';
    is $nginx->get('/sub/secret', Cookie => 'user=ann')->status, 403, 'not this channel';
    my $stream = $nginx->subscribe('/sub/news.b1', Cookie => 'user=ann');
    is $stream->status, 200, 'granted';
    is $stream->event->{data}, 'x', 'and it gets what is stored';
    is $nginx->get('/may-subscribe')->status, 404, 'the question is internal';

    my $signed = sub ($channel, $expires, $secret = 'SECRET') {
        return "/signed/$channel?md5=" . encode_base64url(md5("$expires $channel $secret")) . "&expires=$expires";
    };
    my $later = CORE::time() + 60;
    is $nginx->subscribe($signed->('news', $later))->status, 200, 'signed: granted';
    is $nginx->get($signed->('news', $later, 'guess'))->status, 403, 'with another secret';
    is $nginx->get($signed->('news', $later) =~ s/news/secret/r)->status, 403, 'for another channel';
    is $nginx->get($signed->('news', $later) =~ s/news/news.b9/r)->status, 403, 'with a backtrack that was not signed';
    is $nginx->get($signed->('news', CORE::time() - 1))->status, 410, 'too late';
    is $nginx->get('/signed/news')->status, 403, 'not signed';

    my $with = sub ($token) { return (Authorization => "Bearer $token") };
    like $nginx->get('/token/news')->body, qr/^data: \{"status":401,"reason":"missing"\}$/m, 'token: without';
    like $nginx->get('/token/secret', $with->($subscriber))->body, qr/"status":403/, 'not granted';
    my @streams = map { $nginx->subscribe('/token/news/user.42.mail', Cookie => "__Secure-push_stream_token=$subscriber") } 1 .. 4;
    is $_->status, 200, 'granted, by a cookie' for @streams;
    is $nginx->get('/token/news', $with->($subscriber))->status, 503, 'a subject has at most four';
    is $nginx->post('/token-pub?id=news', 'x', $with->($subscriber))->status, 403, 'a reader may not publish';
    is $nginx->post('/token-pub?id=news', 'x', $with->($publisher))->status, 200, 'the application may';
    is $nginx->subscribe('/mercure/news', Cookie => "mercureAuthorization=$mercure")->status, 200, "Mercure's cookie";
    is $nginx->get('/mercure/other', Cookie => "mercureAuthorization=$mercure")->status, 403, 'for what it grants';
    my $client = PushStream::WebSocket->new($nginx, "/centrifugo/news?token=$centrifugo");
    $nginx->post('/token-pub?id=news', 'hello', $with->($publisher));
    is $client->text, 'hello', "Centrifugo's token";

    my $secure = '--unix-socket ' . $nginx->dir . "/tls.sock -k -d text 'https://localhost/pub?id=news'";
    is $curl->($secure), 400, 'certificate: without';
    is $curl->("--cert $keys/server.pem --key $keys/server.key $secure"), 400, 'with one of another authority';
    is $curl->("--cert $keys/app.pem --key $keys/app.key $secure"), 200, 'with the right one';
};

subtest 'shipped configurations publish on loopback or a unix socket' => sub {
    for my $file (glob "$FindBin::Bin/../nginx-conf/*.conf") {
        my $text = do { local (@ARGV, $/) = $file; <> };
        my ($name) = $file =~ m{([^/]+)\z};
        $text =~ s/#.*//g;
        my $servers = 0;
        # A server's block ends where its indentation does.
        while ($text =~ /^( *)server \{\n(.*?)^\1\}/msg) {
            my $server = $2;
            next if $server !~ /push_stream_publisher|push_stream_channels_statistics/;
            $servers++;
            my @open = grep { !/^(?:127\.|unix:|\[::1\]|localhost)/ } $server =~ /^\s*listen\s+(\S+?);?(?:\s|$)/mg;
            is "@open", '', "$name: publishers and figures are not open to the world";
        }
        cmp_ok $servers, '>', 0, "$name: a server was looked at";
    }
};

done_testing;
