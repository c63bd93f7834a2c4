/* Router, and sums along the expert-id tree. */
#include "kernels/cpu/cpu.h"

#include "kernels/cpu/simd.h"
#include "kernels/mathfn.h"

#include <assert.h>

struct router_job {
    int32_t *topk_idx;
    float *topk_weights;
    const float *logits;
    const struct qep_span *spans; /* or NULL */
    int32_t n, num_experts, top_k;
    float *scratch;
    size_t thread_floats;
};

/* The maximum, over integers in the order of the floats: that vectorises. Of numbers alone. */
static float largest(const float *x, int32_t n) {
    int32_t most = INT32_MIN;
    for (int32_t i = 0; i < n; i++) {
        int32_t bits = (int32_t)qep_float_bits(x[i]);
        int32_t key = bits ^ (int32_t)((uint32_t)(bits >> 31) >> 1); /* negative ones count down */
        most = key > most ? key : most;
    }
    return qep_float_from_bits((uint32_t)most ^ (uint32_t)(most >> 31) >> 1);
}

/* exp(x - max): the softmax before its division, which cancels in the weights of the chosen. */
static void softmax_numerators(float *out, const float *x, int32_t n) {
    float max = largest(x, n);
    for (int32_t i = 0; i < n; i++)
        out[i] = qep_expf(x[i] - max);
}

/* The largest p not taken yet; the first of equals. Never fails, NaN or not. */
static int32_t pick_largest(const float *p, const uint8_t *taken, int32_t n) {
    int32_t best = -1;
    for (int32_t e = 0; e < n; e++)
        if (!taken[e] && (best < 0 || p[e] > p[best]))
            best = e;
    return best;
}

/* The p of the chosen become weights. The NaN of an expert that no comparison chose would be lost,
 * so a logit that is not finite makes all of them NaN. */
static void weigh_chosen(float *chosen, int32_t k, const float *logits, int32_t n) {
    float sum = 0.0f;
    bool finite = qep_absmax_bits(logits, (size_t)n) < QEP_INF_BITS;
    for (int32_t j = 0; j < k; j++)
        sum += chosen[j];
    for (int32_t j = 0; j < k; j++)
        chosen[j] = finite ? chosen[j] / sum : qep_nanf();
}

static void route_rows(void *arg, int thread_idx, int num_threads) {
    const struct router_job *job = arg;
    size_t experts = (size_t)job->num_experts, k = (size_t)job->top_k, begin, end;
    float *p = job->scratch + (size_t)thread_idx * job->thread_floats;
    uint8_t *taken = (uint8_t *)(p + experts);
    qep_team_split((size_t)job->n, 1, thread_idx, num_threads, &begin, &end);
    for (size_t i = begin; i < end; i++) {
        softmax_numerators(p, job->logits + i * experts, job->num_experts);
        memset(taken, 0, experts);
        for (size_t j = 0; j < k; j++) {
            int32_t best = pick_largest(p, taken, job->num_experts);
            taken[best] = 1;
            job->topk_idx[i * k + j] = job->spans != NULL && job->spans[i].slot < 0 ? -1 : best;
            job->topk_weights[i * k + j] = p[best];
        }
        weigh_chosen(job->topk_weights + i * k, job->top_k, job->logits + i * experts,
                     job->num_experts);
    }
}

enum qep_status CPU(router_topk)(struct qep_backend *be, int32_t *topk_idx, float *topk_weights,
                                 const float *logits, int32_t n, int32_t num_experts, int32_t top_k,
                                 const struct qep_span *dev_spans) {
    struct cpu_arena arena;
    struct router_job job = {topk_idx,    topk_weights, logits, dev_spans, n,
                             num_experts, top_k,        NULL,   0};
    size_t threads = (size_t)cpu_num_threads(be);
    assert(top_k <= num_experts);
    job.thread_floats = cpu_padded((size_t)num_experts * 5) / sizeof(float);
    QEP_TRY(cpu_arena_init(be, &arena, threads * job.thread_floats * sizeof(float)));
    job.scratch = cpu_arena_take(&arena, threads * job.thread_floats * sizeof(float));
    cpu_run(be, (size_t)n * (size_t)num_experts * (size_t)top_k, route_rows, &job);
    return QEP_OK;
}

/* ---- tree ---- */

enum { TREE_COLUMNS = 64, TREE_DEPTH = 33 }; /* ids have 32 bits */

struct tree_job {
    const struct qep_tree_args *args;
    float *out;
    size_t chunks; /* of TREE_COLUMNS columns, per output */
};

static void merge_top(float stack[][TREE_COLUMNS], size_t depth, size_t cols) {
    for (size_t c = 0; c < cols; c++)
        stack[depth - 2][c] = stack[depth - 2][c] + stack[depth - 1][c];
}

/* Leaves arrive in ascending order. Before a leaf that differs from its predecessor first at bit b,
 * all subtrees that meet below b are complete: bits[d] is the bit at which stack entry d meets the
 * entry before it. */
static void tree_columns(const struct qep_tree_args *args, size_t o, size_t col, size_t cols,
                         float *out) {
    float stack[TREE_DEPTH][TREE_COLUMNS];
    uint32_t bits[TREE_DEPTH] = {0};
    size_t depth = 0, width = (size_t)args->cols;
    for (int32_t leaf = args->leaf_begin[o]; leaf < args->leaf_begin[o + 1]; leaf++) {
        uint32_t differ = 0;
        if (depth > 0)
            differ = (uint32_t)args->leaf_id[leaf] ^ (uint32_t)args->leaf_id[leaf - 1];
        uint32_t bit = differ == 0 ? 0 : 1u << (31 - __builtin_clz(differ));
        assert(depth == 0 || bit != 0);
        for (; depth > 1 && bits[depth - 1] < bit; depth--)
            merge_top(stack, depth, cols);
        memcpy(stack[depth], args->src + (size_t)args->leaf_row[leaf] * width + col,
               cols * sizeof(float));
        bits[depth++] = bit;
    }
    for (; depth > 1; depth--)
        merge_top(stack, depth, cols);
    const float *base = args->base == NULL ? NULL : args->base + o * width + col;
    for (size_t c = 0; c < cols; c++) {
        if (depth == 0)
            out[c] = base == NULL ? 0.0f : base[c];
        else
            out[c] = base == NULL ? stack[0][c] : base[c] + stack[0][c];
    }
}

static void tree_chunks(void *arg, int thread_idx, int num_threads) {
    const struct tree_job *job = arg;
    size_t width = (size_t)job->args->cols, begin, end;
    qep_team_split((size_t)job->args->num_out * job->chunks, 1, thread_idx, num_threads, &begin,
                   &end);
    for (size_t u = begin; u < end; u++) {
        size_t o = u / job->chunks, col = u % job->chunks * TREE_COLUMNS;
        size_t cols = width - col < TREE_COLUMNS ? width - col : TREE_COLUMNS;
        tree_columns(job->args, o, col, cols, job->out + o * width + col);
    }
}

enum qep_status CPU(tree_sum)(struct qep_backend *be, const struct qep_tree_args *args,
                              float *out) {
    struct tree_job job = {args, out, ((size_t)args->cols + TREE_COLUMNS - 1) / TREE_COLUMNS};
    size_t leaves = (size_t)(args->leaf_begin[args->num_out] - args->leaf_begin[0]);
    cpu_run(be, (leaves + (size_t)args->num_out) * (size_t)args->cols / 4, tree_chunks, &job);
    return QEP_OK;
}
