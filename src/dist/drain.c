#include "dist/drain.h"

#include "base/temporary.h"

#include <errno.h>
#include <signal.h>
#include <string.h>

static const int signals[] = {SIGUSR1, SIGTERM, SIGINT, SIGHUP};
static bool left_ignored; /* SIGHUP, by nohup */
static volatile sig_atomic_t requested;

static bool is_left(int signal_number) {
    return signal_number == SIGHUP && left_ignored;
}

static void on_signal(int signal_number) {
    (void)signal_number;
    requested = 1;
    qep_temporaries_remove(); /* a launcher kills a second later, whatever we wait for */
}

enum qep_status qep_drain_install(void) {
    struct sigaction before;
    left_ignored = sigaction(SIGHUP, NULL, &before) == 0 && before.sa_handler == SIG_IGN;
    for (size_t i = 0; i < sizeof signals / sizeof signals[0]; i++) {
        struct sigaction action;
        if (is_left(signals[i]))
            continue;
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
        if (!is_left(signals[i]))
            signal(signals[i], SIG_DFL);
    if (requested)
        raise(SIGTERM); /* asked while the handlers stood: as if they never had */
}

bool qep_drain_requested(void) {
    return requested != 0;
}
