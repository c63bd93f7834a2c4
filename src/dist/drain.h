/* Being asked to stop: SIGUSR1 (sent by job schedulers before the time limit), SIGTERM, SIGINT, and
 * SIGHUP unless it was ignored before (nohup). The handler removes unfinished outputs
 * (base/temporary.h) and sets a flag; rank 0 carries it in the plan, so that all ranks stop at one
 * token. */
#ifndef QEP_DIST_DRAIN_H
#define QEP_DIST_DRAIN_H

#include "base/status.h"

#include <signal.h>
#include <stdbool.h>

/* Installs the handlers, process-wide. Blocking reads are interrupted (EINTR). A second SIGINT ends
 * the process at once, as without a handler; so does a SIGTERM that comes half a second or more
 * after the first of either. */
enum qep_status qep_drain_install(void);

/* Back to the default actions, for commands that do not look at the flag. */
void qep_drain_uninstall(void);

bool qep_drain_requested(void); /* async-signal-safe */

/* ---- for the other ranks to hear of it: the watchdogs carry it (dist/watchdog.h) ---- */

/* Is this signal left as it `was`? For another handler of the same signals. */
bool qep_drain_is_left(int number, const struct sigaction *was);

/* Another handler's word that the process was asked to stop; a second time that counts as one, it
 * ends by the signal when the handler returns. Async-signal-safe. */
void qep_drain_signalled(int number);

bool qep_drain_was_heard(void); /* by these handlers, or as above */

/* Another rank was asked to stop: as if this process had been, whoever handles that now. Does
 * nothing when it was heard before, and does not count as the first of two. */
void qep_drain_from_peer(void);

#endif
