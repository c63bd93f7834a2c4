#include "dist/backoff.h"

#include "base/clock.h"
#include "dist/cpus.h"

#include <sched.h>
#include <sys/prctl.h>

#define YIELD_S 100e-6 /* how long to yield before the first sleep */
enum { MIN_SLEEP_US = 10 };

/* The kernel may round sleeps up by the thread's timer slack, 50 us unless told. */
static void sharpen_sleeps(void) {
    static _Thread_local bool done;
    if (!done) {
        prctl(PR_SET_TIMERSLACK, 2000UL, 0UL, 0UL, 0UL);
        done = true;
    }
}

static void spin_pause(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
}

void qep_backoff_wait(struct qep_backoff *backoff) {
    if (backoff->spins_left > 0) {
        backoff->spins_left--;
        spin_pause();
        return;
    }
    double now_s = qep_now_s();
    if (backoff->start_s <= 0.0)
        backoff->start_s = now_s;
    backoff->waited_s = now_s - backoff->start_s;
    if (backoff->waited_s < YIELD_S) {
        sched_yield();
        return;
    }
    sharpen_sleeps();
    double us = backoff->waited_s * 1e6 / 8.0;
    unsigned sleep_us = us > backoff->max_sleep_us ? backoff->max_sleep_us : (unsigned)us;
    qep_sleep_us(sleep_us < MIN_SLEEP_US ? MIN_SLEEP_US : sleep_us);
}

int qep_backoff_spins(int num_local_ranks) {
    return num_local_ranks > qep_cpus_allowed() ? QEP_BACKOFF_SPINS_CROWDED : QEP_BACKOFF_SPINS;
}
