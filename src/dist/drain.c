#include "dist/drain.h"

#include <errno.h>
#include <signal.h>
#include <string.h>

static const int signals[] = {SIGUSR1, SIGTERM, SIGINT};
static volatile sig_atomic_t requested;

static void on_signal(int signal_number) {
    (void)signal_number;
    requested = 1;
}

enum qep_status qep_drain_install(void) {
    for (size_t i = 0; i < sizeof signals / sizeof signals[0]; i++) {
        struct sigaction action;
        memset(&action, 0, sizeof action);
        action.sa_handler = on_signal;
        action.sa_flags = signals[i] == SIGINT ? (int)SA_RESETHAND : 0;
        sigemptyset(&action.sa_mask);
        if (sigaction(signals[i], &action, NULL) != 0)
            return qep_fail(QEP_ERR_SYSTEM, "cannot handle signal %d: %s", signals[i],
                            strerror(errno));
    }
    return QEP_OK;
}

void qep_drain_uninstall(void) {
    for (size_t i = 0; i < sizeof signals / sizeof signals[0]; i++)
        signal(signals[i], SIG_DFL);
    if (requested)
        raise(SIGTERM); /* asked while the handlers stood: as if they never had */
}

bool qep_drain_requested(void) {
    return requested != 0;
}
