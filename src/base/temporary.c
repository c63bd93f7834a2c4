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
#include <unistd.h>

enum { MAX_TEMPORARIES = 16, MAX_TRIES = 100, RANDOM_CHARS = 8 };

/* FREE -> HELD -> LIVE -> HELD (renamed) -> FREE, or LIVE -> REMOVED, which is the end: an entry
 * that a handler may still be reading is never used again. */
enum { FREE, HELD, LIVE, REMOVED };

struct qep_temporary {
    atomic_int state;
    pid_t owner; /* a forked child has a copy of the table, not of the files */
    char path[PATH_MAX];
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
            unlink(table[i].path);
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
    if (!move(t, LIVE, FREE))
        move(t, HELD, FREE);
}

/* DIR/.qwen-ep-XXXXXXXX; hidden, so that `*` in a directory of results does not find it. */
static bool choose_path(struct qep_temporary *t, const char *beside) {
    static const char letters[] = "abcdefghijklmnopqrstuvwxyz234567";
    unsigned char random[RANDOM_CHARS];
    char name[RANDOM_CHARS + 1];
    const char *slash = strrchr(beside, '/');
    size_t dir_len = slash == NULL ? 0 : (size_t)(slash - beside) + 1;
    if (getrandom(random, sizeof random, 0) != (ssize_t)sizeof random)
        return false;
    for (int i = 0; i < RANDOM_CHARS; i++)
        name[i] = letters[random[i] % 32];
    name[RANDOM_CHARS] = '\0';
    int n = snprintf(t->path, sizeof t->path, "%.*s.qwen-ep-%s", (int)dir_len, beside, name);
    if (n < (int)sizeof t->path)
        return true;
    errno = ENAMETOOLONG;
    return false;
}

/* The entry is live before its file exists: a signal between the two finds nothing to remove, one
 * between the file and the entry would leave the file. */
static int open_new(struct qep_temporary *t, const char *beside) {
    for (int i = 0; i < MAX_TRIES; i++) {
        if (!choose_path(t, beside))
            return -1;
        atomic_store(&t->state, LIVE);
        int fd = open(t->path, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0666);
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
        unlink(t->path);
        close(opened);
    }
    free_entry(t);
    return atomic_load(&removed)
               ? interrupted(label)
               : qep_fail(QEP_ERR_CANTCREATE, "%s: cannot create a file beside it: %s", label,
                          strerror(why));
}

enum qep_status qep_temporary_rename(struct qep_temporary *temporary, const char *target,
                                     const char *label) {
    int failed = atomic_load(&temporary->state) == LIVE ? rename(temporary->path, target) : -1;
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
        unlink(temporary->path);
    free_entry(temporary);
}
