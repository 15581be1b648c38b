# A page that uses the client for browsers (clients/js) as its test tells it to, and an nginx that serves both.
package ClientPage;

use v5.36;

use Cwd qw(abs_path);
use File::Basename qw(dirname);
use PushStream::Test qw(wait_until);

my $source = abs_path(dirname(abs_path(__FILE__)) . '/../../clients/js/src');

our $conf = <<"CONF" . <<'CONF';
%%MAIN%%
events {}
http {
    %%HTTP%%
    types { text/javascript js; text/html html; }
    server {
        listen 127.0.0.1:%%PORT%% reuseport;
        location /client/ { alias $source/; }
        location /examples/ { alias $source/../examples/; }
        location = /react { default_type text/html; return 200 '<!doctype html><title>React</title><div id="root"></div><script type="module" src="/built/react.js"></script>'; }
        location /built/ { alias $source/../dist/examples/; }
CONF
        # Browsers connect ahead of their requests, and a worker that leaves waits for those.
        client_header_timeout 1s;
        location = /page { default_type text/html; root %%DIR%%; }

        location = /pub { push_stream_publisher admin; push_stream_channels_path $arg_id; push_stream_store_messages on; push_stream_auto_event_id on; }
        location ~ ^/sub/(.+)$ { push_stream_subscriber eventsource; push_stream_channels_path $1; }
        location ~ ^/ws/(.+)$ { push_stream_subscriber websocket; push_stream_channels_path $1; }
        location ~ ^/poll/(.+)$ { push_stream_subscriber long-polling; push_stream_channels_path $1; }
        location ~ ^/guarded/(?<guarded>.+)$ {
            push_stream_subscriber eventsource;
            push_stream_channels_path $guarded;
            if ($http_authorization != "Bearer good") { return 401; }
        }
        location ~ ^/busy/(?<busy>.+)$ {
            push_stream_subscriber eventsource;
            push_stream_channels_path $busy;
            if (-f %%DIR%%/busy) { return 503; }
            error_page 503 = @busy;
        }
        location @busy { add_header Retry-After 1 always; return 503; }
        # A proxy that holds back what it gets until it is complete.
        location ~ ^/held/(.+)$ {
            proxy_pass http://127.0.0.1:%%PORT%%/sub/$1$is_args$args;
            proxy_ignore_headers X-Accel-Buffering;
            proxy_buffers 8 64k;
            proxy_buffer_size 64k;
        }
    }
    push_stream_shared_memory_size 64m;
    push_stream_max_messages_stored_per_channel 1000000;
    push_stream_message_template '{"id":~id~,"event":"~event-id:json~","channel":"~channel:json~","text":"~text:json~"}\n';
    push_stream_resume ordered;
    push_stream_gap_notice on;
    push_stream_last_event_id $arg_after;
    push_stream_longpolling_connection_ttl 1s;
    push_stream_eventsource_retry 1ms 20ms;
    keepalive_requests 1000000;
}
CONF

my $page = <<'HTML';
<!doctype html><meta charset="utf-8"><title>page</title><script type="module">
import { connect } from "/client/index.js";
// Not the seconds that a real network needs.
const random = Math.random;
Math.random = () => random() / 50;
window.start = (url, options) => {
    window.stream?.close();
    window.log = { message: [], gap: [], state: [], error: [], expired: [], deleted: [] };
    window.stream = connect(url, options);
    for (const name of Object.keys(log)) stream.on(name, (value) => log[name].push(value ?? true));
};
window.ready = true;
</script>
HTML


# The page, where nginx finds it.
sub write_to ($nginx) {
    open my $file, '>', $nginx->dir . '/page' or die $!;
    print {$file} $page;
    close $file;
}

# Opens it in the browser's current window.
sub open_in ($browser, $port) {
    $browser->open_url("http://127.0.0.1:$port/page");
    wait_until { $browser->js('return window.ready === true') } 20 or die 'no page';
}

# Connects it; what it hears is in `log` there, by name.
sub start ($browser, $url, %options) { $browser->js('start(arguments[0], arguments[1])', $url, \%options) }
sub texts ($browser) { return $browser->js('return log.message.map((message) => `${message.channel}:${message.data}`)') }
sub listening ($nginx, $channel) { return (eval { $nginx->get("/pub?id=$channel")->json->{subscribers} } // 0) }

1;
