/* Router and the sum along the expert-id tree. */
#include "kernels/reference/reference.h"

#include "kernels/mathfn.h"

#include <assert.h>
#include <string.h>

/* exp(x - max): the softmax before its division, which cancels in the weights of the chosen. */
static void softmax_numerators(float *out, const float *x, int32_t n) {
    float max = x[0];
    for (int32_t i = 1; i < n; i++)
        max = x[i] > max ? x[i] : max;
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

enum qep_status ref_router_topk(struct qep_backend *be, int32_t *topk_idx, float *topk_weights,
                                const float *logits, int32_t n, int32_t num_experts, int32_t top_k,
                                const struct qep_span *dev_spans) {
    float *p = NULL;
    size_t experts = (size_t)num_experts, k = (size_t)top_k;
    assert(0 < num_experts && top_k <= num_experts);
    QEP_TRY(ref_scratch(be, 2 * experts, &p));
    uint8_t *taken = (uint8_t *)(p + experts);
    for (size_t i = 0; i < (size_t)n; i++) {
        softmax_numerators(p, logits + i * experts, num_experts);
        memset(taken, 0, experts);
        for (size_t j = 0; j < k; j++) {
            int32_t best = pick_largest(p, taken, num_experts);
            taken[best] = 1;
            topk_idx[i * k + j] = dev_spans != NULL && dev_spans[i].slot < 0 ? -1 : best;
            topk_weights[i * k + j] = p[best];
        }
        weigh_chosen(topk_weights + i * k, top_k, logits + i * experts, num_experts);
    }
    return QEP_OK;
}

/* Sum of one column over leaves [first, last): split where the highest differing id bit of the
 * range first becomes 1. */
static float tree_column(const struct qep_tree_args *args, int32_t first, int32_t last,
                         int32_t col) {
    if (last - first == 1)
        return args->src[(size_t)args->leaf_row[first] * (size_t)args->cols + (size_t)col];
    uint32_t low = (uint32_t)args->leaf_id[first], high = (uint32_t)args->leaf_id[last - 1];
    assert(low < high);
    uint32_t bit = 1u << (31 - __builtin_clz(low ^ high));
    int32_t split = first;
    while (((uint32_t)args->leaf_id[split] & bit) == 0)
        split++;
    return tree_column(args, first, split, col) + tree_column(args, split, last, col);
}

enum qep_status ref_tree_sum(struct qep_backend *be, const struct qep_tree_args *args, float *out) {
    (void)be;
    for (int32_t o = 0; o < args->num_out; o++) {
        int32_t first = args->leaf_begin[o], last = args->leaf_begin[o + 1];
        for (int32_t c = 0; c < args->cols; c++) {
            size_t at = (size_t)o * (size_t)args->cols + (size_t)c;
            float base = args->base != NULL ? args->base[at] : 0.0f;
            float tree = first < last ? tree_column(args, first, last, c) : 0.0f;
            out[at] = first == last ? base : args->base != NULL ? base + tree : tree;
        }
    }
    return QEP_OK;
}
