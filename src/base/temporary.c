#include "base/temporary.h"

#include "base/temporary_signals.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

static const char prefix[] = ".qwen-ep-"; /* hidden: `*` in a directory of results does not match */

enum {
    MAX_TEMPORARIES = 16,
    MAX_TRIES = 100,
    RANDOM_CHARS = 8,
    NAME_BYTES = sizeof prefix + RANDOM_CHARS
};

/* FREE -> HELD -> LIVE -> HELD (renamed) -> FREE, or LIVE -> REMOVED, which is the end: an entry
 * that a handler may still be reading is never used again. */
enum { FREE, HELD, LIVE, REMOVED };

struct qep_temporary {
    atomic_int state;
    pid_t owner; /* a forked child has a copy of the table, not of the files */
    int dir_fd;  /* its directory, whatever that is called by now */
    char name[NAME_BYTES];
};

static struct qep_temporary table[MAX_TEMPORARIES];
static atomic_bool removed;

static bool move(struct qep_temporary *t, int from, int to) {
    return atomic_compare_exchange_strong(&t->state, &from, to);
}

void qep_temporaries_remove(void) {
    int saved = errno;
    atomic_store(&removed, true);
    for (size_t i = 0; i < MAX_TEMPORARIES; i++)
        if (atomic_load(&table[i].state) == LIVE && table[i].owner == getpid() &&
            move(&table[i], LIVE, REMOVED))
            unlinkat(table[i].dir_fd, table[i].name, 0);
    errno = saved;
}

bool qep_temporaries_were_removed(void) {
    return atomic_load(&removed);
}

static void remove_at_every_end(void) {
    atexit(qep_temporaries_remove);
    qep_temporary_signals_install();
}

static struct qep_temporary *take_entry(void) {
    for (size_t i = 0; i < MAX_TEMPORARIES; i++)
        if (move(&table[i], FREE, HELD))
            return &table[i];
    return NULL;
}

static void free_entry(struct qep_temporary *t) {
    if (atomic_load(&t->state) == REMOVED)
        return; /* with its descriptor, which the handler may still use */
    close(t->dir_fd);
    if (!move(t, LIVE, FREE))
        move(t, HELD, FREE);
}

static const char *name_in(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash == NULL ? path : slash + 1;
}

static bool open_dir_of(struct qep_temporary *t, const char *path) {
    char dir[PATH_MAX];
    int len = (int)(name_in(path) - path);
    if (snprintf(dir, sizeof dir, "%.*s.", len, path) >= (int)sizeof dir) {
        errno = ENAMETOOLONG;
        return false;
    }
    t->dir_fd = open(dir, O_PATH | O_DIRECTORY | O_CLOEXEC);
    return t->dir_fd >= 0;
}

static bool choose_name(struct qep_temporary *t) {
    static const char letters[] = "abcdefghijklmnopqrstuvwxyz234567";
    unsigned char random[RANDOM_CHARS];
    char name[RANDOM_CHARS + 1] = "";
    if (getrandom(random, sizeof random, 0) != (ssize_t)sizeof random)
        return false;
    for (int i = 0; i < RANDOM_CHARS; i++)
        name[i] = letters[random[i] % 32];
    snprintf(t->name, sizeof t->name, "%s%s", prefix, name);
    return true;
}

/* The entry is live before its file exists: a signal between the two finds nothing to remove, one
 * between the file and the entry would leave the file. */
static int open_new(struct qep_temporary *t, const char *beside) {
    if (!open_dir_of(t, beside))
        return -1;
    for (int i = 0; i < MAX_TRIES; i++) {
        if (!choose_name(t))
            return -1;
        atomic_store(&t->state, LIVE);
        int fd =
            openat(t->dir_fd, t->name, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0666);
        if (fd >= 0 || errno != EEXIST || !move(t, LIVE, HELD))
            return fd;
    }
    return -1;
}

static enum qep_status interrupted(const char *label) {
    return qep_fail(QEP_ERR_INTERRUPTED, "%s: interrupted before it was whole", label);
}

enum qep_status qep_temporary_create(const char *beside, const char *label,
                                     struct qep_temporary **out, int *fd) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    *out = NULL;
    *fd = -1;
    pthread_once(&once, remove_at_every_end);
    struct qep_temporary *t = take_entry();
    if (t == NULL)
        return qep_fail(QEP_ERR_SYSTEM, "%s: more than %d files are being written", label,
                        MAX_TEMPORARIES);
    t->owner = getpid();
    int opened = open_new(t, beside), why = errno;
    if (opened >= 0 && !atomic_load(&removed)) {
        *out = t;
        *fd = opened;
        return QEP_OK;
    }
    if (opened >= 0) {
        unlinkat(t->dir_fd, t->name, 0);
        close(opened);
    }
    free_entry(t);
    return atomic_load(&removed)
               ? interrupted(label)
               : qep_fail(QEP_ERR_CANTCREATE, "%s: cannot create a file beside it: %s", label,
                          strerror(why));
}

/* Only a regular file may have taken the name since the output was judged: what is written through
 * is not replaced, nor is a link. */
static enum qep_status judge_again(const struct qep_temporary *t, const char *name,
                                   const char *label) {
    struct stat sb;
    if (fstatat(t->dir_fd, name, &sb, AT_SYMLINK_NOFOLLOW) != 0 || S_ISREG(sb.st_mode))
        return QEP_OK;
    return qep_fail(QEP_ERR_CANTCREATE, "%s: is no regular file any more", label);
}

enum qep_status qep_temporary_rename(struct qep_temporary *temporary, const char *target,
                                     const char *label) {
    const char *name = name_in(target);
    if (atomic_load(&temporary->state) == REMOVED)
        return interrupted(label);
    QEP_TRY(judge_again(temporary, name, label));
    int failed = renameat(temporary->dir_fd, temporary->name, temporary->dir_fd, name);
    int why = errno;
    if (failed == 0) {
        move(temporary, LIVE, HELD);
        return QEP_OK;
    }
    if (atomic_load(&temporary->state) == REMOVED)
        return interrupted(label);
    return qep_fail(QEP_ERR_CANTCREATE, "%s: cannot rename into place: %s", label, strerror(why));
}

void qep_temporary_destroy(struct qep_temporary *temporary) {
    if (temporary == NULL)
        return;
    if (atomic_load(&temporary->state) == LIVE)
        unlinkat(temporary->dir_fd, temporary->name, 0);
    free_entry(temporary);
}
