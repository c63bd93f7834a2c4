/* Times of single launches: an event behind each. The stream is held up until the host has issued
 * what it can, so that the time between two events is the device's: a kernel and the gap before it,
 * as long as the host needs no answer in between. The range is also the profilers' (cudaProfiler*).
 */
#include "base/clock.h"
#include "base/mem.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/device_entries.h"
#include "kernels/cuda/launch_watch.h"

#ifndef QEP_CUDA_EMU
#include <cuda_profiler_api.h>
#endif

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { HOLD_UP_US = 20000 };

struct cuda_profile {
    cudaStream_t stream;
    cudaEvent_t begin;
    struct timed {
        struct cuda_launch launch;
        cudaEvent_t end;
    } * items;
    size_t num, cap;
    enum qep_status status; /* of the first launch that could not be noted */
};

static void hold_up(void *ctx) {
    (void)ctx;
    qep_sleep_us(HOLD_UP_US);
}

static enum qep_status add(struct cuda_profile *p, const struct cuda_launch *launch) {
    QEP_TRY(qep_grow((void **)&p->items, &p->cap, p->num + 1, sizeof *p->items, "launch times"));
    struct timed *item = &p->items[p->num];
    *item = (struct timed){.launch = *launch};
    QEP_TRY(cuda_check(cudaEventCreate(&item->end), "cudaEventCreate"));
    p->num++;
    return cuda_check(cudaEventRecord(item->end, p->stream), "cudaEventRecord");
}

static void note(void *ctx, const struct cuda_launch *launch) {
    struct cuda_profile *p = ctx;
    if (p->status == QEP_OK)
        p->status = add(p, launch);
}

static enum qep_status tell_profilers(bool on) {
#ifdef QEP_CUDA_EMU
    (void)on;
    return QEP_OK;
#else
    return cuda_check(on ? cudaProfilerStart() : cudaProfilerStop(), "cudaProfiler");
#endif
}

/* Nobody watches afterwards. */
void cuda_profile_destroy(struct cuda_backend *be) {
    struct cuda_profile *p = be->profile;
    be->profile = NULL;
    if (p == NULL)
        return;
    cuda_watch_launches(NULL, NULL);
    (void)tell_profilers(false);
    for (size_t i = 0; i < p->num; i++)
        (void)cudaEventDestroy(p->items[i].end);
    if (p->begin != NULL)
        (void)cudaEventDestroy(p->begin);
    free(p->items);
    free(p);
}

static enum qep_status start(struct cuda_profile *p) {
    QEP_TRY(cuda_check(cudaEventCreate(&p->begin), "cudaEventCreate"));
    QEP_TRY(tell_profilers(true));
    QEP_TRY(cuda_check(cudaLaunchHostFunc(p->stream, hold_up, NULL), "cudaLaunchHostFunc"));
    return cuda_check(cudaEventRecord(p->begin, p->stream), "cudaEventRecord");
}

enum qep_status cuda_profile_begin(struct qep_backend *base) {
    struct cuda_backend *be = cuda_backend_of(base);
    if (be->profile != NULL)
        return qep_fail(QEP_ERR_BUG, "cuda: profile_begin twice");
    QEP_TRY(cuda_sync(base));
    QEP_TRY(qep_calloc(1, sizeof *be->profile, "launch times", (void **)&be->profile));
    be->profile->stream = be->stream;
    enum qep_status st = start(be->profile);
    if (st == QEP_OK)
        cuda_watch_launches(note, be->profile);
    else
        cuda_profile_destroy(be);
    return st;
}

/* What follows is an identifier behind its length, perhaps behind L (internal linkage). */
static const char *next_identifier(const char *at, size_t *length) {
    char *end = NULL;
    at += *at == 'L';
    *length = isdigit((unsigned char)*at) ? strtoul(at, &end, 10) : 0;
    return *length > 0 && *length <= strlen(end) ? end : NULL;
}

void cuda_kernel_name(const char *text, char *out, size_t out_bytes) {
    const char *name = text, *found = NULL;
    size_t length = strcspn(text, "<( "), l = 0;
    if (strncmp(text, "_Z", 2) == 0) {
        bool nested = text[2] == 'N';
        const char *at = text + 2 + nested;
        while ((found = next_identifier(at, &l)) != NULL) {
            name = found;
            length = l;
            at = found + l;
            if (!nested) /* parameters follow, which may begin with an identifier too */
                break;
        }
    }
    snprintf(out, out_bytes, "%.*s", (int)length, name);
}

static void name_of(const void *kernel, char *out, size_t out_bytes) {
#if defined(QEP_CUDA_EMU) || CUDART_VERSION >= 12030
    const char *text = NULL;
    if (cudaFuncGetName(&text, kernel) == cudaSuccess && text != NULL) {
        cuda_kernel_name(text, out, out_bytes);
        return;
    }
    (void)cudaGetLastError();
#endif
    snprintf(out, out_bytes, "kernel at %p", kernel);
}

static enum qep_status read_times(const struct cuda_profile *p, struct qep_launch_time *times) {
    for (size_t i = 0; i < p->num; i++) {
        const struct cuda_launch *launch = &p->items[i].launch;
        float ms = 0.0f;
        QEP_TRY(cuda_check(
            cudaEventElapsedTime(&ms, i == 0 ? p->begin : p->items[i - 1].end, p->items[i].end),
            "cudaEventElapsedTime"));
        times[i].us = 1e3 * (double)ms;
        times[i].shared_bytes = launch->shared_bytes;
        memcpy(times[i].grid, launch->grid, sizeof times[i].grid);
        memcpy(times[i].block, launch->block, sizeof times[i].block);
        name_of(launch->kernel, times[i].kernel, sizeof times[i].kernel);
    }
    return QEP_OK;
}

enum qep_status cuda_profile_end(struct qep_backend *base, struct qep_launch_time **out,
                                 size_t *num) {
    struct cuda_backend *be = cuda_backend_of(base);
    struct cuda_profile *p = be->profile;
    void *times = NULL;
    *out = NULL;
    *num = 0;
    if (p == NULL)
        return qep_fail(QEP_ERR_BUG, "cuda: profile_end without profile_begin");
    enum qep_status st = p->status;
    QEP_TRY_GOTO(st, done, st);
    QEP_TRY_GOTO(st, done, cuda_sync(base));
    QEP_TRY_GOTO(st, done, qep_calloc(p->num, sizeof **out, "launch times", &times));
    QEP_TRY_GOTO(st, done, read_times(p, times));
    *out = times;
    *num = p->num;
    times = NULL;
done:
    free(times);
    cuda_profile_destroy(be);
    return st;
}
