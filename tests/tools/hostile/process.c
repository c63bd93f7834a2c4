#include "hostile.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static struct rlimit at_most(size_t value) {
    return (struct rlimit){.rlim_cur = value, .rlim_max = value};
}

static void redirect(const char *path, int flags, int fd) {
    int opened = open(path, flags | O_CLOEXEC, 0600);
    if (opened < 0 || dup2(opened, fd) < 0)
        _exit(126);
}

static void child(const char *dir, char *const *argv, const char *input,
                  const struct limits *limits) {
    setpgid(0, 0);
    redirect(format("%s/log/out", dir), O_WRONLY | O_CREAT | O_TRUNC, 1);
    redirect(format("%s/log/err", dir), O_WRONLY | O_CREAT | O_TRUNC, 2);
    if (chdir(format("%s/cwd", dir)) != 0)
        _exit(126);
    redirect(input != NULL ? input : "/dev/null", O_RDONLY, 0);
    setenv("TMPDIR", "../tmp", 1);
    setenv("HOME", "../tmp", 1);
    const struct rlimit core = at_most(0), file = at_most((size_t)256 << 20);
    const struct rlimit seconds = at_most((size_t)limits->seconds + 1); /* then SIGKILL */
    const struct rlimit address = at_most(limits->address_bytes);
    setrlimit(RLIMIT_CORE, &core);
    setrlimit(RLIMIT_CPU, &seconds);
    setrlimit(RLIMIT_FSIZE, &file);
    if (limits->address_bytes > 0)
        setrlimit(RLIMIT_AS, &address);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    execv(argv[0], argv);
    _exit(127);
}

/* Waits for it until the time is over. */
static bool wait_until(pid_t pid, double end, int *status, struct rusage *usage) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGCHLD);
    for (;;) {
        if (wait4(pid, status, WNOHANG, usage) == pid)
            return true;
        double left = end - now();
        if (left <= 0)
            return false;
        struct timespec t = {.tv_sec = (time_t)left,
                             .tv_nsec = (long)((left - (double)(time_t)left) * 1e9)};
        sigtimedwait(&set, NULL, &t);
    }
}

/* Whoever it started is ours now (PR_SET_CHILD_SUBREAPER) and must have ended before it. */
static bool reap_others(pid_t group) {
    bool alive = kill(-group, SIGKILL) == 0;
    while (waitpid(-1, NULL, 0) > 0)
        alive = true;
    return alive;
}

struct outcome run_process(const char *dir, char *const *argv, const char *input,
                           const struct limits *limits) {
    struct outcome o = {0};
    struct rusage usage;
    int status = 0;
    double start = now();
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGCHLD);
    sigprocmask(SIG_BLOCK, &set, NULL);
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0)
        child(dir, argv, input, limits);
    if (pid < 0)
        die("fork: %s", strerror(errno));
    o.timed_out = !wait_until(pid, start + limits->wall_seconds, &status, &usage);
    if (o.timed_out) {
        kill(pid, SIGKILL);
        wait4(pid, &status, 0, &usage);
    }
    double used = (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
                  1e-6 * (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
    o.timed_out = o.timed_out || used >= limits->seconds;
    o.left_process = reap_others(pid);
    o.code = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
    o.rss_bytes = (size_t)usage.ru_maxrss << 10;
    o.seconds = now() - start;
    o.out = file_read(format("%s/log/out", dir));
    o.err = file_read(format("%s/log/err", dir));
    return o;
}
