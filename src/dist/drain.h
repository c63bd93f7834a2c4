/* Being asked to stop: SIGUSR1 (sent by job schedulers before the time limit), SIGTERM, SIGINT, and
 * SIGHUP unless it was ignored before (nohup). The handler removes unfinished outputs
 * (base/temporary.h) and sets a flag; rank 0 carries it in the plan, so that all ranks stop at one
 * token. */
#ifndef QEP_DIST_DRAIN_H
#define QEP_DIST_DRAIN_H

#include "base/status.h"

#include <stdbool.h>

/* Installs the handlers, process-wide. Blocking reads are interrupted (EINTR). A second SIGINT ends
 * the process at once, as without a handler. */
enum qep_status qep_drain_install(void);

/* Back to the default actions, for commands that do not look at the flag. */
void qep_drain_uninstall(void);

bool qep_drain_requested(void); /* async-signal-safe */

#endif
