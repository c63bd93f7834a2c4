/* Device memory over NCCL. One nonblocking communicator a rank: a call that has to wait for its
 * peers says so (ncclInProgress) and is polled with a deadline, so that a rank that does not join
 * becomes a message. The library is loaded at run time: a process that does not ask for it needs
 * none.
 *
 * After an error nothing is cleaned up: ncclCommAbort may hang when peers are gone, and the job
 * ends anyway. */
#include "dist/device_comm_internal.h"

#ifndef QEP_HAVE_NCCL

enum qep_status qep_nccl_load(void) {
    return qep_fail(QEP_ERR_UNAVAILABLE, "this build has no NCCL");
}

enum qep_status qep_device_comm_nccl_create(struct qep_comm *comm,
                                            const struct qep_device_memory *memory,
                                            double timeout_s, struct qep_device_comm **out) {
    (void)comm, (void)memory, (void)timeout_s;
    *out = (struct qep_device_comm *)0;
    return qep_nccl_load();
}

#else

#include "base/mem.h"
#include "dist/backoff.h"

#ifdef QEP_CUDA_EMU
#include "cuda_emu/nccl.h"
#else
#include <nccl.h>
#endif

#include <dlfcn.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MIN_VERSION = 21400 }; /* nonblocking communicators */

typedef ncclResult_t (*alltoall_fn)(const void *send, void *recv, size_t count, ncclDataType_t type,
                                    ncclComm_t comm, cudaStream_t stream);

/* What is called of the library; types are those of the header. */
#define API_LIST(X)                                                                                \
    X(GetVersion)                                                                                  \
    X(GetUniqueId)                                                                                 \
    X(CommInitRankConfig)                                                                          \
    X(CommFinalize)                                                                                \
    X(CommDestroy)                                                                                 \
    X(CommGetAsyncError)                                                                           \
    X(GetErrorString)                                                                              \
    X(GetLastError)                                                                                \
    X(AllGather)                                                                                   \
    X(Send)                                                                                        \
    X(Recv)                                                                                        \
    X(GroupStart)                                                                                  \
    X(GroupEnd)

#define API_MEMBER(name) __typeof__(nccl##name) *name;
static struct {
    API_LIST(API_MEMBER)
    alltoall_fn AlltoAll; /* NULL before 2.28 */
    char why_not[320];    /* "" when loaded */
} api;
#undef API_MEMBER

struct nccl_comm {
    struct qep_device_comm base;
    struct nccl_comm *next_abandoned;
    ncclComm_t nccl;
    double timeout_s;
    size_t *equal; /* [2 * num_ranks] for qep_device_equal_alltoall */
};

static bool find_symbol(void *library, const char *name, void *fn) {
    void *symbol = dlsym(library, name);
    memcpy(fn, &symbol, sizeof symbol); /* ISO C has no cast from void * to a function */
    return symbol != NULL;
}

static void find_symbols(void *library) {
#define API_FIND(name)                                                                             \
    if (api.why_not[0] == '\0' && !find_symbol(library, "nccl" #name, &api.name))                  \
        snprintf(api.why_not, sizeof api.why_not, "libnccl.so.2 has no nccl" #name);
    API_LIST(API_FIND)
#undef API_FIND
    find_symbol(library, "ncclAlltoAll", &api.AlltoAll);
}

static void check_version(void) {
    int code = 0;
    ncclResult_t r = api.GetVersion(&code);
    if (r != ncclSuccess)
        snprintf(api.why_not, sizeof api.why_not, "ncclGetVersion failed: %s",
                 api.GetErrorString(r));
    else if (code < MIN_VERSION)
        snprintf(api.why_not, sizeof api.why_not, "NCCL is too old: code %d, at least 2.14 needed",
                 code);
}

static void load(void) {
    void *library = RTLD_DEFAULT; /* linked in, as tests do */
    if (dlsym(RTLD_DEFAULT, "ncclGetVersion") == NULL) {
        library = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
        if (library == NULL) {
            const char *error = dlerror();
            snprintf(api.why_not, sizeof api.why_not, "cannot load NCCL: %s",
                     error != NULL ? error : "libnccl.so.2");
            return;
        }
    }
    find_symbols(library);
    if (api.why_not[0] == '\0')
        check_version();
}

enum qep_status qep_nccl_load(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, load);
    if (api.why_not[0] != '\0')
        return qep_fail(QEP_ERR_UNAVAILABLE, "%s", api.why_not);
    return QEP_OK;
}

static enum qep_status fail_call(const struct nccl_comm *nc, const char *call, ncclResult_t r) {
    const char *last = api.GetLastError(nc->nccl);
    return qep_fail(QEP_ERR_UNAVAILABLE, "%s failed: %s%s%s", call, api.GetErrorString(r),
                    last != NULL && last[0] != '\0' ? ": " : "", last != NULL ? last : "");
}

/* The end of every call: `r` is what it returned. Until it is no longer under way; work enqueued
 * on the stream before that could overtake it. */
static enum qep_status settle(struct nccl_comm *nc, const char *call, ncclResult_t r) {
    struct qep_backoff backoff;
    ncclResult_t async = ncclInProgress;
    if (r != ncclSuccess && r != ncclInProgress)
        return fail_call(nc, call, r);
    qep_backoff_init(&backoff, nc->base.spins);
    for (;;) {
        r = api.CommGetAsyncError(nc->nccl, &async);
        if (r != ncclSuccess)
            return fail_call(nc, "ncclCommGetAsyncError", r);
        if (async == ncclSuccess)
            return QEP_OK;
        if (async != ncclInProgress)
            return fail_call(nc, call, async);
        if (nc->timeout_s > 0.0 && backoff.waited_s > nc->timeout_s)
            return qep_fail(QEP_ERR_INTERRUPTED, "no progress for %g s in %s: not all ranks joined",
                            nc->timeout_s, call);
        qep_backoff_wait(&backoff);
    }
}

static cudaStream_t stream_of(const struct nccl_comm *nc) {
    return (cudaStream_t)nc->base.memory.stream;
}

/* One group: everything to and from other ranks together, zero pairs left out. */
static enum qep_status exchange(struct nccl_comm *nc, const char *send, const size_t *send_bytes,
                                const size_t *send_offset, char *recv, const size_t *recv_bytes,
                                const size_t *recv_offset) {
    int num_ranks = nc->base.comm->num_ranks, me = nc->base.comm->rank;
    const char *call = "ncclGroupStart";
    ncclResult_t r = api.GroupStart();
    for (int i = 1; r == ncclSuccess && i < num_ranks; i++) {
        int to = (me + i) % num_ranks, from = (me + num_ranks - i) % num_ranks;
        if (send_bytes[to] > 0) {
            call = "ncclSend";
            r = api.Send(send + send_offset[to], send_bytes[to], ncclUint8, to, nc->nccl,
                         stream_of(nc));
        }
        if ((r == ncclSuccess || r == ncclInProgress) && recv_bytes[from] > 0) {
            call = "ncclRecv";
            r = api.Recv(recv + recv_offset[from], recv_bytes[from], ncclUint8, from, nc->nccl,
                         stream_of(nc));
        }
        if (r == ncclInProgress)
            r = ncclSuccess; /* the group's end tells */
    }
    if (r != ncclSuccess)
        return fail_call(nc, call, r);
    return settle(nc, "the exchange (ncclGroupEnd)", api.GroupEnd());
}

static bool any_remote(const struct qep_comm *comm, const size_t *send_bytes,
                       const size_t *recv_bytes) {
    for (int p = 0; p < comm->num_ranks; p++)
        if (p != comm->rank && (send_bytes[p] > 0 || recv_bytes[p] > 0))
            return true;
    return false;
}

static enum qep_status nccl_alltoallv(struct qep_device_comm *dc, const void *send,
                                      const size_t *send_bytes, const size_t *send_offset,
                                      void *recv, const size_t *recv_bytes,
                                      const size_t *recv_offset) {
    QEP_TRY(qep_device_copy_self(dc, send, send_bytes, send_offset, recv, recv_bytes, recv_offset));
    if (!any_remote(dc->comm, send_bytes, recv_bytes))
        return QEP_OK;
    return exchange((struct nccl_comm *)dc, send, send_bytes, send_offset, recv, recv_bytes,
                    recv_offset);
}

static enum qep_status nccl_alltoall(struct qep_device_comm *dc, const void *send, void *recv,
                                     size_t bytes) {
    struct nccl_comm *nc = (struct nccl_comm *)dc;
    if (bytes == 0)
        return QEP_OK;
    if (api.AlltoAll == NULL)
        return qep_device_equal_alltoall(dc, nc->equal, send, recv, bytes);
    return settle(nc, "ncclAlltoAll",
                  api.AlltoAll(send, recv, bytes, ncclUint8, nc->nccl, stream_of(nc)));
}

static enum qep_status nccl_allgather(struct qep_device_comm *dc, const void *send, void *recv,
                                      size_t bytes) {
    struct nccl_comm *nc = (struct nccl_comm *)dc;
    if (bytes == 0)
        return QEP_OK;
    return settle(nc, "ncclAllGather",
                  api.AllGather(send, recv, bytes, ncclUint8, nc->nccl, stream_of(nc)));
}

static enum qep_status nccl_warm_up(struct qep_device_comm *dc, void *scratch) {
    return qep_device_warm_up(dc, scratch, ((struct nccl_comm *)dc)->timeout_s);
}

static enum qep_status nccl_poll_errors(struct qep_device_comm *dc) {
    struct nccl_comm *nc = (struct nccl_comm *)dc;
    ncclResult_t async = ncclSuccess;
    ncclResult_t r = api.CommGetAsyncError(nc->nccl, &async);
    if (r != ncclSuccess)
        return fail_call(nc, "ncclCommGetAsyncError", r);
    if (async != ncclSuccess && async != ncclInProgress)
        return fail_call(nc, "an exchange between devices", async);
    return QEP_OK;
}

static enum qep_status nccl_wait(struct qep_device_comm *dc) {
    return qep_device_wait_idle(dc, 0.0, "");
}

/* A communicator that does not come to rest is left as it is: the process ends soon. */
static void nccl_destroy(struct qep_device_comm *dc) {
    struct nccl_comm *nc = (struct nccl_comm *)dc;
    if (settle(nc, "ncclCommFinalize", api.CommFinalize(nc->nccl)) == QEP_OK)
        api.CommDestroy(nc->nccl);
    free(nc->equal);
    free(nc);
}

/* Names two ranks of one GPU before NCCL does so less clearly. */
static enum qep_status check_duplicates(struct qep_comm *comm,
                                        const struct qep_device_memory *memory) {
    char text[QEP_DEVICE_UUID_TEXT_BYTES];
    int first, second;
    QEP_TRY(qep_device_duplicates(comm, memory->uuid, &first, &second));
    if (first < 0)
        return QEP_OK;
    if (comm->rank == first)
        qep_device_uuid_text(memory->uuid, text);
    QEP_TRY(comm->ops->bcast(comm, text, sizeof text, first));
    return qep_fail(QEP_ERR_UNAVAILABLE,
                    "ranks %d and %d share one GPU (%s), which NCCL refuses: give every rank a GPU "
                    "of its own, or exchange through host memory",
                    first, second, text);
}

/* The same library everywhere: mixed versions do not speak with each other. */
static enum qep_status check_libraries(struct qep_comm *comm, char *version, size_t version_bytes) {
    int code = 0;
    QEP_TRY(qep_comm_agree(comm, qep_nccl_load()));
    ncclResult_t r = api.GetVersion(&code);
    if (r == ncclSuccess)
        snprintf(version, version_bytes, "%d.%d.%d", code / 10000, code / 100 % 100, code % 100);
    else
        snprintf(version, version_bytes, "unknown (%s)", api.GetErrorString(r));
    return qep_comm_same(comm, "NCCL version", version);
}

static enum qep_status share_id(struct qep_comm *comm, ncclUniqueId *id) {
    enum qep_status st = QEP_OK;
    memset(id, 0, sizeof *id);
    if (comm->rank == 0) {
        ncclResult_t r = api.GetUniqueId(id);
        if (r != ncclSuccess)
            st = qep_fail(QEP_ERR_UNAVAILABLE, "ncclGetUniqueId failed: %s: %s",
                          api.GetErrorString(r), api.GetLastError(NULL));
    }
    QEP_TRY(qep_comm_agree(comm, st));
    return comm->ops->bcast(comm, id, sizeof *id, 0);
}

static enum qep_status join(struct nccl_comm *nc, ncclUniqueId id) {
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    const struct qep_comm *comm = nc->base.comm;
    config.blocking = 0;
    ncclResult_t r = api.CommInitRankConfig(&nc->nccl, comm->num_ranks, id, comm->rank, &config);
    return settle(nc, "ncclCommInitRankConfig", r);
}

/* All ranks come here, each by its own deadline at the latest. A rank that knows a reason speaks
 * before those that only waited in vain. */
static enum qep_status agree_on_cause(struct qep_comm *comm, enum qep_status st) {
    unsigned char mine = st != QEP_OK && st != QEP_ERR_INTERRUPTED, *all = NULL;
    bool known = false;
    QEP_TRY(qep_comm_gather(comm, &mine, 1, "agreement of the ranks", (void **)&all));
    for (int r = 0; r < comm->num_ranks; r++)
        known = known || all[r] != 0;
    free(all);
    return qep_comm_agree(comm, known && mine == 0 ? QEP_OK : st);
}

static enum qep_status create(struct nccl_comm *nc) {
    struct qep_comm *comm = nc->base.comm;
    char version[64];
    ncclUniqueId id;
    QEP_TRY(check_libraries(comm, version, sizeof version));
    snprintf(nc->base.detail, sizeof nc->base.detail, "NCCL %s", version);
    QEP_TRY(qep_comm_agree(comm, check_duplicates(comm, &nc->base.memory)));
    QEP_TRY(share_id(comm, &id));
    return agree_on_cause(comm, join(nc, id));
}

/* Threads of NCCL may still write to a communicator that did not come up, and to where it is kept:
 * it stays, reachable. */
static void abandon(struct nccl_comm *nc) {
    static _Atomic(struct nccl_comm *) first;
    nc->next_abandoned = atomic_exchange(&first, nc);
}

enum qep_status qep_device_comm_nccl_create(struct qep_comm *comm,
                                            const struct qep_device_memory *memory,
                                            double timeout_s, struct qep_device_comm **out) {
    static const struct qep_device_comm_ops ops = {
        .name = "nccl",
        .alltoallv = nccl_alltoallv,
        .alltoall = nccl_alltoall,
        .allgather = nccl_allgather,
        .warm_up = nccl_warm_up,
        .poll_errors = nccl_poll_errors,
        .wait = nccl_wait,
        .destroy = nccl_destroy,
    };
    struct nccl_comm *nc = NULL;
    size_t *equal = NULL;
    *out = NULL;
    enum qep_status st = qep_calloc(1, sizeof *nc, "transport", (void **)&nc);
    if (st == QEP_OK)
        st = qep_alloc(2 * (size_t)comm->num_ranks, sizeof *equal, "transport", (void **)&equal);
    st = qep_comm_agree(comm, st);
    if (st == QEP_OK) {
        qep_device_comm_init(&nc->base, &ops, comm, memory);
        nc->base.capturable = true;
        nc->timeout_s = timeout_s;
        nc->equal = equal;
        st = create(nc);
    }
    if (st == QEP_OK) {
        *out = &nc->base;
        return QEP_OK;
    }
    if (nc != NULL && nc->nccl != NULL) {
        abandon(nc);
    } else {
        free(equal);
        free(nc);
    }
    return st;
}

#endif
