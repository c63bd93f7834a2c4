/* The messages of one exchange between all ranks, as alltoallv takes them. */
#ifndef QEP_DIST_MESSAGES_H
#define QEP_DIST_MESSAGES_H

#include "base/status.h"

#include <stdbool.h>
#include <stddef.h>

struct qep_messages {
    int num_ranks;
    size_t *send_bytes, *send_offset; /* [num_ranks] to every rank; all four in one block */
    size_t *recv_bytes, *recv_offset; /* [num_ranks] from every rank */
};

enum { QEP_EVERY_RANK = -1 };

enum qep_status qep_messages_create(int num_ranks, struct qep_messages *out);
void qep_messages_free(struct qep_messages *messages); /* zeroed is fine */

/* No bytes to and from anybody, all offsets 0. */
void qep_messages_clear(struct qep_messages *messages);

/* Only `bytes` from rank `from` to rank `to`, or from it to every rank (itself included). `me`: the
 * calling rank. */
void qep_messages_one(struct qep_messages *messages, int me, int from, int to, size_t bytes);

/* What is sent and what is received lies in order of ranks, without gaps; returns the bytes
 * received. */
size_t qep_messages_lay_out(struct qep_messages *messages);

/* As many bytes, and not none, to and from every rank? */
bool qep_messages_are_equal(const struct qep_messages *messages);

#endif
