package PushStream::Malloc;

# What a process has taken from malloc and not given back, in bytes: pages tell less, for they hold holes, too. Known of the processes
# that are started while $ENV{LD_PRELOAD} and what belongs to it are as `environment` says.

use v5.36;

use File::Temp ();

sub new ($class) {
    my $dir = File::Temp->newdir('push-stream-test-XXXXXX', TMPDIR => 1);
    chmod 0777, "$dir";
    open my $source, '>', "$dir/in_use.c" or die "cannot write a source: $!\n";
    print {$source} join '', <DATA>;
    close $source;
    system('gcc', '-shared', '-fPIC', '-pthread', '-o', "$dir/in_use.so", "$dir/in_use.c") == 0 or die "gcc made nothing\n";
    return bless { dir => $dir }, $class;
}

sub environment ($self) {
    return (
        LD_PRELOAD => "$self->{dir}/in_use.so",
        IN_USE_DIR => "$self->{dir}",
        # What is kept for the next one of its size would count as taken.
        GLIBC_TUNABLES => 'glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0',
    );
}

# Of a process that another has forked: now, not more than some milliseconds ago.
sub of ($self, $pid) { return 0 + (_slurp("$self->{dir}/of.$pid") =~ /(\d+)/)[0] }

# Of a process that forks: what it had when it last did.
sub at_fork ($self) { return 0 + (_slurp("$self->{dir}/forks") =~ /(\d+)\n\z/)[0] }

sub _slurp ($name) {
    open my $file, '<', $name or die "cannot read $name: $!\n";
    local $/;
    return scalar <$file>;
}

1;

__DATA__
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <malloc.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static char *dir;

static void *watch(void *file) {
    const struct timespec pause = { 0, 20 * 1000 * 1000 };
    for (;;) {
        char line[32];
        struct mallinfo2 info = mallinfo2();
        int length = snprintf(line, sizeof line, "%20zu\n", info.uordblks + info.hblkhd);
        if (pwrite((int)(long)file, line, length, 0) < 0) abort();
        nanosleep(&pause, NULL);
    }
    return NULL;
}

static void forked(void) {
    char name[512];
    pthread_t thread;
    sigset_t all, before;
    snprintf(name, sizeof name, "%s/of.%d", dir, (int)getpid());
    int file = open(name, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    /* Signals are for the thread that was there before. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    if (file < 0 || pthread_create(&thread, NULL, watch, (void *)(long)file) != 0) abort();
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

__attribute__((constructor)) static void begin(void) {
    /* nginx writes its title over the environment. */
    const char *given = getenv("IN_USE_DIR");
    if (given) dir = strdup(given);
    if (dir) pthread_atfork(NULL, NULL, forked);
}

pid_t fork(void) {
    pid_t (*real)(void) = (pid_t (*)(void))dlsym(RTLD_NEXT, "fork");
    if (dir) {
        char name[512], line[32];
        struct mallinfo2 info = mallinfo2();
        int length = snprintf(line, sizeof line, "%zu\n", info.uordblks + info.hblkhd);
        snprintf(name, sizeof name, "%s/forks", dir);
        int file = open(name, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
        if (file < 0 || write(file, line, length) < 0) abort();
        close(file);
    }
    return real();
}
