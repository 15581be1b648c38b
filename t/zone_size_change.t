# The zone keeps its size and its contents until nginx is started anew.

use v5.36;
use FindBin;
use lib "$FindBin::Bin/lib";
use PushStream::Test;

my $conf = <<'CONF';
%%MAIN%%
events {}
http {
    %%HTTP%%
    push_stream_shared_memory_size 1m;
    push_stream_channels_path $arg_id;
    push_stream_store_messages on;

    server {
        listen 127.0.0.1:%%PORT%%;

        location /pub { push_stream_publisher; }
        location /poll { push_stream_subscriber polling; }
        location /sub { push_stream_subscriber; }
        location /status { push_stream_channels_statistics; }
    }
}
CONF

with_nginx $conf, sub ($nginx) {
    my %all = ('If-Modified-Since' => 'Thu, 01 Jan 1970 00:00:00 GMT');
    my $warning = qr/\[warn\].*Cannot change memory area size without restart, ignoring change on zone: push_stream_module/;
    $nginx->post('/pub?id=a', "<$_>") for 1 .. 3;

    for my $size ('2m', '512k') {
        my $warned = () = $nginx->log =~ /$warning/g;
        $nginx->reload($conf =~ s/1m;/$size;/r);
        my $now = () = $nginx->log =~ /$warning/g;
        is $now, $warned + 1, "a size of $size is warned of";
        is $nginx->get('/poll?id=a', %all)->body, '<1><2><3>', 'everything is still there';
    }
    my $stream = $nginx->subscribe('/sub?id=a');
    $nginx->post('/pub?id=a', '<4>');
    is $stream->chunk, '<4>', 'and works';

    my $warned = () = $nginx->log =~ /$warning/g;
    $nginx->reload($conf);
    my $now = () = $nginx->log =~ /$warning/g;
    is $now, $warned, 'back at the true size nothing is said';
    is $nginx->get('/poll?id=a', %all)->body, '<1><2><3><4>', 'and nothing lost';
};

done_testing;
