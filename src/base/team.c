/* Waiting is a generation counter: the caller publishes a job by raising `generation`, workers
 * answer by raising `finished`. Both sides spin for a few microseconds before they sleep on a
 * futex. */
#include "base/team.h"

#include "base/mem.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { SPINS = 2000 };

struct qep_team {
    int num_threads;
    int num_started;
    qep_team_fn *fn;
    void *arg;
    atomic_uint generation;
    atomic_uint finished;
    atomic_bool stop;
    pthread_t *threads;
};

struct worker_arg {
    struct qep_team *team;
    int thread_idx;
};

/* A thread that works for a team runs a nested job alone: its team is busy with the outer one. */
static _Thread_local bool inside_job;

static void futex_wait(atomic_uint *word, unsigned seen) {
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
}

static void futex_wake_all(atomic_uint *word) {
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

static unsigned wait_for_change(atomic_uint *word, unsigned seen) {
    for (int i = 0; i < SPINS; i++) {
        unsigned now = atomic_load_explicit(word, memory_order_acquire);
        if (now != seen)
            return now;
        __builtin_ia32_pause();
    }
    for (;;) {
        unsigned now = atomic_load_explicit(word, memory_order_acquire);
        if (now != seen)
            return now;
        futex_wait(word, seen);
    }
}

static void *worker_main(void *p) {
    struct worker_arg *w = p;
    struct qep_team *team = w->team;
    unsigned seen = 0;
    inside_job = true;
    for (;;) {
        seen = wait_for_change(&team->generation, seen);
        if (atomic_load(&team->stop))
            break;
        team->fn(team->arg, w->thread_idx, team->num_threads);
        atomic_fetch_add_explicit(&team->finished, 1, memory_order_release);
        futex_wake_all(&team->finished);
    }
    free(w);
    return NULL;
}

enum qep_status qep_team_create(int num_threads, struct qep_team **out) {
    struct qep_team *team = NULL;
    void *mem = NULL;
    *out = NULL;
    QEP_TRY(qep_calloc(1, sizeof *team, "thread team", &mem));
    team = mem;
    team->num_threads = num_threads;
    team->threads = calloc((size_t)num_threads, sizeof *team->threads);
    if (team->threads == NULL)
        goto fail;
    for (int t = 1; t < num_threads; t++) {
        struct worker_arg *w = malloc(sizeof *w);
        if (w == NULL)
            goto fail;
        *w = (struct worker_arg){.team = team, .thread_idx = t};
        int rc = pthread_create(&team->threads[team->num_started], NULL, worker_main, w);
        if (rc != 0) {
            free(w);
            qep_team_destroy(team);
            return qep_fail(QEP_ERR_SYSTEM, "cannot start thread %d: %s", t, strerror(rc));
        }
        team->num_started++;
    }
    *out = team;
    return QEP_OK;
fail:
    qep_team_destroy(team);
    return qep_fail(QEP_ERR_SYSTEM, "thread team: out of memory");
}

void qep_team_destroy(struct qep_team *team) {
    if (team == NULL)
        return;
    atomic_store(&team->stop, true);
    atomic_fetch_add(&team->generation, 1);
    futex_wake_all(&team->generation);
    for (int t = 0; t < team->num_started; t++)
        pthread_join(team->threads[t], NULL);
    free(team->threads);
    free(team);
}

int qep_team_size(const struct qep_team *team) {
    return team == NULL ? 1 : team->num_threads;
}

void qep_team_run(struct qep_team *team, qep_team_fn *fn, void *arg) {
    if (team == NULL || team->num_threads == 1 || inside_job) {
        fn(arg, 0, 1);
        return;
    }
    team->fn = fn;
    team->arg = arg;
    atomic_store_explicit(&team->finished, 0, memory_order_relaxed);
    atomic_fetch_add_explicit(&team->generation, 1, memory_order_release);
    futex_wake_all(&team->generation);
    inside_job = true;
    fn(arg, 0, team->num_threads);
    inside_job = false;
    unsigned target = (unsigned)team->num_threads - 1;
    unsigned now = atomic_load_explicit(&team->finished, memory_order_acquire);
    while (now != target)
        now = wait_for_change(&team->finished, now);
}
