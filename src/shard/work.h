/* DIR/.convert, where whatever changes a shard directory works, and the lock in it: one process at
 * a time. The lock is one on the file `lock`, which the system drops when its holder ends; where
 * the file system has none, the file `in-use`, which only its maker or a person removes. Either
 * says who. */
#ifndef QEP_SHARD_WORK_H
#define QEP_SHARD_WORK_H

#include "base/dir.h"

struct qep_work {
    struct qep_dir dir, state; /* DIR and DIR/.convert */
    int lock_fd;               /* -1: not held */
    bool by_file;              /* held by in-use being there */
    bool lock_ours;            /* the lock's file is one of ours */
    bool state_ours;           /* made by this process, or a lock of ours was in it */
};

#define QEP_WORK_CLOSED                                                                            \
    ((struct qep_work){.dir = QEP_DIR_CLOSED, .state = QEP_DIR_CLOSED, .lock_fd = -1})

/* Opens or makes DIR/.convert (DIR is open) and takes the lock. *again: it went away meanwhile, all
 * that was seen before is to be looked at again. QEP_ERR_INTERRUPTED: "in use by ...";
 * QEP_ERR_CANTCREATE: something that is not ours is in the way, named. Leave it in any case. */
enum qep_status qep_work_lock(struct qep_work *work, bool *again);

/* Gives the lock back; what a refused command made goes, a state that is not empty stays. */
void qep_work_leave(struct qep_work *work);

/* After the work is done: removes `last` (NULL: nothing), the lock and DIR/.convert, in an order
 * in which others find either the lock or nothing. */
enum qep_status qep_work_remove(struct qep_work *work, const char *last);

void qep_work_close(struct qep_work *work); /* leaves, and closes DIR; a closed one is fine */

#endif
