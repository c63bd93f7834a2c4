/* Collectives on device memory, beside the host transport (comm.h), which stays the control plane:
 * counts, plans and agreements go through it, rows that live on a device go through here.
 *
 *   nccl    enqueued on the stream, no host in between; may be recorded into a graph
 *   staged  any host transport: device -> page-locked memory -> exchange -> device; blocks
 *   self    P = 1: copies on the stream, unless NCCL is asked for
 *
 * Collectives are called by all ranks in the same order. They are ordered with everything else on
 * the stream; where the transport can (nccl, self) they return before they are done. Errors while
 * running are fatal for the job: report, abort through the host comm, and clean nothing up. */
#ifndef QEP_DIST_DEVICE_COMM_H
#define QEP_DIST_DEVICE_COMM_H

#include "dist/comm.h"
#include "dist/messages.h"

enum { QEP_DEVICE_UUID_BYTES = 16 };

/* What a transport needs from the device, so that this directory knows no CUDA type. Copied at
 * create; ctx is borrowed. The thread that calls a transport has the device as its current one.
 * upload and download may return before they are done; their host memory comes from host_alloc and
 * rests until the next sync. */
struct qep_device_memory {
    void *ctx;
    void *stream; /* cudaStream_t */
    unsigned char uuid[QEP_DEVICE_UUID_BYTES];
    enum qep_status (*upload)(void *ctx, void *dev, const void *host, size_t bytes);
    enum qep_status (*download)(void *ctx, void *host, const void *dev, size_t bytes);
    enum qep_status (*copy)(void *ctx, void *dst_dev, const void *src_dev, size_t bytes);
    enum qep_status (*sync)(void *ctx); /* until the stream is idle */
    /* Is the stream idle (cudaStreamQuery)? Does not block. */
    enum qep_status (*query)(void *ctx, bool *idle);
    enum qep_status (*host_alloc)(void *ctx, size_t bytes, void **host); /* page-locked */
    void (*host_free)(void *ctx, void *host);                            /* NULL is fine */
};

struct qep_device_comm;

struct qep_device_comm_ops {
    const char *name; /* nccl, staged, self */
    /* As in comm.h, on device memory; the arrays are host memory, read before the call returns. A
     * pair's two sizes agree. The ranges of send and recv do not overlap. */
    enum qep_status (*alltoallv)(struct qep_device_comm *dc, const void *send,
                                 const size_t *send_bytes, const size_t *send_offset, void *recv,
                                 const size_t *recv_bytes, const size_t *recv_offset);
    /* `bytes` to and from every rank: send, recv [num_ranks * bytes], not overlapping. */
    enum qep_status (*alltoall)(struct qep_device_comm *dc, const void *send, void *recv,
                                size_t bytes);
    /* `bytes` from every rank, in rank order, to recv [num_ranks * bytes]; send may be its own
     * place there. */
    enum qep_status (*allgather)(struct qep_device_comm *dc, const void *send, void *recv,
                                 size_t bytes);
    /* Collective, before the first capture: every kind of collective once, so that connections and
     * buffers exist. scratch: device memory of QEP_DEVICE_WARM_UP_BYTES * num_ranks bytes,
     * initialised, whose contents are lost. Waits until it is done. (NCCL itself may block on a
     * peer here: keep the watchdog awake.) */
    enum qep_status (*warm_up)(struct qep_device_comm *dc, void *scratch);
    /* Has the transport failed meanwhile? Does not block. */
    enum qep_status (*poll_errors)(struct qep_device_comm *dc);
    /* Until the stream is idle, looking for errors of the transport meanwhile, with back-off
     * (backoff.h); this is how a device backend waits while collectives are under way. A peer that
     * only hangs is the watchdog's to find. */
    enum qep_status (*wait)(struct qep_device_comm *dc);
    /* Orderly end only; all ranks come here with an idle stream. */
    void (*destroy)(struct qep_device_comm *dc);
};

enum { QEP_DEVICE_WARM_UP_BYTES = 1 << 20 };

struct qep_device_comm {
    const struct qep_device_comm_ops *ops;
    struct qep_comm *comm; /* borrowed */
    struct qep_device_memory memory;
    struct qep_messages moves; /* of qep_device_move */
    int spins;                 /* polls before a waiting thread gives its core away (backoff.h) */
    bool capturable;           /* collectives may be recorded into a graph (after warm_up) */
    char detail[160];          /* for summaries: "NCCL 2.28.9", or why NCCL was not chosen */
};

enum qep_device_transport {
    QEP_DEVICE_TRANSPORT_AUTO, /* nccl where every rank has it and a GPU of its own, else staged */
    QEP_DEVICE_TRANSPORT_STAGED,
    QEP_DEVICE_TRANSPORT_NCCL,
};

/* Collective over comm; `memory` is copied. With one rank: self, unless NCCL was asked for by name.
 * timeout_s: until when all ranks must have joined (<= 0: no limit). All ranks return the same
 * status: QEP_ERR_UNAVAILABLE for what NCCL or the build refuses, QEP_ERR_INTERRUPTED when a rank
 * does not join in time. A rank that is gone altogether is the watchdog's: keep it awake. */
enum qep_status qep_device_comm_create(struct qep_comm *comm,
                                       const struct qep_device_memory *memory,
                                       enum qep_device_transport transport, double timeout_s,
                                       struct qep_device_comm **out);
void qep_device_comm_destroy(struct qep_device_comm *dc); /* NULL is fine */

/* Until query(ctx) says done, looking for errors of the transport meanwhile, with back-off, as
 * ops->wait does for the whole stream. */
enum qep_status qep_device_wait_until(struct qep_device_comm *dc,
                                      enum qep_status (*query)(void *ctx, bool *done), void *ctx);

/* Collective: the alltoallv of these messages. */
enum qep_status qep_device_send(struct qep_device_comm *dc, const struct qep_messages *messages,
                                const void *send, void *recv);

/* Collective: `bytes` from rank `from` (there at send) to rank `to` or QEP_EVERY_RANK (there at
 * recv). */
enum qep_status qep_device_move(struct qep_device_comm *dc, int from, int to, const void *send,
                                void *recv, size_t bytes);

/* Collective: do two ranks use one device? *first < *second are the lowest such pair, or -1. */
enum qep_status qep_device_duplicates(struct qep_comm *comm,
                                      const unsigned char uuid[QEP_DEVICE_UUID_BYTES], int *first,
                                      int *second);

/* Can this process load NCCL? QEP_ERR_UNAVAILABLE saying why not. */
enum qep_status qep_nccl_load(void);

#endif
