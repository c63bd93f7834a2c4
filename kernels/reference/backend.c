#include "kernels/reference/reference.h"

#include "base/mem.h"

#include <stdlib.h>
#include <string.h>

static enum qep_status ref_alloc(struct qep_backend *be, size_t bytes, const char *what,
                                 void **dev) {
    (void)be;
    return qep_calloc(bytes, 1, what, dev);
}

static void ref_free(struct qep_backend *be, void *dev) {
    (void)be;
    free(dev);
}

static enum qep_status ref_upload(struct qep_backend *be, void *dev, const void *host,
                                  size_t bytes) {
    (void)be;
    if (bytes > 0)
        memcpy(dev, host, bytes);
    return QEP_OK;
}

static enum qep_status ref_download(struct qep_backend *be, void *host, const void *dev,
                                    size_t bytes) {
    (void)be;
    if (bytes > 0)
        memcpy(host, dev, bytes);
    return QEP_OK;
}

static enum qep_status ref_zero(struct qep_backend *be, void *dev, size_t bytes) {
    (void)be;
    if (bytes > 0)
        memset(dev, 0, bytes);
    return QEP_OK;
}

static enum qep_status ref_sync(struct qep_backend *be) {
    (void)be;
    return QEP_OK;
}

static void ref_destroy(struct qep_backend *be) {
    if (be == NULL)
        return;
    struct ref_backend *ref = (struct ref_backend *)be;
    free(ref->scratch);
    free(ref);
}

static const struct qep_backend_ops reference_ops = {
    .name = "reference",
    .alloc = ref_alloc,
    .free = ref_free,
    .upload = ref_upload,
    .download = ref_download,
    .zero = ref_zero,
    .sync = ref_sync,
    .weight_create = ref_weight_create,
    .weight_destroy = ref_weight_destroy,
    .supports = ref_supports,
    .embed = ref_embed,
    .rms_norm = ref_rms_norm,
    .act_convert = ref_act_convert,
    .matmul = ref_matmul,
    .swiglu = ref_swiglu,
    .attention_kv = ref_attention_kv,
    .attention = ref_attention,
    .delta_conv = ref_delta_conv,
    .delta = ref_delta,
    .delta_norm = ref_delta_norm,
    .router_topk = ref_router_topk,
    .experts = ref_experts,
    .tree_sum = ref_tree_sum,
    .destroy = ref_destroy,
};

enum qep_status qep_backend_reference_create(struct qep_backend **out) {
    void *mem = NULL;
    *out = NULL;
    QEP_TRY(qep_calloc(1, sizeof(struct ref_backend), "reference backend", &mem));
    struct ref_backend *ref = mem;
    ref->base.ops = &reference_ops;
    ref->base.isa = "c";
    *out = &ref->base;
    return QEP_OK;
}

enum qep_status ref_scratch(struct qep_backend *be, size_t count, float **out) {
    struct ref_backend *ref = (struct ref_backend *)be;
    void *items = ref->scratch;
    enum qep_status st =
        qep_grow(&items, &ref->scratch_cap, count, sizeof(float), "reference scratch");
    ref->scratch = items;
    *out = ref->scratch;
    return st;
}
