/* All ranks of a job stall together when one of them does, so their watchdogs are staggered by
 * rank: the lowest rank that still runs speaks and ends the job before the next one's time comes.
 */
#include "dist/watchdog.h"

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_STAGGER = 8 };
#define STAGGER_S 1.0
#define MAX_PERIOD_S 0.25

struct qep_watchdog {
    struct qep_comm *comm;
    double timeout_s; /* as asked for, shown in the message */
    double deadline_s;
    double period_s;
    pthread_t thread;
    pthread_mutex_t lock; /* for stop */
    pthread_cond_t wake;
    bool stop;
    /* The stamp; `count` moves last. */
    _Atomic(const char *) phase;
    atomic_int layer;
    atomic_long step;
    atomic_bool resting;
    atomic_ulong count;
};

static _Noreturn void fire(struct qep_watchdog *dog) {
    char layer_text[32] = "", step_text[32] = "", peer_text[48] = "";
    int layer = atomic_load(&dog->layer);
    long step = atomic_load(&dog->step);
    int peer = __atomic_load_n(&dog->comm->waiting_for, __ATOMIC_RELAXED);
    if (layer >= 0)
        snprintf(layer_text, sizeof layer_text, ", layer %d", layer);
    if (step >= 0)
        snprintf(step_text, sizeof step_text, ", step %ld", step);
    if (peer >= 0)
        snprintf(peer_text, sizeof peer_text, ", waiting for rank %d", peer);
    qep_comm_give_up(dog->comm, QEP_ERR_INTERRUPTED, "no progress for %g s in %s%s%s%s",
                     dog->timeout_s, atomic_load(&dog->phase), layer_text, step_text, peer_text);
}

/* Waits a period; true when the dog is to stop. */
static bool wait_period(struct qep_watchdog *dog) {
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    double ns = (double)until.tv_nsec + dog->period_s * 1e9;
    until.tv_sec += (time_t)(ns / 1e9);
    until.tv_nsec = (long)ns % 1000000000L;
    pthread_mutex_lock(&dog->lock);
    int rc = 0;
    while (!dog->stop && rc != ETIMEDOUT)
        rc = pthread_cond_timedwait(&dog->wake, &dog->lock, &until);
    bool stop = dog->stop;
    pthread_mutex_unlock(&dog->lock);
    return stop;
}

static void *watch(void *arg) {
    struct qep_watchdog *dog = arg;
    unsigned long seen = atomic_load(&dog->count);
    double still_s = 0.0, last_s = qep_now_s();
    while (!wait_period(dog)) {
        double now_s = qep_now_s();
        unsigned long count = atomic_load(&dog->count);
        if (count != seen || atomic_load(&dog->resting)) {
            seen = count;
            still_s = 0.0;
        } else {
            /* At most two periods count per tick: a process that was stopped and goes on (job
             * suspension, a debugger) has lost no time. */
            double step_s = now_s - last_s;
            still_s += step_s < 2.0 * dog->period_s ? step_s : 2.0 * dog->period_s;
        }
        last_s = now_s;
        if (still_s >= dog->deadline_s)
            fire(dog);
    }
    return NULL;
}

/* Signals are for the main thread, whose blocking reads they shall interrupt. */
static int start_thread(struct qep_watchdog *dog) {
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int rc = pthread_create(&dog->thread, NULL, watch, dog);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return rc;
}

static void init_sync(struct qep_watchdog *dog) {
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&dog->wake, &attr);
    pthread_condattr_destroy(&attr);
    pthread_mutex_init(&dog->lock, NULL);
}

static void free_dog(struct qep_watchdog *dog) {
    pthread_cond_destroy(&dog->wake);
    pthread_mutex_destroy(&dog->lock);
    free(dog);
}

enum qep_status qep_watchdog_create(struct qep_comm *comm, double timeout_s,
                                    struct qep_watchdog **out) {
    struct qep_watchdog *dog = NULL;
    *out = NULL;
    if (!(timeout_s > 0.0))
        return QEP_OK;
    QEP_TRY(qep_calloc(1, sizeof *dog, "watchdog", (void **)&dog));
    int stagger = comm->rank < MAX_STAGGER ? comm->rank : MAX_STAGGER;
    dog->comm = comm;
    dog->timeout_s = timeout_s;
    dog->deadline_s = timeout_s + STAGGER_S * stagger;
    dog->period_s = timeout_s / 8.0 < MAX_PERIOD_S ? timeout_s / 8.0 : MAX_PERIOD_S;
    atomic_init(&dog->phase, "start");
    atomic_init(&dog->layer, -1);
    atomic_init(&dog->step, -1);
    atomic_init(&dog->resting, false);
    atomic_init(&dog->count, 0);
    init_sync(dog);
    int rc = start_thread(dog);
    if (rc != 0) {
        free_dog(dog);
        return qep_fail(QEP_ERR_SYSTEM, "cannot start the watchdog thread: %s", strerror(rc));
    }
    *out = dog;
    return QEP_OK;
}

void qep_watchdog_destroy(struct qep_watchdog *dog) {
    if (dog == NULL)
        return;
    pthread_mutex_lock(&dog->lock);
    dog->stop = true;
    pthread_cond_signal(&dog->wake);
    pthread_mutex_unlock(&dog->lock);
    pthread_join(dog->thread, NULL);
    free_dog(dog);
}

void qep_watchdog_stamp(struct qep_watchdog *dog, const char *phase, int layer, long step) {
    if (dog == NULL)
        return;
    atomic_store_explicit(&dog->phase, phase, memory_order_relaxed);
    atomic_store_explicit(&dog->layer, layer, memory_order_relaxed);
    atomic_store_explicit(&dog->step, step, memory_order_relaxed);
    atomic_store_explicit(&dog->resting, false, memory_order_relaxed);
    atomic_fetch_add_explicit(&dog->count, 1, memory_order_release);
}

void qep_watchdog_rest(struct qep_watchdog *dog) {
    if (dog != NULL)
        atomic_store(&dog->resting, true);
}
