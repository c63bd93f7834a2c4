/* The thread of a rank: looks a few times a second whether the rank moves, answers its peers, and
 * asks them when it does not move. */
#include "dist/watchdog.h"

#include "base/clock.h"
#include "base/mem.h"
#include "base/progress.h"
#include "dist/watchdog_internal.h"

#include <errno.h>
#include <float.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Waits a period; true when the dog is to stop. */
static bool wait_period(struct qep_watchdog *dog) {
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    double ns = (double)until.tv_nsec + dog->limits.period_s * 1e9;
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

/* Seconds since the last look, at most two periods: a process that was stopped and goes on (job
 * suspension, a debugger) has lost no time. */
static double step_of(struct qep_watchdog *dog) {
    double now_s = qep_now_s(), step_s = now_s - dog->last_s;
    dog->last_s = now_s;
    return step_s < 2.0 * dog->limits.period_s ? step_s : 2.0 * dog->limits.period_s;
}

static void take_limit(struct qep_watchdog *dog) {
    double limit_s = atomic_load(&dog->limit_s);
    if (limit_s != dog->limits.limit_s)
        dog->limits = qep_dog_limits(limit_s);
}

static void describe_self(struct qep_watchdog *dog) {
    struct dog_state *me = &dog->peers[dog->comm->rank].state;
    snprintf(me->phase, sizeof me->phase, "%s", atomic_load(&dog->phase));
    me->layer = atomic_load(&dog->layer);
    me->step = atomic_load(&dog->step);
    me->waiting_for = __atomic_load_n(&dog->comm->waiting_for, __ATOMIC_RELAXED);
    me->age_s = dog->still_s;
}

static bool has_moved(struct qep_watchdog *dog) {
    uint64_t count = atomic_load(&dog->count) + qep_progress_count();
    bool moved = count != dog->seen || atomic_load(&dog->resting) || qep_is_outside();
    dog->seen = count;
    return moved;
}

static void count_time(struct qep_watchdog *dog, double step_s) {
    dog->still_s += step_s;
    if (dog->handed_s >= 0.0)
        dog->handed_s += step_s;
    if (dog->ended_s >= 0.0)
        dog->ended_s += step_s;
    if (has_moved(dog)) {
        dog->still_s = 0.0;
        dog->ask_at_s = 0.0; /* as soon as it is late */
        dog->handed_s = -1.0;
    }
    for (int p = 0; p < dog->comm->num_ranks; p++)
        if (dog->peers[p].asked)
            dog->peers[p].silent_s += step_s;
}

static void new_question(struct qep_watchdog *dog) {
    dog->question++;
    for (int p = 0; p < dog->comm->num_ranks; p++)
        dog->peers[p].fresh = p == dog->comm->rank;
    dog->ask_at_s = DBL_MAX;
}

/* This rank is late. */
static void inquire(struct qep_watchdog *dog) {
    struct dog_finding finding;
    if (dog->ask_at_s < DBL_MAX)
        new_question(dog);
    qep_dog_ask(dog);
    qep_dog_judge(dog->peers, dog->comm->num_ranks, dog->comm->rank, &dog->limits, &finding);
    if (finding.verdict == DOG_MOVING) {
        double again_s = finding.again_s;
        dog->ask_at_s =
            dog->still_s + (again_s > dog->limits.period_s ? again_s : dog->limits.period_s);
    } else if (finding.verdict != DOG_UNKNOWN) {
        qep_dog_speak(dog, &finding);
    }
}

static bool is_late(const struct qep_watchdog *dog) {
    if (!(dog->limits.limit_s > 0.0) || dog->still_s < dog->limits.late_s)
        return false;
    return dog->ask_at_s == DBL_MAX || dog->still_s >= dog->ask_at_s;
}

static void *watch(void *arg) {
    struct qep_watchdog *dog = arg;
    while (!wait_period(dog)) {
        take_limit(dog);
        count_time(dog, step_of(dog));
        describe_self(dog);
        qep_dog_read_notes(dog);
        qep_dog_carry(dog);
        if (is_late(dog))
            inquire(dog);
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
    free(dog->peers);
    free(dog);
}

static void init_state(struct qep_watchdog *dog, struct qep_comm *comm, double limit_s) {
    dog->comm = comm;
    dog->limits = qep_dog_limits(limit_s);
    dog->last_s = qep_now_s();
    dog->handed_s = -1.0;
    dog->ended_s = -1.0;
    atomic_init(&dog->limit_s, limit_s);
    atomic_init(&dog->phase, "start");
    atomic_init(&dog->layer, -1);
    atomic_init(&dog->step, -1);
    atomic_init(&dog->resting, false);
    atomic_init(&dog->count, 0);
    dog->peers[comm->rank].fresh = true;
}

enum qep_status qep_watchdog_create(struct qep_comm *comm, double limit_s,
                                    struct qep_watchdog **out) {
    struct qep_watchdog *dog = NULL;
    *out = NULL;
    QEP_TRY(qep_calloc(1, sizeof *dog, "watchdog", (void **)&dog));
    enum qep_status st =
        qep_calloc((size_t)comm->num_ranks, sizeof *dog->peers, "watchdog", (void **)&dog->peers);
    if (st != QEP_OK) {
        free(dog);
        return st;
    }
    init_state(dog, comm, limit_s);
    init_sync(dog);
    int rc = start_thread(dog);
    if (rc != 0) {
        free_dog(dog);
        return qep_fail(QEP_ERR_SYSTEM, "cannot start the watchdog thread: %s", strerror(rc));
    }
    *out = dog;
    return QEP_OK;
}

void qep_watchdog_set_limit(struct qep_watchdog *dog, double limit_s) {
    if (dog == NULL)
        return;
    atomic_store(&dog->limit_s, limit_s);
    atomic_fetch_add(&dog->count, 1);
}

/* The barrier comes first: until the slowest rank is here it is watched as ever. */
void qep_watchdog_destroy(struct qep_watchdog *dog) {
    if (dog == NULL)
        return;
    qep_watchdog_stamp(dog, "end", -1, -1);
    qep_comm_barrier(dog->comm);
    pthread_mutex_lock(&dog->lock);
    dog->stop = true;
    pthread_cond_signal(&dog->wake);
    pthread_mutex_unlock(&dog->lock);
    pthread_join(dog->thread, NULL);
    qep_dog_part(dog);
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
