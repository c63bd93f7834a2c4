/* What the transports on device memory share. */
#ifndef QEP_DIST_DEVICE_COMM_INTERNAL_H
#define QEP_DIST_DEVICE_COMM_INTERNAL_H

#include "dist/device_comm.h"

/* For one rank. */
enum qep_status qep_device_comm_self_create(struct qep_comm *comm,
                                            const struct qep_device_memory *memory,
                                            struct qep_device_comm **out);

/* Collective. */
enum qep_status qep_device_comm_staged_create(struct qep_comm *comm,
                                              const struct qep_device_memory *memory,
                                              struct qep_device_comm **out);

/* Collective. QEP_ERR_UNAVAILABLE in a build without NCCL. */
enum qep_status qep_device_comm_nccl_create(struct qep_comm *comm,
                                            const struct qep_device_memory *memory,
                                            double timeout_s, struct qep_device_comm **out);

/* The common part of a zeroed transport. */
void qep_device_comm_init(struct qep_device_comm *dc, const struct qep_device_comm_ops *ops,
                          struct qep_comm *comm, const struct qep_device_memory *memory);

/* The part of an alltoallv that stays on this rank. */
enum qep_status qep_device_copy_self(struct qep_device_comm *dc, const void *send,
                                     const size_t *send_bytes, const size_t *send_offset,
                                     void *recv, const size_t *recv_bytes,
                                     const size_t *recv_offset);

/* An alltoall as an alltoallv; equal: room for [2 * num_ranks]. */
enum qep_status qep_device_equal_alltoall(struct qep_device_comm *dc, size_t *equal,
                                          const void *send, void *recv, size_t bytes);

/* Until the stream is idle or the transport has failed; QEP_ERR_INTERRUPTED after timeout_s
 * (<= 0: never), naming what. */
enum qep_status qep_device_wait_idle(struct qep_device_comm *dc, double timeout_s,
                                     const char *what);

/* Every kind of collective once, over sizes from a few bytes to all of the scratch memory (NCCL
 * picks its algorithms, which connect at first use, by size), ending with an idle stream. */
enum qep_status qep_device_warm_up(struct qep_device_comm *dc, void *scratch, double timeout_s);

/* "GPU-xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx", as drivers print it. */
enum { QEP_DEVICE_UUID_TEXT_BYTES = 41 };
void qep_device_uuid_text(const unsigned char uuid[QEP_DEVICE_UUID_BYTES],
                          char text[QEP_DEVICE_UUID_TEXT_BYTES]);

#endif
