#include "dist/comm_internal.h"

#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum qep_status qep_comm_size_mismatch(const struct qep_comm *comm, int peer, size_t sent,
                                       size_t expected) {
    return qep_fail(QEP_ERR_BUG, "rank %d sent %zu bytes to rank %d, which expected %zu", peer,
                    sent, comm->rank, expected);
}

enum qep_status qep_comm_op_mismatch(const struct qep_comm *comm, int peer, int sent,
                                     int expected) {
    static const char *const names[QEP_COMM_NUM_OPS] = {"alltoallv", "allgather", "bcast"};
    return qep_fail(QEP_ERR_BUG, "rank %d is in another operation (%s %d) than rank %d (%s %d)",
                    peer, names[sent % QEP_COMM_NUM_OPS], sent / QEP_COMM_NUM_OPS, comm->rank,
                    names[expected % QEP_COMM_NUM_OPS], expected / QEP_COMM_NUM_OPS);
}

enum qep_status qep_comm_copy_self(const struct qep_comm *comm, const void *send,
                                   const size_t *send_bytes, const size_t *send_offset, void *recv,
                                   const size_t *recv_bytes, const size_t *recv_offset) {
    int me = comm->rank;
    if (send_bytes[me] != recv_bytes[me])
        return qep_comm_size_mismatch(comm, me, send_bytes[me], recv_bytes[me]);
    if (send_bytes[me] > 0)
        memmove((char *)recv + recv_offset[me], (const char *)send + send_offset[me],
                send_bytes[me]);
    return QEP_OK;
}

void qep_comm_flush_stdout(void) {
    struct pollfd out = {.fd = STDOUT_FILENO, .events = POLLOUT};
    if (ftrylockfile(stdout) != 0)
        return;
    if (poll(&out, 1, 0) == 1 && (out.revents & POLLOUT) != 0)
        fflush_unlocked(stdout);
    funlockfile(stdout);
}
