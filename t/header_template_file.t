# A header template may come from a file, read when the configuration is.

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
    push_stream_header_template_file %%DIR%%/header.html;

    server {
        listen 127.0.0.1:%%PORT%%;

        location /sub { push_stream_subscriber; }
        location /ev { push_stream_subscriber eventsource; }
        location /own { push_stream_subscriber; push_stream_header_template "own"; }
    }
}
CONF

# The file has to be there before nginx is: one is written by a configuration that does not need it.
my $write = sub ($nginx, $text) {
    open my $file, '>', $nginx->dir . '/header.html' or die;
    print {$file} $text;
    close $file;
};

with_nginx $conf =~ s/^ *push_stream_header_template_file.*\n//mr, sub ($nginx) {
    $write->($nginx, "<html>\r\n<body>\n~text~");
    $nginx->reload($conf);
    is $nginx->subscribe('/sub?id=a')->chunk, "<html>\r\n<body>\n~text~", 'the file, byte for byte';
    is $nginx->subscribe('/ev?id=a')->chunk, ": <html>\n: <body>\n: ~text~\n", 'as comments for EventSource';
    is $nginx->subscribe('/own?id=a')->chunk, 'own', 'a location may have another';

    $write->($nginx, 'changed');
    is $nginx->subscribe('/sub?id=a')->chunk, "<html>\r\n<body>\n~text~", 'it is not read again';
    $nginx->reload;
    is $nginx->subscribe('/sub?id=a')->chunk, 'changed', 'before a reload';
};

done_testing;
