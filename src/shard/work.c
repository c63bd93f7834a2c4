#include "shard/work.h"

#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { WHO_BYTES = 256, TRIES = 100, SIGNING_TRIES = 20 };

static const char lock_name[] = "lock", file_name[] = "in-use";
static const char title[] = "qwen-ep, "; /* begins what we write there */

static void describe_me(char who[WHO_BYTES]) {
    char host[128] = "?";
    const char *job = getenv("SLURM_JOB_ID");
    gethostname(host, sizeof host - 1);
    snprintf(who, WHO_BYTES, "%spid %ld on host %.100s%s%.60s\n", title, (long)getpid(), host,
             job != NULL ? ", job " : "", job != NULL ? job : "");
}

/* What a lock file says; "" when it is empty. */
static void read_who(int fd, char who[WHO_BYTES]) {
    ssize_t n = pread(fd, who, WHO_BYTES - 1, 0);
    who[n > 0 ? n : 0] = '\0';
    who[strcspn(who, "\n")] = '\0';
}

/* Its holder has it a moment before its name is in it. */
static void await_who(int fd, char who[WHO_BYTES]) {
    const struct timespec pause = {.tv_nsec = 10000000};
    read_who(fd, who);
    for (int i = 0; *who == '\0' && i < SIGNING_TRIES; i++) {
        nanosleep(&pause, NULL);
        read_who(fd, who);
    }
}

static enum qep_status in_use(const struct qep_work *w, int fd, const char *advice) {
    char who[WHO_BYTES];
    await_who(fd, who);
    size_t skip = strncmp(who, title, sizeof title - 1) == 0 ? sizeof title - 1 : 0;
    return qep_fail(QEP_ERR_INTERRUPTED, "%s: in use by %s%s", w->dir.path,
                    *who != '\0' ? who + skip : "another process", advice);
}

static enum qep_status refuse(const struct qep_work *w, const char *name) {
    return qep_fail(QEP_ERR_CANTCREATE, "%s/%s: is in the way: not a lock of ours", w->state.path,
                    name);
}

static enum qep_status sign(const struct qep_work *w, int fd, const char *name) {
    char who[WHO_BYTES];
    describe_me(who);
    size_t len = strlen(who);
    if (ftruncate(fd, 0) == 0 && pwrite(fd, who, len, 0) == (ssize_t)len)
        return QEP_OK;
    return qep_fail(QEP_ERR_IO, "%s/%s: cannot be written: %s", w->state.path, name,
                    strerror(errno));
}

static bool not_supported(int error) {
    return error == ENOSYS || error == EOPNOTSUPP || error == ENOLCK || error == EINVAL;
}

/* Is the file that we have open still the one that others will find? */
static bool is_current(const struct qep_work *w, int fd, const char *name) {
    struct stat mine, there;
    return fstat(fd, &mine) == 0 && fstatat(w->state.fd, name, &there, AT_SYMLINK_NOFOLLOW) == 0 &&
           mine.st_dev == there.st_dev && mine.st_ino == there.st_ino;
}

static void unlock(struct qep_work *w) {
    if (w->lock_fd < 0)
        return;
    if (w->by_file && is_current(w, w->lock_fd, file_name))
        unlinkat(w->state.fd, file_name, 0);
    close(w->lock_fd);
    w->lock_fd = -1;
    w->by_file = false;
}

static enum qep_status refuse_holder(const struct qep_work *w) {
    char advice[512];
    uint64_t bytes = 0;
    int fd = -1;
    if (qep_dir_open_file(&w->state, file_name, &fd, &bytes) != QEP_OK)
        return refuse(w, file_name);
    snprintf(advice, sizeof advice, " (if that one is gone, remove %.400s/%s)", w->state.path,
             file_name);
    enum qep_status st = in_use(w, fd, advice);
    close(fd);
    return st;
}

/* A lock that is signed may be held by one that has locks of the system, which are not seen here:
 * like an in-use it is for a person to judge. */
static enum qep_status refuse_signed(const struct qep_work *w, int lock) {
    char who[WHO_BYTES], advice[512];
    read_who(lock, who);
    snprintf(advice, sizeof advice, " (if that one is gone, remove %.400s/%s)", w->state.path,
             lock_name);
    return *who == '\0' ? QEP_OK : in_use(w, lock, advice);
}

/* Both kinds leave their mark first and then look for the other's: two may refuse each other, but
 * never go on together. */
static enum qep_status make_file(struct qep_work *w, int lock) {
    int flags = O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC;
    w->lock_fd = openat(w->state.fd, file_name, flags, 0666);
    w->by_file = w->lock_fd >= 0;
    if (w->by_file) {
        QEP_TRY(sign(w, w->lock_fd, file_name));
        enum qep_status st = refuse_signed(w, lock);
        if (st != QEP_OK)
            unlock(w);
        return st;
    }
    if (errno == EEXIST)
        return refuse_holder(w);
    return qep_fail(QEP_ERR_CANTCREATE, "%s/%s: cannot create: %s", w->state.path, file_name,
                    strerror(errno));
}

/* A file of that name is ours when it is empty or has our title, and has no other name. */
static bool is_lock(int fd, bool *titled) {
    struct stat sb;
    char who[WHO_BYTES];
    *titled = false;
    if (fstat(fd, &sb) != 0 || !S_ISREG(sb.st_mode) || sb.st_nlink > 1)
        return false;
    read_who(fd, who);
    *titled = strncmp(who, title, sizeof title - 1) == 0;
    return *titled || sb.st_size == 0;
}

/* *fd -1 with QEP_OK: whoever had the lock has just removed it or its directory. */
static enum qep_status open_lock(struct qep_work *w, int *fd) {
    int flags = O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC;
    *fd = openat(w->state.fd, lock_name, flags | O_CREAT | O_EXCL, 0666);
    if (*fd < 0 && errno == EEXIST)
        *fd = openat(w->state.fd, lock_name, flags);
    if (*fd < 0 && errno == ENOENT)
        return QEP_OK;
    if (*fd < 0 && qep_dir_entry(&w->state, lock_name) == QEP_ENTRY_ABSENT)
        return qep_fail(QEP_ERR_CANTCREATE, "%s/%s: cannot create: %s", w->state.path, lock_name,
                        strerror(errno));
    bool titled = false;
    if (*fd >= 0 && is_lock(*fd, &titled)) {
        w->state_ours = w->state_ours || titled;
        return QEP_OK;
    }
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
    return refuse(w, lock_name);
}

/* Sets lock_fd when it is ours now; it stays -1 when all is to be tried again. */
static enum qep_status take(struct qep_work *w, int fd) {
    struct flock whole = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    if (fcntl(fd, F_OFD_SETLK, &whole) != 0) {
        if (errno == EAGAIN || errno == EACCES)
            return in_use(w, fd, "");
        if (not_supported(errno))
            return make_file(w, fd);
        return qep_fail(QEP_ERR_IO, "%s/%s: cannot lock: %s", w->state.path, lock_name,
                        strerror(errno));
    }
    if (!is_current(w, fd, lock_name))
        return QEP_OK;
    QEP_TRY(sign(w, fd, lock_name));
    if (qep_dir_entry(&w->state, file_name) == QEP_ENTRY_ABSENT) {
        w->lock_fd = fd;
        return QEP_OK;
    }
    enum qep_status st = refuse_holder(w); /* one without such locks */
    return ftruncate(fd, 0) == 0
               ? st
               : qep_fail(QEP_ERR_IO, "%s/%s: cannot be written", w->state.path, lock_name);
}

static enum qep_status lock_once(struct qep_work *w, bool *gone) {
    int fd = -1;
    QEP_TRY(open_lock(w, &fd));
    *gone = fd < 0;
    if (*gone)
        return QEP_OK;
    w->lock_ours = true;
    enum qep_status st = take(w, fd);
    if (w->lock_fd != fd)
        close(fd);
    return st;
}

static enum qep_status fail_at(void *arg, const char *name) {
    (void)arg;
    (void)name;
    return QEP_ERR_BUG;
}

/* An empty one beside a manifest is what an end between the last two removals leaves. */
static bool is_remnant(const struct qep_work *w) {
    return qep_dir_entry(&w->dir, "manifest.json") != QEP_ENTRY_ABSENT &&
           qep_dir_each(&w->state, fail_at, NULL) == QEP_OK;
}

/* *gone: somebody removes it at this moment. */
static enum qep_status open_state(struct qep_work *w, bool *gone) {
    if (qep_dir_entry(&w->dir, ".convert") == QEP_ENTRY_ABSENT)
        QEP_TRY(qep_dir_make(&w->dir, ".convert", &w->state_ours));
    enum qep_status st = qep_dir_open_in(&w->dir, ".convert", &w->state);
    *gone = st != QEP_OK && qep_dir_entry(&w->dir, ".convert") == QEP_ENTRY_ABSENT;
    w->state_ours = w->state_ours || (st == QEP_OK && is_remnant(w));
    return *gone ? QEP_OK : st;
}

enum qep_status qep_work_lock(struct qep_work *work, bool *again) {
    qep_work_leave(work);
    QEP_TRY(open_state(work, again));
    for (int i = 0; !*again && work->lock_fd < 0 && i < TRIES; i++)
        QEP_TRY(lock_once(work, again));
    if (*again || work->lock_fd >= 0)
        return QEP_OK;
    return qep_fail(QEP_ERR_INTERRUPTED, "%s: in use by others", work->dir.path);
}

/* Still held, so that others find either it or a new one. */
static void remove_lock(const struct qep_work *w) {
    if (w->lock_fd >= 0 && w->lock_ours)
        unlinkat(w->state.fd, lock_name, 0);
}

void qep_work_leave(struct qep_work *work) {
    remove_lock(work);
    unlock(work);
    if (work->state_ours)
        unlinkat(work->dir.fd, ".convert", AT_REMOVEDIR); /* when it is empty */
    qep_dir_close(&work->state);
    work->lock_ours = work->state_ours = false;
}

enum qep_status qep_work_remove(struct qep_work *work, const char *last) {
    remove_lock(work);
    if (last != NULL)
        QEP_TRY(qep_dir_remove(&work->state, last));
    unlock(work);
    qep_dir_close(&work->state);
    work->lock_ours = work->state_ours = false;
    if (unlinkat(work->dir.fd, ".convert", AT_REMOVEDIR) == 0 || errno == ENOENT ||
        errno == ENOTEMPTY || errno == EEXIST)
        return QEP_OK;
    return qep_fail(QEP_ERR_CANTCREATE, "%s/.convert: cannot remove: %s", work->dir.path,
                    strerror(errno));
}

void qep_work_close(struct qep_work *work) {
    qep_work_leave(work);
    qep_dir_close(&work->dir);
}
