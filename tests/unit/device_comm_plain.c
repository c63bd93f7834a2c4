#include "device_comm_support.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_QUEUED = 4096 };

struct transfer {
    void *dst;
    const void *src;
    size_t bytes;
};

struct plain {
    struct transfer queue[MAX_QUEUED];
    int head, tail;
    long num_host_blocks;
};

static void run_one(struct plain *d) {
    struct transfer *t = &d->queue[d->head++];
    memmove(t->dst, t->src, t->bytes);
}

static enum qep_status plain_sync(void *ctx) {
    struct plain *d = ctx;
    while (d->head < d->tail)
        run_one(d);
    d->head = d->tail = 0;
    return QEP_OK;
}

static enum qep_status plain_query(void *ctx, bool *idle) {
    struct plain *d = ctx;
    if (d->head < d->tail)
        run_one(d);
    *idle = d->head == d->tail;
    return QEP_OK;
}

static enum qep_status enqueue(void *ctx, void *dst, const void *src, size_t bytes) {
    struct plain *d = ctx;
    if (d->tail == MAX_QUEUED)
        plain_sync(d);
    d->queue[d->tail++] = (struct transfer){dst, src, bytes};
    return QEP_OK;
}

/* The host may not read what a download brings before a sync. */
static enum qep_status plain_download(void *ctx, void *host, const void *dev, size_t bytes) {
    memset(host, 0xA5, bytes);
    return enqueue(ctx, host, dev, bytes);
}

static enum qep_status plain_host_alloc(void *ctx, size_t bytes, void **host) {
    ((struct plain *)ctx)->num_host_blocks++;
    *host = malloc(bytes);
    return *host != NULL ? QEP_OK : qep_fail(QEP_ERR_SYSTEM, "out of memory");
}

static void plain_host_free(void *ctx, void *host) {
    ((struct plain *)ctx)->num_host_blocks -= host != NULL;
    free(host);
}

static void plain_open(int rank, struct qep_device_memory *memory) {
    *memory = (struct qep_device_memory){
        .ctx = calloc(1, sizeof(struct plain)),
        .uuid = {(unsigned char)(rank + 1)},
        .upload = enqueue,
        .download = plain_download,
        .copy = enqueue,
        .sync = plain_sync,
        .query = plain_query,
        .host_alloc = plain_host_alloc,
        .host_free = plain_host_free,
    };
    assert(memory->ctx != NULL);
}

static void plain_close(struct qep_device_memory *memory) {
    struct plain *d = memory->ctx;
    assert(d->head == d->tail);
    assert(d->num_host_blocks == 0);
    free(d);
}

static void *plain_alloc(struct qep_device_memory *memory, size_t bytes) {
    (void)memory;
    return malloc(bytes);
}

static void plain_free(struct qep_device_memory *memory, void *dev) {
    plain_sync(memory->ctx);
    free(dev);
}

static void plain_put(struct qep_device_memory *memory, void *dev, const void *host, size_t bytes) {
    plain_sync(memory->ctx);
    memcpy(dev, host, bytes);
}

static void plain_get(struct qep_device_memory *memory, void *host, const void *dev, size_t bytes) {
    plain_sync(memory->ctx);
    memcpy(host, dev, bytes);
}

const struct test_device plain_device = {plain_open, plain_close, plain_alloc,
                                         plain_free, plain_put,   plain_get};
