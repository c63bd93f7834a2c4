/* The transport table: P ranks that exchange bytes. Four implementations: self (P = 1), threads (P
 * ranks in one process), mpi (host memory), nccl (device memory). Collectives are called by all
 * ranks of the comm in the same order; a rank with nothing to say joins with zero bytes. Waiting
 * polls with back-off up to 1 ms, so a waiting rank leaves its core to others. Errors while running
 * are fatal for the job: the implementation reports them through qep_fail and the caller aborts.
 * Ranks that meet in different collectives, or with different sizes, get QEP_ERR_BUG. */
#ifndef QEP_DIST_COMM_H
#define QEP_DIST_COMM_H

#include "base/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct qep_comm;

struct qep_comm_ops {
    const char *name; /* self, threads, mpi, nccl */
    /* Sends send_bytes[p] at send + send_offset[p] to every rank p, receives recv_bytes[p] from p
     * at recv + recv_offset[p]. Both sides know the sizes; pairs of zero bytes exchange no message.
     * send == NULL / recv == NULL are allowed when all their sizes are 0. */
    enum qep_status (*alltoallv)(struct qep_comm *comm, const void *send, const size_t *send_bytes,
                                 const size_t *send_offset, void *recv, const size_t *recv_bytes,
                                 const size_t *recv_offset);
    /* `bytes` from every rank, in rank order, to recv [num_ranks * bytes] on every rank. */
    enum qep_status (*allgather)(struct qep_comm *comm, const void *send, void *recv, size_t bytes);
    /* `bytes` at buf from rank `root` to all. */
    enum qep_status (*bcast)(struct qep_comm *comm, void *buf, size_t bytes, int root);
    /* Ends the whole job with exit code `code`; does not return. */
    void (*abort)(struct qep_comm *comm, int code);
    void (*destroy)(struct qep_comm *comm);
};

struct qep_comm {
    const struct qep_comm_ops *ops;
    int rank;
    int num_ranks;
    int local_rank; /* among the ranks of this host */
    int num_local_ranks;
    bool failure_shared; /* set by qep_comm_agree: all ranks failed together and leave together */
    int waiting_for; /* the rank that this one has been waiting for since long, or -1; the watchdog
                        reads it from its own thread (atomic builtins) */
};

/* P = 1. */
enum qep_status qep_comm_self_create(struct qep_comm **out);

/* num_ranks comms of one process, out[r] for the thread that plays rank r; each is destroyed by its
 * own thread, the shared part goes with the last one. abort ends the process. */
enum qep_status qep_comm_threads_create(int num_ranks, struct qep_comm **out);

/* MPI_COMM_WORLD. Initialises MPI (thread level MULTIPLE); qep_comm_destroy finalises it.
 * QEP_ERR_UNAVAILABLE in a build without MPI. */
enum qep_status qep_comm_mpi_create(struct qep_comm **out);

/* Was this process started by an MPI launcher (mpirun, srun with PMIx)? Looks at the launcher's
 * environment only; starts nothing. */
bool qep_comm_launched_by_mpi(void);

void qep_comm_destroy(struct qep_comm *comm); /* NULL is fine */

/* The start-up agreement: every rank brings its own status (with its qep_last_error). When all are
 * OK, returns QEP_OK. Otherwise every rank returns the status of the lowest failing rank with that
 * rank's message
 * ("rank R: ..." in front when P > 1 and not every rank failed alike), and comm->failure_shared is
 * set. */
enum qep_status qep_comm_agree(struct qep_comm *comm, enum qep_status st);

/* Every rank brings the same-named text; QEP_ERR_USAGE naming rank, what, both texts when one
 * differs from rank 0's. Collective. text is at most 255 bytes. */
enum qep_status qep_comm_same(struct qep_comm *comm, const char *what, const char *text);

/* `bytes` from every rank: *all [num_ranks * bytes] is the caller's (free), NULL on failure.
 * Collective; all ranks fail alike when one has no memory. `what` is for messages. */
enum qep_status qep_comm_gather(struct qep_comm *comm, const void *mine, size_t bytes,
                                const char *what, void **all);

enum qep_status qep_comm_barrier(struct qep_comm *comm);

/* For a rank that fails alone, whose peers would wait for it: removes this process's unfinished
 * outputs (base/temporary.h), writes the error line "rank R: ..." and ends the job with exit code
 * st. Of one process's ranks only the first speaks; the others wait here for the end. */
_Noreturn void qep_comm_give_up(struct qep_comm *comm, enum qep_status st, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

#endif
