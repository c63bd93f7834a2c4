/* One conversion at a time in a directory. The lock is one on DIR/.convert/lock that the system
 * drops when its holder ends; where the file system has none, the file DIR/.convert/in-use, which
 * only its maker or a person removes. Either says who. */
#include "base/file.h"
#include "shard/build_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { WHO_BYTES = 256, TRIES = 100 };

static void describe_me(char who[WHO_BYTES]) {
    char host[128] = "?";
    const char *job = getenv("SLURM_JOB_ID");
    gethostname(host, sizeof host - 1);
    snprintf(who, WHO_BYTES, "pid %ld on host %.100s%s%.60s\n", (long)getpid(), host,
             job != NULL ? ", job " : "", job != NULL ? job : "");
}

static enum qep_status in_use(const struct qep_build *b, int fd, const char *advice) {
    char who[WHO_BYTES] = "another process";
    ssize_t n = pread(fd, who, sizeof who - 1, 0);
    if (n > 0)
        who[n] = '\0';
    who[strcspn(who, "\n")] = '\0';
    return qep_fail(QEP_ERR_INTERRUPTED, "%s: in use by %s%s", b->options.dir, who, advice);
}

static enum qep_status sign(struct qep_build *b, const char *name) {
    char who[WHO_BYTES];
    describe_me(who);
    if (ftruncate(b->lock.fd, 0) != 0)
        return qep_fail(QEP_ERR_IO, "%s/%s: cannot truncate: %s", b->state.path, name,
                        strerror(errno));
    return qep_file_write_all(b->lock.fd, b->state.path, who, strlen(who));
}

static bool not_supported(int error) {
    return error == ENOSYS || error == EOPNOTSUPP || error == ENOTSUP || error == ENOLCK ||
           error == EINVAL;
}

/* Is the file that we locked still the one that others will find? */
static bool is_current(const struct qep_build *b, int fd, const char *name) {
    struct stat mine, there;
    return fstat(fd, &mine) == 0 && fstatat(b->state.fd, name, &there, AT_SYMLINK_NOFOLLOW) == 0 &&
           mine.st_dev == there.st_dev && mine.st_ino == there.st_ino;
}

static enum qep_status make_file(struct qep_build *b) {
    static const char name[] = "in-use";
    char advice[512];
    uint64_t bytes = 0;
    int flags = O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, fd = -1;
    b->lock.fd = openat(b->state.fd, name, flags, 0666);
    b->lock.file = b->lock.fd >= 0;
    if (b->lock.file)
        return sign(b, name);
    if (errno != EEXIST)
        return qep_fail(QEP_ERR_CANTCREATE, "%s/%s: cannot create: %s", b->state.path, name,
                        strerror(errno));
    QEP_TRY(qep_dir_open_file(&b->state, name, &fd, &bytes));
    snprintf(advice, sizeof advice, " (if that one is gone, remove %s/%s)", b->state.path, name);
    enum qep_status st = in_use(b, fd, advice);
    close(fd);
    return st;
}

/* *again: the lock file was removed between opening and locking. */
static enum qep_status lock_file(struct qep_build *b, bool *again, bool *gone) {
    static const char name[] = "lock";
    struct flock whole = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    int flags = O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC;
    int fd = openat(b->state.fd, name, flags, 0666);
    *again = false;
    if (fd < 0) {
        *gone = errno == ENOENT; /* whoever had the lock has removed the directory */
        return *gone ? QEP_OK
                     : qep_fail(QEP_ERR_CANTCREATE, "%s/%s: cannot create: %s", b->state.path, name,
                                strerror(errno));
    }
    enum qep_status st = QEP_OK;
    if (fcntl(fd, F_OFD_SETLK, &whole) == 0) {
        *again = !is_current(b, fd, name);
        if (!*again) {
            b->lock = (struct build_lock){.fd = fd};
            return sign(b, name);
        }
    } else if (errno == EAGAIN || errno == EACCES) {
        st = in_use(b, fd, "");
    } else if (not_supported(errno)) {
        st = make_file(b);
    } else {
        st = qep_fail(QEP_ERR_IO, "%s/%s: cannot lock: %s", b->state.path, name, strerror(errno));
    }
    close(fd);
    return st;
}

enum qep_status build_lock(struct qep_build *build, bool *gone) {
    bool again = true;
    *gone = false;
    for (int i = 0; again && !*gone && i < TRIES; i++)
        QEP_TRY(lock_file(build, &again, gone));
    if (!again || *gone)
        return QEP_OK;
    return qep_fail(QEP_ERR_INTERRUPTED, "%s: in use by others", build->options.dir);
}

void build_unlock(struct qep_build *build) {
    if (build->lock.fd < 0)
        return;
    if (build->lock.file)
        unlinkat(build->state.fd, "in-use", 0);
    close(build->lock.fd);
    build->lock = (struct build_lock){.fd = -1};
}
