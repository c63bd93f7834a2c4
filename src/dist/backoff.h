/* Waiting for other ranks: poll a little, then give the core away (sched_yield), then sleep for an
 * eighth of the time waited so far, at most 1 ms. So a wait is noticed at most an eighth late, and
 * a rank that idles for long costs about 1 % of a CPU. */
#ifndef QEP_DIST_BACKOFF_H
#define QEP_DIST_BACKOFF_H

#include <stdbool.h>

/* Polls before the first sched_yield; few when more ranks than CPUs want to run. */
enum { QEP_BACKOFF_SPINS = 200, QEP_BACKOFF_SPINS_CROWDED = 8 };
enum { QEP_BACKOFF_MAX_SLEEP_US = 1000 };

struct qep_backoff {
    int spins_left;
    double start_s; /* of the wait; 0 while spinning */
    double waited_s;
    unsigned max_sleep_us; /* QEP_BACKOFF_MAX_SLEEP_US from init on */
};

static inline void qep_backoff_init(struct qep_backoff *backoff, int spins) {
    backoff->spins_left = spins;
    backoff->start_s = 0.0;
    backoff->waited_s = 0.0;
    backoff->max_sleep_us = QEP_BACKOFF_MAX_SLEEP_US;
}

/* Called after every poll that found nothing. */
void qep_backoff_wait(struct qep_backoff *backoff);

/* Long enough that it is worth saying whom we wait for. */
static inline bool qep_backoff_is_long(const struct qep_backoff *backoff) {
    return backoff->waited_s > 0.25;
}

/* Spins that suit num_local_ranks ranks on this host's CPUs. */
int qep_backoff_spins(int num_local_ranks);

#endif
