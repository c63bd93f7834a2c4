/* The routed experts of one layer on one rank: gate and up, SwiGLU, down and the sum along the tree
 * (the device op `routed`). Rows choose experts at random; at one row consecutive calls choose
 * others. */
#include "bench/cuda/harness.h"

#include "base/mem.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_EXPERTS = 256, MAX_ROTATIONS = 32 };

struct dims {
    int32_t hidden, inner, experts, level, top_k; /* experts = 1 << level */
};

struct call {
    struct qep_routed_args args;
    struct qep_weight *gate_up[MAX_EXPERTS], *down[MAX_EXPERTS];
    struct qep_expert_set *set;
    int32_t *idx; /* dev [rotations, rows, top_k] */
    float *partials;
    double num_touched; /* distinct experts of a call, on average */
    int rotations;
};

static enum qep_status routed(struct bench *b, void *ctx, int rotation) {
    struct call *c = ctx;
    struct qep_routed_args args = c->args;
    args.topk.idx = c->idx + (size_t)rotation * (size_t)args.num_rows * (size_t)args.topk.top_k;
    return b->be->device->routed(b->be, &args, c->partials);
}

/* top_k different experts for every row of every rotation. */
static enum qep_status choose(struct bench *b, struct call *c, const struct dims *d, int32_t rows) {
    size_t k = (size_t)d->top_k, count = (size_t)c->rotations * (size_t)rows * k;
    double touched = 0;
    void *mem = NULL, *dev = NULL;
    QEP_TRY(qep_alloc(count, sizeof(int32_t), "bench", &mem));
    int32_t *idx = mem;
    for (int r = 0; r < c->rotations; r++) {
        bool seen[MAX_EXPERTS] = {false};
        for (size_t row = 0; row < (size_t)rows; row++) {
            int32_t *list = idx + ((size_t)r * (size_t)rows + row) * k;
            uint32_t first = rows == 1 ? (uint32_t)r * (uint32_t)k : bench_random();
            uint32_t step = rows == 1 ? 1 : 2 * (bench_random() % 64) + 1; /* odd: no repeats */
            for (size_t j = 0; j < k; j++) {
                list[j] = (int32_t)((first + (uint32_t)j * step) % (uint32_t)d->experts);
                touched += seen[list[j]] ? 0 : 1;
                seen[list[j]] = true;
            }
        }
    }
    c->num_touched = touched / c->rotations;
    enum qep_status st = bench_upload(b, idx, count * sizeof *idx, &dev);
    c->idx = dev;
    free(idx);
    return st;
}

static enum qep_status run_rows(struct bench *b, struct call *c, const struct dims *d,
                                const struct bench_case *shape, int32_t rows) {
    struct bench_case bc = *shape;
    size_t stride = c->args.row_stride, n = (size_t)rows;
    void *acts = NULL, *partials = NULL;
    float *weights = NULL, *x = NULL;
    enum qep_status st = QEP_OK;
    c->rotations = b->tiny ? 2 : rows == 1 ? MAX_ROTATIONS : rows <= 32 ? 8 : 2;
    QEP_TRY_GOTO(st, done, choose(b, c, d, rows));
    QEP_TRY_GOTO(st, done, bench_zeros(b, n * stride, &acts));
    QEP_TRY_GOTO(st, done, bench_noise(b, n * (size_t)d->hidden, &x));
    QEP_TRY_GOTO(st, done,
                 b->be->ops->act_convert(b->be, acts, stride, QEP_ACT_BF16, x, rows, d->hidden));
    QEP_TRY_GOTO(st, done, bench_noise(b, n * (size_t)d->top_k, &weights));
    QEP_TRY_GOTO(st, done, bench_zeros(b, n * (size_t)d->hidden * sizeof(float), &partials));
    c->partials = partials;
    c->args.rows = acts;
    c->args.num_rows = rows;
    c->args.decode = rows <= 32;
    c->args.topk.weights = weights;
    bc.rows = rows;
    bc.bytes = c->num_touched * shape->bytes + (double)rows * (2.0 + 4.0) * d->hidden;
    bc.flops = 6.0 * rows * d->top_k * d->hidden * d->inner;
    bc.rotations = c->rotations;
    st = bench_run(b, &bc);
done:
    b->be->ops->free(b->be, acts);
    b->be->ops->free(b->be, x);
    b->be->ops->free(b->be, weights);
    b->be->ops->free(b->be, partials);
    b->be->ops->free(b->be, c->idx);
    c->idx = NULL;
    return st;
}

/* One rank with all experts: one range, the whole tree. */
static enum qep_status set_args(struct bench *b, struct call *c, const struct dims *d) {
    const struct qep_expert_range whole = {.level = d->level, .row_step = 1};
    void *ranges = NULL, *expert_range = NULL;
    QEP_TRY(bench_upload(b, &whole, sizeof whole, &ranges));
    c->args = (struct qep_routed_args){.row_stride = qep_act_row_bytes(QEP_ACT_BF16, d->hidden),
                                       .act_type = QEP_ACT_BF16,
                                       .topk = {.idx_stride = (size_t)d->top_k * sizeof(int32_t),
                                                .weights_stride = (size_t)d->top_k * sizeof(float),
                                                .top_k = d->top_k},
                                       .experts = c->set,
                                       .ranges = ranges,
                                       .num_ranges = 1,
                                       .num_experts = d->experts,
                                       .hidden_size = d->hidden,
                                       .intermediate_size = d->inner};
    QEP_TRY(bench_zeros(b, (size_t)d->experts * sizeof(int32_t), &expert_range));
    c->args.expert_range = expert_range;
    return QEP_OK;
}

static enum qep_status bench_type(struct bench *b, const struct dims *d,
                                  enum qep_weight_type type) {
    static const int32_t counts[] = {1, 8, 32, 512, 4096}, tiny_counts[] = {1, 5, 40};
    static struct call c;
    struct bench_case shape = {.op = "experts",
                               .types = bench_types(type, QEP_ACT_BF16),
                               .bytes = bench_weight_bytes(type, 2 * d->inner, d->hidden) +
                                        bench_weight_bytes(type, d->hidden, d->inner),
                               .call = routed,
                               .ctx = &c};
    enum qep_status st = QEP_OK;
    memset(&c, 0, sizeof c);
    snprintf(shape.shape, sizeof shape.shape, "%d of %d, hidden %d, intermediate %d", d->top_k,
             d->experts, d->hidden, d->inner);
    QEP_TRY_GOTO(st, done, bench_weights(b, type, 2 * d->inner, d->hidden, d->experts, c.gate_up));
    QEP_TRY_GOTO(st, done, bench_weights(b, type, d->hidden, d->inner, d->experts, c.down));
    QEP_TRY_GOTO(st, done,
                 b->be->device->expert_set_create(
                     b->be, (const struct qep_weight *const *)c.gate_up,
                     (const struct qep_weight *const *)c.down, d->experts, &c.set));
    QEP_TRY_GOTO(st, done, set_args(b, &c, d));
    for (int i = 0; st == QEP_OK && i < (b->tiny ? 3 : 5); i++)
        st = run_rows(b, &c, d, &shape, b->tiny ? tiny_counts[i] : counts[i]);
done:
    if (c.set != NULL)
        b->be->device->expert_set_destroy(b->be, c.set);
    b->be->ops->free(b->be, (void *)(uintptr_t)c.args.ranges);
    b->be->ops->free(b->be, (void *)(uintptr_t)c.args.expert_range);
    for (int32_t e = 0; e < d->experts; e++) {
        b->be->ops->weight_destroy(b->be, c.gate_up[e]);
        b->be->ops->weight_destroy(b->be, c.down[e]);
    }
    return st;
}

enum qep_status bench_experts(struct bench *b) {
    static const struct dims real = {2048, 512, 256, 8, 8}, tiny = {128, 64, 16, 4, 4};
    static const enum qep_weight_type types[] = {QEP_WEIGHT_INT4, QEP_WEIGHT_INT8, QEP_WEIGHT_BF16};
    if (!bench_wants(b, "experts"))
        return QEP_OK;
    for (int t = 0; t < 3; t++)
        if (b->be->ops->supports(b->be, types[t], QEP_ACT_BF16))
            QEP_TRY(bench_type(b, b->tiny ? &tiny : &real, types[t]));
    return QEP_OK;
}
