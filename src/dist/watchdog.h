/* A thread per rank that ends the job when no progress is made. The main thread stamps what it is
 * doing; the watchdog fires when the stamp has not moved for timeout_s seconds: one line `qwen-ep:
 * rank R: no progress for N s in PHASE, layer L, step T`, and the job's end (75), by
 * qep_comm_give_up. */
#ifndef QEP_DIST_WATCHDOG_H
#define QEP_DIST_WATCHDOG_H

#include "dist/comm.h"

struct qep_watchdog;

/* timeout_s <= 0: no thread, stamps are free. */
enum qep_status qep_watchdog_create(struct qep_comm *comm, double timeout_s,
                                    struct qep_watchdog **out);
void qep_watchdog_destroy(struct qep_watchdog *dog); /* joins the thread; NULL is fine */

/* Progress: `phase` must be a string literal; layer / step -1 when they do not apply. NULL dog is
 * fine. */
void qep_watchdog_stamp(struct qep_watchdog *dog, const char *phase, int layer, long step);

/* Rests (waiting for stdin, an IDLE plan, loading weights) until the next stamp. */
void qep_watchdog_rest(struct qep_watchdog *dog);

#endif
