/* What the transports share. */
#ifndef QEP_DIST_COMM_INTERNAL_H
#define QEP_DIST_COMM_INTERNAL_H

#include "dist/comm.h"

enum qep_comm_op { QEP_COMM_ALLTOALLV, QEP_COMM_ALLGATHER, QEP_COMM_BCAST, QEP_COMM_NUM_OPS };

/* Which operation of a rank a message belongs to: kind and running number, as all ranks count
 * alike. Below the 32767 that tags of MPI reach everywhere. */
static inline int qep_comm_op_tag(enum qep_comm_op op, unsigned long number) {
    return (int)op + (int)QEP_COMM_NUM_OPS * (int)(number % 8192);
}

/* The part of an alltoallv that stays on this rank. */
enum qep_status qep_comm_copy_self(const struct qep_comm *comm, const void *send,
                                   const size_t *send_bytes, const size_t *send_offset, void *recv,
                                   const size_t *recv_bytes, const size_t *recv_offset);

/* The two sides of a pair disagree about its size: a bug of the caller. */
enum qep_status qep_comm_size_mismatch(const struct qep_comm *comm, int peer, size_t sent,
                                       size_t expected);

/* `peer` sent a message of another operation (tags) than the one this rank is in, which could be
 * taken for something that it is not: a bug of the callers. */
enum qep_status qep_comm_op_mismatch(const struct qep_comm *comm, int peer, int sent, int expected);

/* Writes out what stdout holds before the process ends; skips it where that would block (another
 * thread holds the stream, or nobody reads the pipe). */
void qep_comm_flush_stdout(void);

static inline void qep_comm_set_waiting_for(struct qep_comm *comm, int rank) {
    __atomic_store_n(&comm->waiting_for, rank, __ATOMIC_RELAXED);
}

#endif
