/* Ranks as threads, each with a host transport, a device and a transport on its memory; what every
 * such transport must do. */
#ifndef QEP_TESTS_DEVICE_COMM_SUPPORT_H
#define QEP_TESTS_DEVICE_COMM_SUPPORT_H

#include "dist/device_comm.h"

enum { MAX_TEST_RANKS = 8 };

/* A kind of device. open: for the thread of this rank; the callbacks and uuid of *memory. */
struct test_device {
    void (*open)(int rank, struct qep_device_memory *memory);
    void (*close)(struct qep_device_memory *memory);
    void *(*alloc)(struct qep_device_memory *memory, size_t bytes);
    void (*free)(struct qep_device_memory *memory, void *dev);
    /* These two block. */
    void (*put)(struct qep_device_memory *memory, void *dev, const void *host, size_t bytes);
    void (*get)(struct qep_device_memory *memory, void *host, const void *dev, size_t bytes);
};

/* Plain memory; transfers run as late as they may: at a sync, or one by one when the stream is
 * asked about. Stands for a device of its own in every rank. */
extern const struct test_device plain_device;

struct rank_arg {
    struct qep_comm *comm;
    const struct test_device *device;
    struct qep_device_memory memory;
    enum qep_device_transport transport;
    struct qep_device_comm *dc; /* created before the body where `create` was said */
    void (*body)(struct rank_arg *arg);
    const char *failure; /* NULL: fine */
};

#define RANK_CHECK(cond)                                                                           \
    do {                                                                                           \
        if (!(cond)) {                                                                             \
            arg->failure = #cond;                                                                  \
            return;                                                                                \
        }                                                                                          \
    } while (0)

/* Runs body on num_ranks threads. create: with a transport in arg->dc, destroyed afterwards. */
void run_ranks(int num_ranks, const struct test_device *device, enum qep_device_transport transport,
               bool create, void (*body)(struct rank_arg *arg));

/* Device memory of `bytes` that holds the bytes of host. */
void *put_bytes(struct rank_arg *arg, const void *host, size_t bytes);

/* Bodies: every collective moves what the host transport moves. */
void alltoallv_body(struct rank_arg *arg);
void nothing_body(struct rank_arg *arg);
void allgather_body(struct rank_arg *arg);
void alltoall_body(struct rank_arg *arg);
/* Collectives one after the other, each on what the one before received, with no wait between. */
void chain_body(struct rank_arg *arg);
void move_body(struct rank_arg *arg);
void warm_up_body(struct rank_arg *arg);

#endif
