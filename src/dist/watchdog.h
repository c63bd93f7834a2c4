/* A thread per rank that ends a job in which nothing moves, and says whose fault it is.
 *
 * The main thread stamps what it is doing; work between stamps counts bytes (base/progress.h). A
 * rank that has neither for the limit asks all others for their state, over notes of the transport
 * (comm.h) that only these threads use. Then
 *   - a rank that does not answer within a grace of 2 s (less for small limits) is named;
 *   - else a rank that is late itself and waits for nobody is named: it is stuck where its stamp
 *     says;
 *   - while any other rank moves, the wait goes on.
 * The lowest rank that answers speaks, one line `qwen-ep: rank R: no progress for N s in PHASE,
 * layer L, step T: rank C ...`, and ends the job (75) by qep_comm_give_up.
 *
 * The thread also carries "asked to stop" (dist/drain.h) from the rank that was asked to the
 * others, with or without a limit. */
#ifndef QEP_DIST_WATCHDOG_H
#define QEP_DIST_WATCHDOG_H

#include "dist/comm.h"

struct qep_watchdog;

#define QEP_WATCHDOG_LIMIT_S 60.0 /* until the user's is known */

/* Every rank of comm (borrowed) has one or none has. limit_s <= 0: never fires. */
enum qep_status qep_watchdog_create(struct qep_comm *comm, double limit_s,
                                    struct qep_watchdog **out);

/* From now on, and counts as progress; all ranks set the same one. NULL dog is fine. */
void qep_watchdog_set_limit(struct qep_watchdog *dog, double limit_s);

/* Joins the thread. Collective: no rank is left asking one that is gone. NULL is fine. */
void qep_watchdog_destroy(struct qep_watchdog *dog);

/* Progress: `phase` must be a string literal; layer / step -1 when they do not apply. NULL dog is
 * fine. */
void qep_watchdog_stamp(struct qep_watchdog *dog, const char *phase, int layer, long step);

/* Rests (an IDLE plan, ranks that are played by other comms) until the next stamp. */
void qep_watchdog_rest(struct qep_watchdog *dog);

#endif
