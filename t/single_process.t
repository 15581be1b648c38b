# Without a master process, as developers run nginx, everything works as well.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;

with_nginx <<'CONF', sub ($nginx) {
%%MAIN%%
master_process off;
events {}
http {
    %%HTTP%%
    push_stream_shared_memory_size 1m;
    push_stream_channels_path $arg_id;
    push_stream_store_messages on;

    server {
        listen 127.0.0.1:%%PORT%%;

        location /pub { push_stream_publisher; }
        location /sub { push_stream_subscriber; push_stream_footer_template "foot"; }
        location /status { push_stream_channels_statistics; }
    }
}
CONF
    my $stream = $nginx->subscribe('/sub?id=a');
    is $nginx->post('/pub?id=a', 'hello')->json->{subscribers}, 1, 'published';
    is $stream->chunk, 'hello', 'and delivered';
    is $nginx->figures->{by_worker}[0]{pid}, $nginx->master, 'the only process is the worker';
    # nginx itself cannot reload without a master.
    $nginx->signal('TERM');
    is join('', $stream->chunks_to_end), 'foot', 'at the end the stream ends properly';
    is $nginx->wait_for_exit, 0, 'and nginx, too';
};

done_testing;
