/* Step plans on the wire: one broadcast of a fixed size that holds small plans whole, a second one
 * for the rest. */
#ifndef QEP_ENGINE_WIRE_H
#define QEP_ENGINE_WIRE_H

#include "dist/comm.h"
#include "model/plan.h"

/* Collective: rank 0's plan to all; on other ranks *plan is overwritten. */
enum qep_status qep_wire_broadcast(struct qep_comm *comm, struct qep_plan *plan);

#endif
