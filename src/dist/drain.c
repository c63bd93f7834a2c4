#include "dist/drain.h"

#include "base/temporary.h"

#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static const int signals[] = {SIGUSR1, SIGTERM, SIGINT, SIGHUP};
enum { NUM_SIGNALS = sizeof signals / sizeof signals[0] };
static struct sigaction before[NUM_SIGNALS];
static volatile sig_atomic_t requested;
static atomic_bool heard, by_peer;
static atomic_llong asked_ns; /* when a person or launcher first did, 0: not yet */

/* nohup, and what a shell script runs in the background, ignore these on purpose; the others are
 * sent to whom they mean. */
bool qep_drain_is_left(int number, const struct sigaction *was) {
    return (number == SIGHUP || number == SIGINT) && was->sa_handler == SIG_IGN;
}

/* Sooner, it is the same one told twice: timeout(1) signals its child and then its child's group,
 * a launcher hands on what its own group was sent. */
#define SECOND_NS 500000000LL

/* Is this the second time that somebody wants the end? A scheduler's SIGUSR1 only announces one. */
static bool is_second(int number) {
    struct timespec now;
    long long first = 0;
    if ((number != SIGTERM && number != SIGINT) || atomic_exchange(&by_peer, false))
        return false;
    clock_gettime(CLOCK_MONOTONIC, &now);
    long long now_ns = now.tv_sec * 1000000000LL + now.tv_nsec;
    return !atomic_compare_exchange_strong(&asked_ns, &first, now_ns) &&
           now_ns - first >= SECOND_NS;
}

void qep_drain_signalled(int number) {
    if (is_second(number)) {
        signal(number, SIG_DFL);
        raise(number); /* comes when the handler returns */
    }
    atomic_store(&heard, true);
}

static void on_signal(int signal_number) {
    qep_drain_signalled(signal_number);
    requested = 1;
    qep_temporaries_remove(); /* a launcher kills a second later, whatever we wait for */
}

enum qep_status qep_drain_install(void) {
    for (size_t i = 0; i < NUM_SIGNALS; i++) {
        struct sigaction action;
        memset(&action, 0, sizeof action);
        action.sa_handler = on_signal;
        action.sa_flags = signals[i] == SIGINT ? (int)SA_RESETHAND : 0;
        sigemptyset(&action.sa_mask);
        if (sigaction(signals[i], NULL, &before[i]) != 0 ||
            (!qep_drain_is_left(signals[i], &before[i]) &&
             sigaction(signals[i], &action, NULL) != 0))
            return qep_fail(QEP_ERR_SYSTEM, "cannot handle signal %d: %s", signals[i],
                            strerror(errno));
    }
    return QEP_OK;
}

void qep_drain_uninstall(void) {
    for (size_t i = 0; i < NUM_SIGNALS; i++)
        sigaction(signals[i], &before[i], NULL);
    if (requested)
        raise(SIGTERM); /* asked while the handlers stood: as if they never had */
}

bool qep_drain_requested(void) {
    return requested != 0;
}

bool qep_drain_was_heard(void) {
    return atomic_load(&heard);
}

/* A signal of its own, not only the flag: it interrupts what waits, and whatever handles SIGTERM at
 * this moment is asked. */
void qep_drain_from_peer(void) {
    if (atomic_exchange(&heard, true))
        return;
    atomic_store(&by_peer, true);
    kill(getpid(), SIGTERM);
}
