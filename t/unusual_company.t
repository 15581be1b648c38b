# What nginx lets stand around the roles, though nobody means it: subrequests, mirrored, included and appended ones, redirects by a backend,
# error pages, actions after the end. Whatever the sense of it is, requests are answered, no worker ends, and nothing is left.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;

my @optional = ((PushStream::Nginx->has_module('http_auth_request') ? 'location = /asks { auth_request /sub; default_type text/html; alias %%DIR%%/html/page.html; }
        location = /asks_pub { auth_request /pub; default_type text/html; alias %%DIR%%/html/page.html; }
        location = /asks_ws { auth_request /ws; default_type text/html; alias %%DIR%%/html/page.html; }' : ()),
    (PushStream::Nginx->has_module('http_addition') ? 'location = /appends { add_after_body /sub?id=a; addition_types *; default_type text/html; alias %%DIR%%/html/page.html; }
        location = /appends_figures { add_after_body /status; addition_types *; default_type text/html; alias %%DIR%%/html/page.html; }
        location = /stream_appended { add_after_body /html/page.html; addition_types *; push_stream_subscriber polling; }' : ()),
    (PushStream::Nginx->has_module('http_sub') ? 'location = /replaced { sub_filter hello HELLO; sub_filter_once off; sub_filter_types *; push_stream_subscriber; }' : ()));

my $conf = <<'CONF' =~ s/%%OPTIONAL%%/join "\n", @optional/er;
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_shared_memory_size 1m;
    push_stream_store_messages on;
    push_stream_channels_path $arg_id;
    push_stream_channel_inactivity_time 1s;
    push_stream_message_ttl 2s;
    send_timeout 5s;

    server {
        listen 127.0.0.1:%%PORT%%;
        root %%DIR%%;
        location = /pub { push_stream_publisher admin; }
        location = /sub { push_stream_subscriber; }
        location = /ev { push_stream_subscriber eventsource; }
        location = /lp { push_stream_subscriber long-polling; }
        location = /poll { push_stream_subscriber polling; }
        location = /ws { push_stream_subscriber websocket; push_stream_websocket_allow_publish on; }
        location = /status { push_stream_channels_statistics; }

        location = /mirrored { mirror /copy; push_stream_publisher; }
        location = /mirrored_sub { mirror /sub_copy; push_stream_subscriber; }
        location = /mirrors_to_static { mirror /copy; root %%DIR%%; try_files /html/page.html =404; }
        location = /copy { internal; push_stream_publisher; push_stream_channels_path copies; }
        location = /sub_copy { internal; push_stream_subscriber; push_stream_channels_path copies; }

        location = /includes { ssi on; default_type text/html; alias %%DIR%%/html/include.html; }

        location = /accel { proxy_pass http://127.0.0.1:%%PORT%%/backend?$args; proxy_set_header Connection ""; }
        location = /backend { add_header X-Accel-Redirect "/$arg_to?id=$arg_id" always; return 200; }

        location = /intercepted { proxy_pass http://127.0.0.1:%%PORT%%/fails; proxy_intercept_errors on; error_page 418 = /sub?id=$arg_id; }
        location = /intercepted_pub { proxy_pass http://127.0.0.1:%%PORT%%/fails; proxy_intercept_errors on; error_page 418 = /pub?id=$arg_id; }
        location = /fails { return 418; }
        location = /own_errors { error_page 403 404 405 411 = /sub?id=errors; push_stream_publisher; push_stream_authorized_channels_only on; }
        location = /errors_to_itself { error_page 403 404 405 411 /errors_to_itself; push_stream_publisher; }
        location = /errors_of_sub { error_page 403 = @publish; push_stream_subscriber; push_stream_authorized_channels_only on; }
        location @publish { push_stream_publisher; push_stream_channels_path errors; }

        location = /acts { post_action /sub_copy; push_stream_subscriber polling; }
        location = /acts_pub { post_action /copy; push_stream_subscriber long-polling; push_stream_longpolling_connection_ttl 100ms; }
        location = /acts_stream { post_action /copy; push_stream_subscriber; push_stream_subscriber_connection_ttl 100ms; }
        location = /acts_attached { post_action /sub_copy; push_stream_detach off; push_stream_subscriber; push_stream_subscriber_connection_ttl 100ms; }

        location = /conditional {
            set $kind "";
            if ($arg_store) { push_stream_store_messages off; }
            if ($arg_kind = file) { rewrite ^ /html/page.html last; }
            if ($arg_kind = deny) { return 403; }
            push_stream_subscriber polling;
        }
        location = /slowly { limit_rate 100; limit_rate_after 10; push_stream_subscriber; push_stream_header_template "0123456789"; push_stream_subscriber_connection_ttl 300ms; }
        location = /set_slowly { set $limit_rate 100; push_stream_subscriber; push_stream_subscriber_connection_ttl 300ms; }
        location = /tiny { client_max_body_size 10; push_stream_publisher; error_page 413 = /pub?id=tiny; }
        location = /in_file { client_body_in_file_only clean; push_stream_publisher; }
        location = /kept_file { client_body_in_file_only on; push_stream_publisher; }
        location = /single { client_body_in_single_buffer on; client_body_buffer_size 1k; push_stream_publisher; }
        location / { }
        %%OPTIONAL%%
    }
}
CONF

with_nginx $conf, sub ($nginx) {
    my $write = sub ($name, $text) {
        open my $file, '>', $nginx->dir . "/html/$name" or die "cannot write $name: $!";
        print {$file} $text;
        close $file;
    };
    $write->('page.html', "a page\n");
    $write->('include.html', 'before <!--#include virtual="/sub?id=a" --> <!--#include virtual="/ws?id=a" --> <!--#include virtual="/lp?id=a" -->'
        . ' <!--#include virtual="/status" --> <!--#include virtual="/pub?id=a" --> after');
    my @pids = sort $nginx->worker_pids;
    my $seen = sub ($method, $uri, %options) {
        my $response = eval { $nginx->request($method, $uri, %options) };
        return $response ? $response->status : "no answer: $@";
    };
    my $body = 'x' x 5000;

    $nginx->post('/pub?id=a', 'hello');
    is $seen->(POST => '/mirrored?id=a', body => 'twice'), 200, 'a publisher that is mirrored';
    ok wait_until { ($nginx->figures('copies')->{published_messages} // 0) >= 1 }, 'the copy is published, too';
    is $seen->(POST => '/mirrored?id=a', body => $body), 200, 'with a longer text';
    my $stream = $nginx->subscribe('/mirrored_sub?id=m');
    is $stream->status, 200, 'a subscriber whose copy would be one';
    $nginx->post('/pub?id=m', 'to the mirrored');
    is $stream->text_until(qr/mirrored/), 'to the mirrored', 'gets its messages';
    $stream->close;
    is $seen->(POST => '/mirrors_to_static', body => 'mirrored body'), 405, 'a page that is published to beside';
    is $seen->(GET => '/mirrors_to_static'), 200, 'or asked for';

    my $included = $nginx->get('/includes');
    is $included->status, 200, 'a page that includes subscribers, figures and publishers';
    like $included->body, qr/^before   .*subscribers.* .*published.* after$/s, 'comes to its end, with what can be included';
    my @refused = $nginx->log =~ /a subrequest cannot wait for messages.*subrequest: "([^"]*)"/g;
    is_deeply [ sort grep { !/copy/ } @refused ], [ '/lp', '/sub', '/ws' ], 'and the error log knows what can not';

    for my $to (qw(sub ev poll lp ws pub status)) {
        my $client = $nginx->open(GET => "/accel?to=$to&id=x");
        if ($to =~ /sub|ev/) {
            is $client->head->status, 200, "a backend redirects to /$to";
            $client->close;
        } elsif ($to eq 'lp') {
            ok wait_until { ($nginx->figures('x')->{subscribers} // 0) == 1 }, 'a backend redirects to /lp';
            $client->reset;
        } else {
            my $status = eval { $client->response->status };
            ok $status, "a backend redirects to /$to: $status" or diag $@;
        }
        ok wait_until { ($nginx->figures('x')->{subscribers} // 0) == 0 }, 'and nobody is left' if $to =~ /sub|ev|lp/;
    }
    is $seen->(POST => '/accel?to=pub&id=x', body => 'posted'), 200, 'a backend redirects a POST to the publisher';

    my $caught = $nginx->open(GET => '/intercepted?id=i');
    is $caught->head->status, 200, 'the error page of a backend is a stream';
    $caught->close;
    # An error page is asked for by GET.
    is $seen->(POST => '/intercepted_pub?id=i', body => 'caught'), 200, 'or what a publisher knows of the channel';
    # Refusals are whole answers: nginx's error pages do not replace them.
    is $seen->($_ => '/own_errors?id=ALL', $_ eq 'POST' ? (body => 'x') : ()), 403, "a refused $_ stays one" for qw(POST GET);
    like $seen->(POST => '/errors_to_itself?id=ALL', body => 'x'), qr/^[45]\d\d$/, 'an error page that fails like the page';
    is $seen->(GET => '/errors_of_sub?id=nowhere'), 403, 'so does a refused subscription';

    like $seen->(GET => '/acts?id=a'), qr/^(?:200|304)$/, 'an action after a poll that would wait for ever';
    is $seen->(GET => '/acts_pub?id=none'), 304, 'an action after a long poll';
    for my $uri (qw(/acts_stream /acts_attached)) {
        my $acts = $nginx->subscribe("$uri?id=none");
        is $acts->response->body, '', "an action after a stream: $uri";
    }

    is $seen->(GET => '/conditional?id=a&kind=file'), 200, 'a condition leads elsewhere';
    is $seen->(GET => '/conditional?id=a&kind=deny'), 403, 'or away';
    like $seen->(GET => '/conditional?id=a&store=1'), qr/^(?:200|304)$/, 'or to other settings';
    for my $uri (qw(/slowly /set_slowly)) {
        my $slow = $nginx->subscribe("$uri?id=s");
        $nginx->post('/pub?id=s', 'slow ' x 20);
        ok wait_until { ($nginx->figures('s')->{subscribers} // 0) == 0 }, "limited in its rate: $uri";
        $slow->close;
    }
    is $seen->(POST => '/in_file?id=f', body => $body), 200, 'a body in a file';
    is $seen->(POST => '/kept_file?id=f', body => 'x'), 200, 'that stays';
    is $seen->(POST => '/single?id=f', body => $body), 200, 'in one buffer';
    is $seen->(POST => '/single?id=f', body => 'z' x 200_000), 200, 'that is too small';
    like $seen->(POST => '/tiny?id=f', body => $body), qr/^[45]\d\d$/, 'a body that is too long, and an error page that publishes';
    is $nginx->get('/poll?id=f.b9')->body, $body . 'x' . $body . 'z' x 200_000, 'all of them are stored as they were';

    if (PushStream::Nginx->has_module('http_auth_request')) {
        is $seen->(GET => '/asks?id=a'), 500, 'a subscriber is nobody to ask for permission';
        like $seen->(GET => '/asks_ws?id=a'), qr/^[45]\d\d$/, 'also over WebSocket';
        is $seen->(GET => '/asks_pub?id=a'), 500, 'nor is a publisher, which sees no channel in a subrequest';
    }
    if (PushStream::Nginx->has_module('http_addition')) {
        my $appended = eval { $nginx->get('/appends') };
        ok defined $appended || $@, 'a page with a subscriber behind it';
        like eval { $nginx->get('/appends_figures')->body } // '', qr/^a page\n.*subscribers/s, 'a page with figures behind it';
        like $seen->(GET => '/stream_appended?id=a.b1'), qr/^(?:200|304)$/, 'a poll with a page behind it';
    }
    if (PushStream::Nginx->has_module('http_sub')) {
        my $replaced = $nginx->subscribe('/replaced?id=r');
        $nginx->post('/pub?id=r', 'hello');
        like $replaced->text_until(qr/HELLO/), qr/HELLO/, 'words replaced on the way';
        $replaced->close;
    }

    ok wait_until { $nginx->figures->{subscribers} == 0 }, 'in the end nobody is counted';
    ok wait_until(sub { $nginx->figures->{channels} == 0 }, 40), 'and no channel is left';
    is_deeply [ sort $nginx->worker_pids ], \@pids, 'all workers live';
};

done_testing;
