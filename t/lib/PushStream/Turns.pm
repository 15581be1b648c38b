package PushStream::Turns;

# How much processor time the turns of event loops take: from each return of epoll_wait to the next call. A clock on the wall says how
# long others waited, on a busy machine also for others than this process. Known of the processes that are started while what
# `environment` says is in %ENV.

use v5.36;

use File::Temp ();

sub new ($class) {
    my $dir = File::Temp->newdir('push-stream-test-XXXXXX', TMPDIR => 1);
    chmod 0777, "$dir";
    open my $source, '>', "$dir/turns.c" or die "cannot write a source: $!\n";
    print {$source} join '', <DATA>;
    close $source;
    system('gcc', '-shared', '-fPIC', '-o', "$dir/turns.so", "$dir/turns.c") == 0 or die "gcc made nothing\n";
    return bless { dir => $dir }, $class;
}

sub environment ($self) { return (LD_PRELOAD => "$self->{dir}/turns.so", TURNS_DIR => "$self->{dir}") }

# Turns of a quarter of a millisecond and more that ended after this Unix time: processor time in seconds, the shortest first.
sub since ($self, $time) {
    my @turns;
    for my $name (glob "$self->{dir}/of.*") {
        open my $file, '<', $name or die "cannot read $name: $!\n";
        while (<$file>) {
            my ($ended, $seconds) = split;
            push @turns, $seconds if $ended > $time;
        }
    }
    return sort { $a <=> $b } @turns;
}

1;

__DATA__
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

static char *dir;
static int file = -1;
static pid_t process;
static struct timespec began;

__attribute__((constructor)) static void begin(void) {
    /* nginx writes its title over the environment. */
    const char *given = getenv("TURNS_DIR");
    if (given) dir = strdup(given);
}

static void note(void) {
    struct timespec now;
    if (process != getpid()) {
        char name[512];
        process = getpid();
        snprintf(name, sizeof name, "%s/of.%d", dir, (int)process);
        file = open(name, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
        return;
    }
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    double seconds = (now.tv_sec - began.tv_sec) + (now.tv_nsec - began.tv_nsec) / 1e9;
    if (file >= 0 && seconds >= 0.00025) {
        char line[64];
        struct timespec wall;
        clock_gettime(CLOCK_REALTIME, &wall);
        int length = snprintf(line, sizeof line, "%ld.%06ld %.6f\n", (long)wall.tv_sec, wall.tv_nsec / 1000, seconds);
        if (write(file, line, length) < 0) abort();
    }
}

int epoll_wait(int epoll, struct epoll_event *events, int most, int timeout) {
    static int (*real)(int, struct epoll_event *, int, int);
    if (!real) real = (int (*)(int, struct epoll_event *, int, int))dlsym(RTLD_NEXT, "epoll_wait");
    if (dir) note();
    int found = real(epoll, events, most, timeout);
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &began);
    return found;
}
