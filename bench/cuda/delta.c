/* Gated DeltaNet: convolution and delta rule, for decode rows over rotating slots (there also all
 * of the step in one op) and for prefill spans. */
#include "bench/cuda/harness.h"

#include "kernels/device_ops.h"

#include <string.h>

enum { MAX_SPANS = 256 };

struct call {
    struct qep_delta_dims dims;
    struct qep_batch batch;
    struct qep_span spans[MAX_SPANS];
    const struct qep_span *dev_spans;
    float *conv, *qkv, *weight, *a, *b, *head, *out;
    float *state, *conv_state;
};

static struct qep_batch rotated(const struct call *c, int rotation) {
    struct qep_batch batch = c->batch;
    batch.spans = c->spans + (ptrdiff_t)rotation * batch.num_spans;
    batch.dev_spans = c->dev_spans + (ptrdiff_t)rotation * batch.num_spans;
    return batch;
}

static enum qep_status conv(struct bench *b, void *ctx, int rotation) {
    struct call *c = ctx;
    struct qep_batch batch = rotated(c, rotation);
    return b->be->ops->delta_conv(b->be, &c->dims, &batch, c->conv, c->qkv, c->weight,
                                  c->conv_state);
}

static enum qep_status delta(struct bench *b, void *ctx, int rotation) {
    struct call *c = ctx;
    struct qep_batch batch = rotated(c, rotation);
    return b->be->ops->delta(b->be, &c->dims, &batch, c->out, c->conv, c->a, c->b, c->head, c->head,
                             c->state);
}

/* Convolution, delta rule and norm to bf16 rows in one; z and the norm's weight borrow memory. */
static enum qep_status step(struct bench *b, void *ctx, int rotation) {
    struct call *c = ctx;
    struct qep_batch batch = rotated(c, rotation);
    int32_t cols = c->dims.num_value_heads * c->dims.value_head_dim;
    const struct qep_delta_decode_args args = {.qkv = c->qkv,
                                               .z = c->qkv,
                                               .a = c->a,
                                               .b = c->b,
                                               .conv1d = c->weight,
                                               .A_log = c->head,
                                               .dt_bias = c->head,
                                               .norm = c->weight,
                                               .conv_state = c->conv_state,
                                               .recurrent_state = c->state};
    const struct qep_rows_out out = {NULL, c->out, qep_act_row_bytes(QEP_ACT_BF16, cols),
                                     QEP_ACT_BF16};
    return b->be->device->delta_decode(b->be, &c->dims, &batch, out, &args);
}

static size_t num_channels(const struct qep_delta_dims *d) {
    return 2 * (size_t)d->num_key_heads * (size_t)d->key_head_dim +
           (size_t)d->num_value_heads * (size_t)d->value_head_dim;
}

static size_t state_size(const struct qep_delta_dims *d) {
    return (size_t)d->num_value_heads * (size_t)d->key_head_dim * (size_t)d->value_head_dim;
}

static enum qep_status prepare(struct bench *b, struct call *c, int rotations) {
    const struct qep_delta_dims *d = &c->dims;
    size_t rows = (size_t)c->batch.num_rows, channels = num_channels(d);
    size_t slots = (size_t)rotations * (size_t)c->batch.num_spans;
    size_t tail = channels * (size_t)d->conv_kernel_dim, heads = (size_t)d->num_value_heads;
    void *dev = NULL;
    for (size_t i = 0; i < slots; i++) {
        int32_t per_span = c->batch.num_rows / c->batch.num_spans;
        c->spans[i] =
            (struct qep_span){.row0 = (int32_t)(i % (size_t)c->batch.num_spans) * per_span,
                              .num_rows = per_span,
                              .slot = (int32_t)i,
                              .decode = per_span == 1};
    }
    c->batch.max_end = 1 << 16;
    QEP_TRY(bench_upload(b, c->spans, slots * sizeof *c->spans, &dev));
    c->dev_spans = dev;
    QEP_TRY(bench_zeros(b, slots * state_size(d) * sizeof(float), &dev));
    c->state = dev;
    QEP_TRY(bench_zeros(b, slots * tail * sizeof(float), &dev));
    c->conv_state = dev;
    QEP_TRY(bench_zeros(b, rows * channels * sizeof(float), &dev));
    c->conv = dev;
    QEP_TRY(bench_zeros(b, rows * heads * (size_t)d->value_head_dim * sizeof(float), &dev));
    c->out = dev;
    QEP_TRY(bench_noise(b, rows * channels, &c->qkv));
    QEP_TRY(bench_noise(b, channels * (size_t)d->conv_kernel_dim, &c->weight));
    QEP_TRY(bench_noise(b, rows * heads, &c->a));
    QEP_TRY(bench_noise(b, rows * heads, &c->b));
    return bench_noise(b, heads, &c->head);
}

static void release(struct bench *b, struct call *c) {
    void *all[] = {c->conv, c->qkv, c->weight, c->a,          c->b,
                   c->head, c->out, c->state,  c->conv_state, (void *)(uintptr_t)c->dev_spans};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        b->be->ops->free(b->be, all[i]);
}

/* The recurrence: decay, k S, outer product, q S; 7 operations for each element of the state. */
static enum qep_status run(struct bench *b, struct call *c, int rotations) {
    const struct qep_delta_dims *d = &c->dims;
    double rows = c->batch.num_rows, channels = (double)num_channels(d);
    double states = 2.0 * 4.0 * c->batch.num_spans * (double)state_size(d);
    double values = (double)d->num_value_heads * d->value_head_dim;
    const char *phase = c->batch.num_rows == c->batch.num_spans ? "decode" : "prefill";
    struct bench_case bc = {.op = "delta_conv",
                            .types = phase,
                            .rows = c->batch.num_rows,
                            .bytes = 8.0 * rows * channels,
                            .flops = 2.0 * rows * channels * d->conv_kernel_dim,
                            .rotations = rotations,
                            .call = conv,
                            .ctx = c};
    snprintf(bc.shape, sizeof bc.shape, "%d:%d heads of %d, %d spans", d->num_value_heads,
             d->num_key_heads, d->key_head_dim, c->batch.num_spans);
    QEP_TRY(prepare(b, c, rotations));
    QEP_TRY(bench_run(b, &bc));
    bc.op = "delta";
    bc.bytes = 4.0 * rows * (channels + values) + states;
    bc.flops = 7.0 * rows * (double)state_size(d);
    bc.call = delta;
    QEP_TRY(bench_run(b, &bc));
    if (c->batch.num_rows != c->batch.num_spans)
        return QEP_OK;
    bc.op = "delta_decode";
    bc.bytes = rows * (4.0 * channels * (d->conv_kernel_dim + 1) + (4.0 + 2.0) * values) + states;
    bc.call = step;
    return bench_run(b, &bc);
}

static enum qep_status bench_one(struct bench *b, int32_t spans, int32_t rows) {
    static struct call c;
    memset(&c, 0, sizeof c);
    c.dims = b->tiny ? (struct qep_delta_dims){2, 4, 32, 32, 4, 1e-6f}
                     : (struct qep_delta_dims){16, 32, 128, 128, 4, 1e-6f};
    c.batch.num_spans = spans;
    c.batch.num_rows = spans * rows;
    int most = MAX_SPANS / spans,
        n = bench_rotations(b, (size_t)spans * state_size(&c.dims) * sizeof(float));
    enum qep_status st = run(b, &c, rows > 1 ? 2 : n < most ? n : most);
    release(b, &c);
    return st;
}

enum qep_status bench_delta(struct bench *b) {
    static const int32_t batches[] = {1, 8, 32}, chunks[] = {512, 4096};
    if (!bench_wants(b, "delta"))
        return QEP_OK;
    for (int i = 0; i < (b->tiny ? 2 : 3); i++)
        QEP_TRY(bench_one(b, batches[i], 1));
    for (int i = 0; i < (b->tiny ? 1 : 2); i++)
        QEP_TRY(bench_one(b, 1, b->tiny ? 100 : chunks[i]));
    return QEP_OK;
}
