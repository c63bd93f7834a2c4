#include "dist/drain.h"

#include "base/temporary.h"

#include <errno.h>
#include <signal.h>
#include <string.h>

static const int signals[] = {SIGUSR1, SIGTERM, SIGINT, SIGHUP};
enum { NUM_SIGNALS = sizeof signals / sizeof signals[0] };
static struct sigaction before[NUM_SIGNALS];
static volatile sig_atomic_t requested;

/* nohup, and what a shell script runs in the background, ignore these on purpose; the others are
 * sent to whom they mean. */
static bool is_left(size_t i) {
    return (signals[i] == SIGHUP || signals[i] == SIGINT) && before[i].sa_handler == SIG_IGN;
}

static void on_signal(int signal_number) {
    (void)signal_number;
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
            (!is_left(i) && sigaction(signals[i], &action, NULL) != 0))
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
