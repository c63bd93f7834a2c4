/* The thread team: a fixed set of threads that run one function together. Static partition, so the
 * split of work depends on the team's size only; waiting threads spin briefly, then sleep (futex).
 * One caller at a time; qep_team_run returns when every thread has finished. */
#ifndef QEP_BASE_TEAM_H
#define QEP_BASE_TEAM_H

#include "base/status.h"

#include <stddef.h>

struct qep_team;

/* Starts num_threads - 1 threads (the caller of qep_team_run is thread 0). num_threads >= 1. */
enum qep_status qep_team_create(int num_threads, struct qep_team **out);
void qep_team_destroy(struct qep_team *team); /* NULL is fine */

int qep_team_size(const struct qep_team *team); /* 1 for NULL */

typedef void qep_team_fn(void *arg, int thread_idx, int num_threads);

/* Runs fn on every thread of the team. A NULL team, and a call from inside a job, run
 * fn(arg, 0, 1) in place. */
void qep_team_run(struct qep_team *team, qep_team_fn *fn, void *arg);

/* Thread `thread_idx`'s part [*begin, *end) of `count` items, in whole blocks of `block`. */
static inline void qep_team_split(size_t count, size_t block, int thread_idx, int num_threads,
                                  size_t *begin, size_t *end) {
    size_t blocks = (count + block - 1) / block;
    size_t first = blocks * (size_t)thread_idx / (size_t)num_threads * block;
    size_t last = blocks * (size_t)(thread_idx + 1) / (size_t)num_threads * block;
    *begin = first < count ? first : count;
    *end = last < count ? last : count;
}

#endif
