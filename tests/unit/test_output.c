/* Outputs: what a path stands for, what is left at every end. close, fsync, write and renameat are
 * wrapped (base.cmake), so that the file system can fail at will. */
#include "base/file.h"
#include "base/output.h"
#include "base/temporary.h"

#include <check.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static char dir[256], path[300];
static const char *failing; /* the wrapped call that fails with failing_errno */
static int failing_errno;

static bool fails(const char *call) {
    if (failing == NULL || strcmp(failing, call) != 0)
        return false;
    errno = failing_errno;
    return true;
}

int __real_close(int fd);
int __real_fsync(int fd);
ssize_t __real_write(int fd, const void *data, size_t bytes);
int __real_renameat(int from, const char *a, int to, const char *b);

int __wrap_close(int fd);
int __wrap_close(int fd) {
    int failed = __real_close(fd);
    return fails("close") ? -1 : failed;
}

int __wrap_fsync(int fd);
int __wrap_fsync(int fd) {
    return fails("fsync") ? -1 : __real_fsync(fd);
}

ssize_t __wrap_write(int fd, const void *data, size_t bytes);
ssize_t __wrap_write(int fd, const void *data, size_t bytes) {
    return fails("write") ? -1 : __real_write(fd, data, bytes);
}

int __wrap_renameat(int from, const char *a, int to, const char *b);
int __wrap_renameat(int from, const char *a, int to, const char *b) {
    if (failing != NULL && strcmp(failing, "signal at rename") == 0)
        qep_temporaries_remove();
    return fails("rename") ? -1 : __real_renameat(from, a, to, b);
}

static void setup(void) {
    const char *tmp = getenv("TMPDIR");
    snprintf(dir, sizeof dir, "%s/qep-output-XXXXXX", tmp != NULL ? tmp : "/tmp");
    ck_assert_ptr_nonnull(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/out", dir);
    failing = NULL;
    umask(022);
}

/* Flat: no test makes directories with something in them. */
static void teardown(void) {
    DIR *d = opendir(dir);
    for (struct dirent *e; d != NULL && (e = readdir(d)) != NULL;) {
        char name[600];
        snprintf(name, sizeof name, "%s/%s", dir, e->d_name);
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0)
            remove(name);
    }
    if (d != NULL)
        closedir(d);
    ck_assert_int_eq(rmdir(dir), 0);
}

static int num_entries(void) {
    int n = -2;
    DIR *d = opendir(dir);
    ck_assert_ptr_nonnull(d);
    while (readdir(d) != NULL)
        n++;
    closedir(d);
    return n;
}

static const char *in_dir(const char *name) {
    static char full[600];
    snprintf(full, sizeof full, "%s/%s", dir, name);
    return full;
}

static void put(const char *name, const char *text, mode_t mode) {
    FILE *f = fopen(in_dir(name), "w");
    ck_assert_ptr_nonnull(f);
    fputs(text, f);
    fclose(f);
    ck_assert_int_eq(chmod(in_dir(name), mode), 0);
}

static void expect_file(const char *name, const char *text) {
    char *data = NULL;
    size_t len = 0;
    ck_assert_msg(qep_file_read(in_dir(name), 1000, &data, &len) == QEP_OK, "%s", qep_last_error());
    ck_assert_str_eq(data, text);
    free(data);
}

static enum qep_status write_out(const char *to, enum qep_output_kind kind) {
    struct qep_output *out = NULL;
    enum qep_status st = qep_output_create(to, "--out", kind, &out);
    if (st == QEP_OK)
        st = qep_output_write(out, "0000", 4);
    if (st == QEP_OK && kind == QEP_OUTPUT_SEEKS)
        st = qep_output_rewind(out);
    if (st == QEP_OK)
        st = qep_output_printf(out, "%s", kind == QEP_OUTPUT_SEEKS ? "ab" : "ab\n");
    if (st == QEP_OK)
        st = qep_output_finish(out);
    qep_output_destroy(out);
    return st;
}

static void expect_refused(const char *to, enum qep_output_kind kind, enum qep_status want,
                           const char *word) {
    ck_assert_int_eq(write_out(to, kind), want);
    ck_assert_msg(strstr(qep_last_error(), "--out") != NULL &&
                      strstr(qep_last_error(), word) != NULL,
                  "%s", qep_last_error());
}

START_TEST(a_new_file_is_there_at_the_end_only) {
    struct qep_output *out = NULL;
    struct stat sb;
    umask(027);
    ck_assert_int_eq(qep_output_create(path, "--out", QEP_OUTPUT_SEEKS, &out), QEP_OK);
    ck_assert_int_eq(access(path, F_OK), -1);
    ck_assert_int_eq(num_entries(), 1);
    qep_output_destroy(out);
    ck_assert_int_eq(num_entries(), 0);
    ck_assert_int_eq(write_out(path, QEP_OUTPUT_SEEKS), QEP_OK);
    expect_file("out", "ab00");
    ck_assert_int_eq(num_entries(), 1);
    ck_assert_int_eq(stat(path, &sb), 0);
    ck_assert_int_eq(sb.st_mode & 0777, 0640);
}
END_TEST

START_TEST(a_file_keeps_its_mode_and_owner) {
    struct stat sb;
    put("out", "old", 0604);
    bool root = geteuid() == 0;
    if (root)
        ck_assert_int_eq(chown(path, 12345, 23456), 0);
    ck_assert_int_eq(write_out(path, QEP_OUTPUT_STREAM), QEP_OK);
    expect_file("out", "0000ab\n");
    ck_assert_int_eq(stat(path, &sb), 0);
    ck_assert_int_eq(sb.st_mode & 0777, 0604);
    ck_assert(!root || (sb.st_uid == 12345 && sb.st_gid == 23456));
}
END_TEST

START_TEST(files_of_the_user_stay) {
    put("out.tmp", "mine", 0644);
    ck_assert_int_eq(write_out(path, QEP_OUTPUT_SEEKS), QEP_OK);
    ck_assert_int_eq(qep_file_write_atomic(path, "hello", 5), QEP_OK);
    expect_file("out", "hello");
    expect_file("out.tmp", "mine");
    ck_assert_int_eq(num_entries(), 2);
}
END_TEST

START_TEST(links_are_followed) {
    struct stat sb;
    put("file", "old", 0640);
    ck_assert_int_eq(symlink("file", in_dir("near")), 0);
    ck_assert_int_eq(symlink(in_dir("near"), path), 0);
    ck_assert_int_eq(write_out(path, QEP_OUTPUT_SEEKS), QEP_OK);
    expect_file("file", "ab00");
    ck_assert(lstat(path, &sb) == 0 && S_ISLNK(sb.st_mode));
    ck_assert(lstat(in_dir("near"), &sb) == 0 && S_ISLNK(sb.st_mode));
    ck_assert(lstat(in_dir("file"), &sb) == 0 && (sb.st_mode & 0777) == 0640);
    ck_assert_int_eq(symlink("new", in_dir("dangling")), 0);
    ck_assert_int_eq(write_out(in_dir("dangling"), QEP_OUTPUT_SEEKS), QEP_OK);
    expect_file("new", "ab00");
    ck_assert(lstat(in_dir("dangling"), &sb) == 0 && S_ISLNK(sb.st_mode));
    ck_assert_int_eq(num_entries(), 5);
}
END_TEST

START_TEST(links_that_lead_nowhere_are_refused) {
    ck_assert_int_eq(symlink("loop", in_dir("loop")), 0);
    expect_refused(in_dir("loop"), QEP_OUTPUT_SEEKS, QEP_ERR_CANTCREATE, "loop");
    ck_assert_int_eq(symlink("no-dir/x", path), 0);
    expect_refused(path, QEP_OUTPUT_SEEKS, QEP_ERR_CANTCREATE, "out");
    put("gone", "", 0644);
    int fd = open(in_dir("gone"), O_RDWR);
    char proc[64];
    snprintf(proc, sizeof proc, "/proc/self/fd/%d", fd);
    remove(in_dir("gone"));
    expect_refused(proc, QEP_OUTPUT_SEEKS, QEP_ERR_CANTCREATE, proc);
    put("gone (deleted)", "other", 0644);
    expect_refused(proc, QEP_OUTPUT_SEEKS, QEP_ERR_CANTCREATE, "without a name");
    expect_file("gone (deleted)", "other");
    close(fd);
}
END_TEST

START_TEST(what_is_no_file_is_refused) {
    char deep[5000];
    memset(deep, 'x', sizeof deep);
    deep[sizeof deep - 1] = '\0';
    expect_refused("", QEP_OUTPUT_STREAM, QEP_ERR_USAGE, "''");
    expect_refused(dir, QEP_OUTPUT_STREAM, QEP_ERR_CANTCREATE, "directory");
    expect_refused(".", QEP_OUTPUT_STREAM, QEP_ERR_CANTCREATE, "directory");
    expect_refused(in_dir("no-dir/x"), QEP_OUTPUT_STREAM, QEP_ERR_CANTCREATE, "no-dir/x");
    expect_refused(in_dir("x/"), QEP_OUTPUT_STREAM, QEP_ERR_CANTCREATE, "x/");
    expect_refused(deep, QEP_OUTPUT_STREAM, QEP_ERR_CANTCREATE, "xxx");
    put("out", "old", 0644);
    expect_refused(in_dir("out/x"), QEP_OUTPUT_STREAM, QEP_ERR_CANTCREATE, "out/x");
    struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = "socket"};
    ck_assert_int_eq(chdir(dir), 0);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    ck_assert_int_eq(bind(fd, (struct sockaddr *)&address, sizeof address), 0);
    expect_refused(in_dir("socket"), QEP_OUTPUT_STREAM, QEP_ERR_CANTCREATE, "socket");
    close(fd);
    expect_file("out", "old");
}
END_TEST

/* Root may write everything: another user tries, in a child. */
static int as_other_user(enum qep_status want, const char *word) {
    pid_t child = fork();
    if (child == 0) {
        if (geteuid() == 0 && (setgid(65534) != 0 || setuid(65534) != 0))
            _exit(0);
        bool right = write_out(path, QEP_OUTPUT_SEEKS) == want &&
                     (want == QEP_OK || strstr(qep_last_error(), word) != NULL);
        if (!right)
            fprintf(stderr, "%s\n", qep_last_error());
        _exit(right ? 0 : 1);
    }
    int status = 0;
    waitpid(child, &status, 0);
    return status;
}

START_TEST(what_may_not_be_written_is_refused) {
    ck_assert_int_eq(chmod(dir, 0777), 0);
    put("out", "old", 0444);
    ck_assert_int_eq(as_other_user(QEP_ERR_CANTCREATE, "out"), 0);
    ck_assert_int_eq(chmod(path, 0666), 0);
    ck_assert_int_eq(chmod(dir, 0555), 0);
    ck_assert_int_eq(as_other_user(QEP_ERR_CANTCREATE, "out"), 0);
    if (geteuid() == 0) { /* a file of root's where only owners may replace */
        ck_assert_int_eq(chmod(dir, 01777), 0);
        ck_assert_int_eq(as_other_user(QEP_ERR_CANTCREATE, "out"), 0);
    }
    expect_file("out", "old");
    ck_assert_int_eq(chmod(dir, 0777), 0);
    ck_assert_int_eq(as_other_user(QEP_OK, ""), 0);
    expect_file("out", "ab00");
}
END_TEST

START_TEST(own_streams_are_refused) {
    put("out", "old", 0644);
    ck_assert_int_eq(symlink("out", in_dir("link")), 0);
    int fd = open(path, O_RDWR), kept = dup(_i);
    dup2(fd, _i);
    enum qep_status direct = write_out(path, QEP_OUTPUT_SEEKS);
    enum qep_status linked = write_out(in_dir("link"), QEP_OUTPUT_STREAM);
    char proc[64];
    snprintf(proc, sizeof proc, "/proc/self/fd/%d", _i);
    enum qep_status by_number = write_out(proc, QEP_OUTPUT_STREAM);
    dup2(kept, _i);
    ck_assert_int_eq(direct, QEP_ERR_USAGE);
    ck_assert_int_eq(linked, QEP_ERR_USAGE);
    ck_assert_int_eq(by_number, QEP_ERR_USAGE);
    ck_assert_ptr_nonnull(
        strstr(qep_last_error(), (const char *[]){"stdin", "stdout", "stderr"}[_i]));
    expect_file("out", "old");
    close(fd);
    close(kept);
}
END_TEST

START_TEST(a_device_is_written_through) {
    struct stat before, after;
    ck_assert_int_eq(symlink("/dev/null", path), 0);
    ck_assert_int_eq(stat("/dev/null", &before), 0);
    ck_assert_int_eq(write_out(path, QEP_OUTPUT_SEEKS), QEP_OK);
    ck_assert_int_eq(write_out(path, QEP_OUTPUT_STREAM), QEP_OK);
    ck_assert(lstat(path, &after) == 0 && S_ISLNK(after.st_mode));
    ck_assert(stat("/dev/null", &after) == 0 && S_ISCHR(after.st_mode) &&
              after.st_ino == before.st_ino);
    ck_assert_int_eq(num_entries(), 1);
}
END_TEST

START_TEST(a_pipe_takes_streams_only) {
    struct stat sb;
    int ends[2];
    char text[8] = "", by_number[64];
    ck_assert_int_eq(mkfifo(path, 0644), 0);
    expect_refused(path, QEP_OUTPUT_SEEKS, QEP_ERR_USAGE, "sought"); /* at once, no reader */
    int reader = open(path, O_RDONLY | O_NONBLOCK);
    ck_assert_int_eq(write_out(path, QEP_OUTPUT_STREAM), QEP_OK);
    ck_assert_int_eq(read(reader, text, 7), 7);
    ck_assert_str_eq(text, "0000ab\n");
    ck_assert(lstat(path, &sb) == 0 && S_ISFIFO(sb.st_mode));
    close(reader);
    ck_assert_int_eq(pipe(ends), 0);
    snprintf(by_number, sizeof by_number, "/proc/self/fd/%d", ends[1]);
    expect_refused(by_number, QEP_OUTPUT_SEEKS, QEP_ERR_USAGE, "sought");
    ck_assert_int_eq(write_out(by_number, QEP_OUTPUT_STREAM), QEP_OK);
    ck_assert_int_eq(read(ends[0], text, 7), 7);
    close(ends[0]);
    signal(SIGPIPE, SIG_IGN);
    expect_refused(by_number, QEP_OUTPUT_STREAM, QEP_ERR_IO, "Broken pipe");
    close(ends[1]);
}
END_TEST

START_TEST(a_terminal_takes_streams_only) {
    char text[16] = "";
    int master = posix_openpt(O_RDWR | O_NOCTTY);
    if (master < 0) {
        fprintf(stderr, "no pseudo-terminals here: not tried\n");
        return;
    }
    ck_assert(grantpt(master) == 0 && unlockpt(master) == 0);
    ck_assert_int_eq(symlink(ptsname(master), path), 0);
    int slave = open(path, O_RDWR | O_NOCTTY);
    expect_refused(path, QEP_OUTPUT_SEEKS, QEP_ERR_USAGE, "sought");
    ck_assert_int_eq(write_out(path, QEP_OUTPUT_STREAM), QEP_OK);
    ck_assert_int_ge(read(master, text, sizeof text - 1), 4);
    ck_assert_msg(strncmp(text, "0000", 4) == 0, "%s", text);
    ck_assert_int_eq(num_entries(), 1);
    close(slave);
    close(master);
}
END_TEST

static const struct {
    const char *call;
    int why;
    enum qep_status want;
} failures[] = {{"close", EIO, QEP_ERR_IO},
                {"fsync", EIO, QEP_ERR_IO},
                {"write", ENOSPC, QEP_ERR_IO},
                {"rename", EBUSY, QEP_ERR_CANTCREATE}};

START_TEST(a_failure_leaves_the_old_file) {
    put("out", "old", 0644);
    failing = failures[_i].call;
    failing_errno = failures[_i].why;
    enum qep_status st = write_out(path, QEP_OUTPUT_SEEKS);
    enum qep_status atomic = qep_file_write_atomic(path, "new", 3);
    failing = NULL;
    ck_assert_int_eq(st, failures[_i].want);
    ck_assert_int_eq(atomic, failures[_i].want);
    ck_assert_msg(strstr(qep_last_error(), path) != NULL &&
                      strstr(qep_last_error(), strerror(failures[_i].why)) != NULL,
                  "%s", qep_last_error());
    expect_file("out", "old");
    ck_assert_int_eq(num_entries(), 1);
}
END_TEST

START_TEST(a_failed_write_is_not_forgotten) {
    struct qep_output *out = NULL;
    ck_assert_int_eq(qep_output_create(path, "--out", QEP_OUTPUT_STREAM, &out), QEP_OK);
    failing = "write";
    failing_errno = ENOSPC;
    qep_output_printf(out, "lost");
    failing = NULL;
    ck_assert_int_eq(qep_output_write(out, "more", 4), QEP_OK);
    ck_assert_int_eq(qep_output_finish(out), QEP_ERR_IO);
    qep_output_destroy(out);
    ck_assert_int_eq(num_entries(), 0);
}
END_TEST

START_TEST(what_cannot_be_synced_is_fine) {
    failing = "fsync";
    failing_errno = EINVAL;
    ck_assert_int_eq(write_out(path, QEP_OUTPUT_SEEKS), QEP_OK);
    failing = NULL;
    expect_file("out", "ab00");
}
END_TEST

START_TEST(asked_to_stop_nothing_is_left) {
    struct qep_output *out = NULL;
    put("out", "old", 0644);
    ck_assert_int_eq(qep_output_create(path, "--out", QEP_OUTPUT_SEEKS, &out), QEP_OK);
    ck_assert_int_eq(num_entries(), 2);
    if (_i == 0)
        qep_temporaries_remove();
    else
        failing = "signal at rename";
    ck_assert_int_eq(num_entries(), _i == 0 ? 1 : 2);
    ck_assert_int_eq(qep_output_write(out, "new", 3), QEP_OK);
    ck_assert_int_eq(qep_output_finish(out), QEP_ERR_INTERRUPTED);
    failing = NULL;
    qep_output_destroy(out);
    ck_assert_int_eq(num_entries(), 1);
    expect_file("out", "old");
    expect_refused(path, QEP_OUTPUT_SEEKS, QEP_ERR_INTERRUPTED, "interrupted");
    ck_assert_int_eq(num_entries(), 1);
}
END_TEST

/* A child that has an output open ends by a signal, by a fault, by abort or by exit. */
static int end_child(int how) {
    int ready[2];
    ck_assert_int_eq(pipe(ready), 0);
    pid_t child = fork();
    if (child == 0) {
        struct qep_output *out = NULL;
        struct rlimit none = {0, 0};
        setrlimit(RLIMIT_CORE, &none);
        if (how > 0 && how != SIGBUS && how != SIGILL && how != SIGFPE)
            signal(how, SIG_DFL); /* Check has handlers of its own */
        if (qep_output_create(path, "--out", QEP_OUTPUT_SEEKS, &out) != QEP_OK)
            _exit(99);
        if (write(ready[1], "x", 1) != 1)
            _exit(98);
        if (how == 0)
            exit(7);
        if (how == -1)
            abort();
        if (how == -2)
            raise(SIGSEGV);
        if (how == -3) /* one that the processor finds */
            *(volatile char *)mmap(NULL, 1, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) = 1;
        for (;;)
            pause();
    }
    char byte;
    int status = 0;
    ck_assert_int_eq(read(ready[0], &byte, 1), 1);
    if (how > 0)
        kill(child, how);
    waitpid(child, &status, 0);
    close(ready[0]);
    close(ready[1]);
    return status;
}

static const int endings[] = {0,       -1,      -2,      -3,      SIGHUP,  SIGINT,  SIGQUIT,
                              SIGTERM, SIGUSR1, SIGUSR2, SIGALRM, SIGXCPU, SIGBUS,  SIGILL,
                              SIGFPE,  SIGSYS,  SIGTRAP, SIGIO,   SIGPWR,  SIGPROF, SIGVTALRM};

START_TEST(every_end_that_can_be_caught_leaves_nothing) {
    int how = endings[_i];
    put("out", "old", 0644);
    int status = end_child(how);
    if (how == 0)
        ck_assert(WIFEXITED(status) && WEXITSTATUS(status) == 7);
    else if (how > 0 && how != SIGBUS && how != SIGILL && how != SIGFPE)
        ck_assert(WIFSIGNALED(status) && WTERMSIG(status) == how);
    else /* a sanitizer exits where its signals come */
        ck_assert(WIFSIGNALED(status) || WEXITSTATUS(status) != 0);
    ck_assert_int_eq(num_entries(), 1);
    expect_file("out", "old");
}
END_TEST

START_TEST(a_forked_child_takes_nothing_along) {
    struct qep_output *out = NULL;
    ck_assert_int_eq(qep_output_create(path, "--out", QEP_OUTPUT_SEEKS, &out), QEP_OK);
    pid_t child = fork();
    if (child == 0)
        exit(0);
    waitpid(child, NULL, 0);
    ck_assert_int_eq(num_entries(), 1);
    ck_assert_int_eq(qep_output_write(out, "new", 3), QEP_OK);
    ck_assert_int_eq(qep_output_finish(out), QEP_OK);
    qep_output_destroy(out);
    expect_file("out", "new");
}
END_TEST

START_TEST(two_outputs_of_one_path) {
    struct qep_output *first = NULL, *second = NULL;
    ck_assert_int_eq(qep_output_create(path, "--out", QEP_OUTPUT_SEEKS, &first), QEP_OK);
    ck_assert_int_eq(qep_output_create(path, "--out", QEP_OUTPUT_SEEKS, &second), QEP_OK);
    qep_output_write(first, "first", 5);
    qep_output_write(second, "second", 6);
    ck_assert_int_eq(qep_output_finish(first), QEP_OK);
    expect_file("out", "first");
    ck_assert_int_eq(qep_output_finish(second), QEP_OK);
    expect_file("out", "second");
    qep_output_destroy(first);
    qep_output_destroy(second);
    ck_assert_int_eq(num_entries(), 1);
}
END_TEST

START_TEST(entries_are_given_back) {
    struct qep_output *out[17];
    for (int round = 0; round < 40; round++)
        ck_assert_int_eq(write_out(path, QEP_OUTPUT_SEEKS), QEP_OK);
    for (int i = 0; i < 16; i++)
        ck_assert_int_eq(qep_output_create(path, "--out", QEP_OUTPUT_SEEKS, &out[i]), QEP_OK);
    ck_assert_int_eq(qep_output_create(path, "--out", QEP_OUTPUT_SEEKS, &out[16]), QEP_ERR_SYSTEM);
    for (int i = 0; i < 16; i++)
        qep_output_destroy(out[i]);
    ck_assert_int_eq(write_out(path, QEP_OUTPUT_SEEKS), QEP_OK);
    ck_assert_int_eq(num_entries(), 1);
}
END_TEST

int main(void) {
    Suite *suite = suite_create("output");
    TCase *tc = tcase_create("output");
    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, a_new_file_is_there_at_the_end_only);
    tcase_add_test(tc, a_file_keeps_its_mode_and_owner);
    tcase_add_test(tc, files_of_the_user_stay);
    tcase_add_test(tc, links_are_followed);
    tcase_add_test(tc, links_that_lead_nowhere_are_refused);
    tcase_add_test(tc, what_is_no_file_is_refused);
    tcase_add_test(tc, what_may_not_be_written_is_refused);
    tcase_add_loop_test(tc, own_streams_are_refused, 0, 3);
    tcase_add_test(tc, a_device_is_written_through);
    tcase_add_test(tc, a_pipe_takes_streams_only);
    tcase_add_test(tc, a_terminal_takes_streams_only);
    tcase_add_loop_test(tc, a_failure_leaves_the_old_file, 0, 4);
    tcase_add_test(tc, a_failed_write_is_not_forgotten);
    tcase_add_test(tc, what_cannot_be_synced_is_fine);
    tcase_add_loop_test(tc, asked_to_stop_nothing_is_left, 0, 2);
    tcase_add_loop_test(tc, every_end_that_can_be_caught_leaves_nothing, 0,
                        sizeof endings / sizeof *endings);
    tcase_add_test(tc, a_forked_child_takes_nothing_along);
    tcase_add_test(tc, two_outputs_of_one_path);
    tcase_add_test(tc, entries_are_given_back);
    suite_add_tcase(suite, tc);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
