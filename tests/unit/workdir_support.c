#include "workdir_support.h"

#include "shard/shard.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/wait.h>

const char golden[] = "tests/data/golden/moe-all";

int calls_left;
bool locks_refused;
const char *close_fails;
uint64_t free_bytes;

static void count_call(void) {
    if (calls_left > 0 && --calls_left == 0)
        syscall(SYS_exit_group, 9);
}

int renameat(int from, const char *a, int to, const char *b) {
    count_call();
    return (int)syscall(SYS_renameat2, from, a, to, b, 0);
}

int unlinkat(int dir, const char *name, int flags) {
    count_call();
    return (int)syscall(SYS_unlinkat, dir, name, flags);
}

static int lock_or_not(int fd, int command, void *arg) {
    if (command == F_OFD_SETLK && locks_refused) {
        errno = ENOSYS;
        return -1;
    }
    return (int)syscall(SYS_fcntl, fd, command, arg);
}

int fcntl(int fd, int command, ...) {
    va_list ap;
    va_start(ap, command);
    void *arg = va_arg(ap, void *);
    va_end(ap);
    return lock_or_not(fd, command, arg);
}

int fcntl64(int fd, int command, ...);
int fcntl64(int fd, int command, ...) {
    va_list ap;
    va_start(ap, command);
    void *arg = va_arg(ap, void *);
    va_end(ap);
    return lock_or_not(fd, command, arg);
}

int close(int fd) {
    char link[64], path[512] = "";
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = close_fails != NULL ? readlink(link, path, sizeof path - 1) : 0;
    syscall(SYS_close, fd);
    size_t len = close_fails != NULL ? strlen(close_fails) : 0;
    if (len == 0 || n < (ssize_t)len || strcmp(path + n - len, close_fails) != 0)
        return 0;
    errno = EIO;
    return -1;
}

int statvfs(const char *path, struct statvfs *out) {
    (void)path;
    *out = (struct statvfs){.f_blocks = 1u << 30, .f_bavail = 1u << 30, .f_frsize = 4096};
    if (free_bytes != 0) {
        out->f_bavail = free_bytes;
        out->f_frsize = 1;
    }
    return 0;
}

void open_scene(struct scene *s) {
    scratch_dir(s->base);
    join(s->dir, sizeof s->dir, s->base, "d");
    join(s->fresh, sizeof s->fresh, s->base, "fresh");
    join(s->old, sizeof s->old, s->base, "old");
}

enum qep_status convert(const char *from, const char *dir, const char *recipe, int shards,
                        bool force) {
    struct build_fixture f;
    fixture_checkpoint(&f, from, recipe, dir);
    f.options.num_shards = shards;
    f.options.num_threads = 1;
    f.options.force = force;
    enum qep_status st = build_all(&f.options, 1);
    fixture_free(&f);
    return st;
}

enum qep_status again(const struct scene *s, bool force) {
    return convert(golden, s->dir, "q4", 2, force);
}

bool opens(const char *dir) {
    struct qep_shard_dir *shards = NULL;
    bool ok = qep_shard_dir_open(dir, &shards) == QEP_OK;
    qep_shard_dir_close(shards);
    return ok;
}

void shell(const struct scene *s, const char *command) {
    char text[1024];
    snprintf(text, sizeof text, "cd '%s' && { %.900s; }", s->base, command);
    ck_assert_msg(system(text) == 0, "%s", text);
}

bool killed_at(const struct scene *s, int n, bool force) {
    int status = 0;
    pid_t pid = fork();
    if (pid == 0) {
        calls_left = n;
        enum qep_status st = again(s, force);
        calls_left = 0;
        _exit(st == QEP_OK ? 0 : 1);
    }
    ck_assert_int_eq(waitpid(pid, &status, 0), pid);
    ck_assert(WIFEXITED(status));
    ck_assert_msg(WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == 9, "call %d: exit %d", n,
                  WEXITSTATUS(status));
    return WEXITSTATUS(status) == 0;
}

int run_workdir_suite(const char *name, void (*add)(TCase *tc)) {
    Suite *suite = suite_create(name);
    TCase *tc = tcase_create(name);
    tcase_set_timeout(tc, 240);
    add(tc);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
