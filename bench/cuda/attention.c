/* Full attention: decode rows at a context length (one span each, over slots that rotate), and
 * prefill spans. */
#include "bench/cuda/harness.h"

#include "base/mem.h"

#include <stdlib.h>

enum { NUM_LENGTHS = 2 };

struct call {
    struct qep_attention_dims dims;
    struct qep_batch batch; /* of one rotation; spans of rotation r at r * num_spans */
    const struct qep_span *spans, *dev_spans;
    float *out, *qg, *q_norm;
    void **blocks; /* dev */
    void *memory;
};

static enum qep_status attention(struct bench *b, void *ctx, int rotation) {
    struct call *c = ctx;
    struct qep_batch batch = c->batch;
    batch.spans = c->spans + (ptrdiff_t)rotation * batch.num_spans;
    batch.dev_spans = c->dev_spans + (ptrdiff_t)rotation * batch.num_spans;
    return b->be->ops->attention(b->be, &c->dims, &batch, qep_f32_rows(c->out), c->qg, c->q_norm,
                                 (void *const *)c->blocks);
}

/* Blocks of `slots` sequences, one behind the other. */
static enum qep_status make_blocks(struct bench *b, struct call *c, int32_t slots) {
    size_t n = (size_t)slots * (size_t)c->dims.max_blocks;
    size_t bytes = qep_kv_block_bytes(c->dims.kv_type, c->dims.num_kv_heads, c->dims.head_dim);
    void *mem = NULL, *dev = NULL;
    QEP_TRY(bench_zeros(b, n * bytes, &c->memory));
    QEP_TRY(qep_alloc(n, sizeof(void *), "bench", &mem));
    void **table = mem;
    for (size_t i = 0; i < n; i++)
        table[i] = (char *)c->memory + i * bytes;
    enum qep_status st = bench_upload(b, table, n * sizeof *table, &dev);
    c->blocks = dev;
    free(table);
    return st;
}

/* rotations * num_spans spans, slots counting up. */
static enum qep_status make_spans(struct bench *b, struct call *c, int rotations, int32_t position,
                                  int32_t decode) {
    size_t per_call = (size_t)c->batch.num_spans, n = (size_t)rotations * per_call;
    void *mem = NULL, *dev = NULL;
    QEP_TRY(qep_alloc(n, sizeof(struct qep_span), "bench", &mem));
    struct qep_span *spans = mem;
    int32_t rows = c->batch.num_rows / c->batch.num_spans;
    for (size_t i = 0; i < n; i++)
        spans[i] = (struct qep_span){.row0 = (int32_t)(i % per_call) * rows,
                                     .num_rows = rows,
                                     .slot = (int32_t)i,
                                     .position = position,
                                     .decode = decode};
    c->spans = spans;
    c->batch.max_end = position + rows;
    QEP_TRY(bench_upload(b, spans, n * sizeof *spans, &dev));
    c->dev_spans = dev;
    return QEP_OK;
}

static void release(struct bench *b, struct call *c) {
    b->be->ops->free(b->be, c->out);
    b->be->ops->free(b->be, c->qg);
    b->be->ops->free(b->be, c->q_norm);
    b->be->ops->free(b->be, (void *)c->blocks);
    b->be->ops->free(b->be, c->memory);
    b->be->ops->free(b->be, (void *)(uintptr_t)c->dev_spans);
    free((void *)(uintptr_t)c->spans);
}

static enum qep_status run(struct bench *b, struct call *c, int32_t position, int rotations) {
    const struct qep_attention_dims *d = &c->dims;
    int32_t rows = c->batch.num_rows, decode = rows == c->batch.num_spans;
    size_t heads = (size_t)rows * (size_t)d->num_heads * (size_t)d->head_dim;
    double length = decode ? position + 1 : position + (rows + 1) / 2.0;
    double end = position + (decode ? 1 : rows);
    double kv = (double)qep_kv_block_bytes(d->kv_type, d->num_kv_heads, d->head_dim) / QEP_KV_BLOCK;
    struct bench_case bc = {.op = decode ? "attention decode" : "attention prefill",
                            .types = d->kv_type == QEP_KV_INT8 ? "KV int8" : "KV bf16",
                            .rows = rows,
                            .bytes = 12.0 * (double)heads + c->batch.num_spans * end * kv,
                            .flops = 4.0 * length * (double)heads,
                            .rotations = rotations,
                            .call = attention,
                            .ctx = c};
    void *out = NULL;
    snprintf(bc.shape, sizeof bc.shape, "%d:%d heads of %d, from position %d", d->num_heads,
             d->num_kv_heads, d->head_dim, position);
    QEP_TRY(make_blocks(b, c, rotations * c->batch.num_spans));
    QEP_TRY(make_spans(b, c, rotations, position, decode));
    QEP_TRY(bench_zeros(b, heads * sizeof(float), &out));
    c->out = out;
    QEP_TRY(bench_noise(b, 2 * heads, &c->qg));
    QEP_TRY(bench_noise(b, (size_t)d->head_dim, &c->q_norm));
    return bench_run(b, &bc);
}

static enum qep_status bench_one(struct bench *b, enum qep_kv_type kv_type, int32_t spans,
                                 int32_t rows, int32_t position) {
    struct call c = {.dims = {16, 2, 256, 64, 1e7f, 1e-6f, kv_type, 0}};
    if (b->tiny)
        c.dims = (struct qep_attention_dims){8, 2, 64, 16, 1e7f, 1e-6f, kv_type, 0};
    c.dims.max_blocks = (position + rows) / QEP_KV_BLOCK + 1;
    c.batch.num_spans = spans;
    c.batch.num_rows = spans * rows;
    size_t bytes = qep_kv_block_bytes(kv_type, c.dims.num_kv_heads, c.dims.head_dim) *
                   (size_t)c.dims.max_blocks * (size_t)spans;
    int rotations = rows > 1 ? 2 : bench_rotations(b, bytes);
    enum qep_status st = run(b, &c, position, rotations < 64 ? rotations : 64);
    release(b, &c);
    return st;
}

enum qep_status bench_attention(struct bench *b) {
    static const int32_t batches[] = {1, 8, 32}, lengths[NUM_LENGTHS] = {4095, 32767},
                         tiny_lengths[NUM_LENGTHS] = {63, 200};
    static const int32_t chunks[][2] = {{512, 0}, {4096, 0}, {512, 32768}}; /* rows, position */
    if (!bench_wants(b, "attention"))
        return QEP_OK;
    for (int kv = QEP_KV_BF16; kv <= QEP_KV_INT8; kv++) {
        for (int l = 0; l < NUM_LENGTHS; l++)
            for (int i = 0; i < (b->tiny ? 2 : 3); i++)
                QEP_TRY(bench_one(b, (enum qep_kv_type)kv, batches[i], 1,
                                  b->tiny ? tiny_lengths[l] : lengths[l]));
        for (int i = 0; i < (b->tiny ? 1 : 3); i++)
            QEP_TRY(
                bench_one(b, (enum qep_kv_type)kv, 1, b->tiny ? 70 : chunks[i][0], chunks[i][1]));
    }
    return QEP_OK;
}
