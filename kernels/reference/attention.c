/* Full attention, one row and head at a time. The softmax subtracts the maximum of all scores. */
#include "kernels/reference/reference.h"

#include "kernels/mathfn.h"
#include "kernels/rope.h"

#include <assert.h>
#include <math.h>
#include <string.h>

/* Where K (which = 0) or V (1) of one position and head lies: the index of its first element, and
 * the index of its scale. */
static size_t kv_scale_idx(const struct qep_attention_dims *dims, int which, int32_t position,
                           int32_t head) {
    size_t in_block = (size_t)(position % QEP_KV_BLOCK);
    return ((size_t)which * QEP_KV_BLOCK + in_block) * (size_t)dims->num_kv_heads + (size_t)head;
}

static size_t kv_element_idx(const struct qep_attention_dims *dims, int which, int32_t position,
                             int32_t head) {
    return kv_scale_idx(dims, which, position, head) * (size_t)dims->head_dim;
}

static size_t kv_num_elements(const struct qep_attention_dims *dims) {
    return 2 * (size_t)QEP_KV_BLOCK * (size_t)dims->num_kv_heads * (size_t)dims->head_dim;
}

static void kv_store_int8(int8_t *quants, float *scale_out, const float *x, int32_t n) {
    float scale = qep_int8_scale(x, (size_t)n);
    for (int32_t i = 0; i < n; i++) {
        float q = scale > 0.0f ? x[i] / scale : 0.0f;
        q = q > 127.0f ? 127.0f : q;
        q = q < -127.0f ? -127.0f : q;
        quants[i] = (int8_t)qep_round_even_int(q);
    }
    *scale_out = scale;
}

static void kv_store(const struct qep_attention_dims *dims, void *block, int which,
                     int32_t position, int32_t head, const float *x) {
    size_t first = kv_element_idx(dims, which, position, head);
    size_t n = (size_t)dims->head_dim;
    if (dims->kv_type == QEP_KV_F32) {
        memcpy((float *)block + first, x, n * sizeof *x);
    } else if (dims->kv_type == QEP_KV_BF16) {
        for (size_t i = 0; i < n; i++)
            ((uint16_t *)block)[first + i] = qep_f32_to_bf16(x[i]);
    } else {
        float *scales = (float *)((char *)block + kv_num_elements(dims));
        kv_store_int8((int8_t *)block + first, scales + kv_scale_idx(dims, which, position, head),
                      x, dims->head_dim);
    }
}

static void kv_load(const struct qep_attention_dims *dims, const void *block, int which,
                    int32_t position, int32_t head, float *out) {
    size_t first = kv_element_idx(dims, which, position, head);
    size_t n = (size_t)dims->head_dim;
    if (dims->kv_type == QEP_KV_F32) {
        memcpy(out, (const float *)block + first, n * sizeof *out);
    } else if (dims->kv_type == QEP_KV_BF16) {
        for (size_t i = 0; i < n; i++)
            out[i] = qep_bf16_to_f32(((const uint16_t *)block)[first + i]);
    } else {
        const float *scales = (const float *)((const char *)block + kv_num_elements(dims));
        float scale = scales[kv_scale_idx(dims, which, position, head)];
        for (size_t i = 0; i < n; i++)
            out[i] = (float)((const int8_t *)block)[first + i] * scale;
    }
}

/* RMSNorm of one head, then RoPE. */
static void norm_and_rotate(const struct qep_attention_dims *dims, float *out, const float *x,
                            const float *w, const float *cosines, const float *sines) {
    int32_t n = dims->head_dim;
    float inv = 1.0f / qep_norm_rootf(ref_sum_squares(x, n) / (float)n + dims->eps);
    for (int32_t i = 0; i < n; i++)
        out[i] = x[i] * inv * w[i];
    qep_rope_rotate(out, dims->rotary_dim / 2, cosines, sines);
}

struct rope_row {
    float freq[QEP_ROPE_MAX_PAIRS], cosines[QEP_ROPE_MAX_PAIRS], sines[QEP_ROPE_MAX_PAIRS];
};

static void rope_row_init(struct rope_row *rope, const struct qep_attention_dims *dims) {
    assert(dims->rotary_dim / 2 <= QEP_ROPE_MAX_PAIRS && dims->rotary_dim <= dims->head_dim);
    qep_rope_frequencies(dims->rope_theta, dims->rotary_dim, rope->freq);
}

enum qep_status ref_attention_kv(struct qep_backend *be, const struct qep_attention_dims *dims,
                                 const struct qep_batch *batch, const float *k, const float *v,
                                 const float *k_norm, void *const *blocks) {
    struct rope_row rope;
    float *head_buf = NULL;
    size_t head_dim = (size_t)dims->head_dim, row_len = (size_t)dims->num_kv_heads * head_dim;
    QEP_TRY(ref_scratch(be, head_dim, &head_buf));
    rope_row_init(&rope, dims);
    for (int32_t s = 0; s < batch->num_spans; s++) {
        const struct qep_span *span = &batch->spans[s];
        for (int32_t i = 0; i < span->num_rows; i++) {
            int32_t position = span->position + i;
            size_t row = (size_t)(span->row0 + i);
            void *block =
                blocks[span->slot * (ptrdiff_t)dims->max_blocks + position / QEP_KV_BLOCK];
            qep_rope_angles(rope.freq, dims->rotary_dim / 2, position, rope.cosines, rope.sines);
            for (int32_t h = 0; h < dims->num_kv_heads; h++) {
                size_t at = row * row_len + (size_t)h * head_dim;
                norm_and_rotate(dims, head_buf, k + at, k_norm, rope.cosines, rope.sines);
                kv_store(dims, block, 0, position, h, head_buf);
                kv_store(dims, block, 1, position, h, v + at);
            }
        }
    }
    return QEP_OK;
}

/* out = softmax(q . K / sqrt(head_dim)) V over positions 0..position. scores: position + 1 floats,
 * kv: head_dim floats. */
static void attend_head(const struct qep_attention_dims *dims, void *const *slot_blocks,
                        int32_t position, int32_t kv_head, const float *q, float *scores, float *kv,
                        float *out) {
    float scale = 1.0f / sqrtf((float)dims->head_dim), max = -INFINITY, sum = 0.0f;
    for (int32_t p = 0; p <= position; p++) {
        kv_load(dims, slot_blocks[p / QEP_KV_BLOCK], 0, p, kv_head, kv);
        scores[p] = ref_dot(q, kv, dims->head_dim) * scale;
        max = scores[p] > max ? scores[p] : max;
    }
    for (int32_t p = 0; p <= position; p++) {
        scores[p] = qep_expf(scores[p] - max);
        sum += scores[p];
    }
    memset(out, 0, (size_t)dims->head_dim * sizeof *out);
    for (int32_t p = 0; p <= position; p++) {
        kv_load(dims, slot_blocks[p / QEP_KV_BLOCK], 1, p, kv_head, kv);
        float weight = scores[p] / sum;
        for (int32_t i = 0; i < dims->head_dim; i++)
            out[i] += weight * kv[i];
    }
}

enum qep_status ref_attention(struct qep_backend *be, const struct qep_attention_dims *dims,
                              const struct qep_batch *batch, struct qep_rows_out out,
                              const float *qg, const float *q_norm, void *const *blocks) {
    struct rope_row rope;
    float *q = NULL;
    size_t head_dim = (size_t)dims->head_dim, num_heads = (size_t)dims->num_heads;
    size_t num_scores = (size_t)dims->max_blocks * QEP_KV_BLOCK;
    QEP_TRY(ref_scratch(be, 2 * head_dim + num_scores, &q));
    rope_row_init(&rope, dims);
    for (int32_t s = 0; s < batch->num_spans; s++) {
        const struct qep_span *span = &batch->spans[s];
        void *const *slot_blocks = blocks + span->slot * (ptrdiff_t)dims->max_blocks;
        for (int32_t i = 0; i < span->num_rows; i++) {
            int32_t position = span->position + i;
            qep_rope_angles(rope.freq, dims->rotary_dim / 2, position, rope.cosines, rope.sines);
            for (size_t h = 0; h < num_heads; h++) {
                size_t at = ((size_t)(span->row0 + i) * num_heads + h) * head_dim;
                const float *gate = qg + 2 * at + head_dim;
                int32_t kv_head = (int32_t)h / (dims->num_heads / dims->num_kv_heads);
                norm_and_rotate(dims, q, qg + 2 * at, q_norm, rope.cosines, rope.sines);
                attend_head(dims, slot_blocks, position, kv_head, q, q + 2 * head_dim, q + head_dim,
                            out.f32 + at);
                for (size_t c = 0; c < head_dim; c++)
                    out.f32[at + c] *= qep_sigmoidf(gate[c]);
            }
        }
    }
    return ref_finish_rows(be, &out, batch->num_rows, dims->num_heads * dims->head_dim);
}
