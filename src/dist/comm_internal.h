/* What the transports share. */
#ifndef QEP_DIST_COMM_INTERNAL_H
#define QEP_DIST_COMM_INTERNAL_H

#include "dist/comm.h"

/* The part of an alltoallv that stays on this rank. */
enum qep_status qep_comm_copy_self(const struct qep_comm *comm, const void *send,
                                   const size_t *send_bytes, const size_t *send_offset, void *recv,
                                   const size_t *recv_bytes, const size_t *recv_offset);

/* The two sides of a pair disagree about its size: a bug of the caller. */
enum qep_status qep_comm_size_mismatch(const struct qep_comm *comm, int peer, size_t sent,
                                       size_t expected);

/* Writes out what stdout holds before the process ends; skips it where that would block (another
 * thread holds the stream, or nobody reads the pipe). */
void qep_comm_flush_stdout(void);

static inline void qep_comm_set_waiting_for(struct qep_comm *comm, int rank) {
    __atomic_store_n(&comm->waiting_for, rank, __ATOMIC_RELAXED);
}

#endif
