/* Which kernels the products of a matmul take. */
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/matmul.h"
#include "kernels/cuda/need.h"

#include <assert.h>

bool cuda_supports(const struct qep_backend *be, enum qep_weight_type weight,
                   enum qep_act_type act) {
    (void)be;
    if (act == QEP_ACT_F32)
        return weight == QEP_WEIGHT_BF16 || weight == QEP_WEIGHT_F32;
    return act == QEP_ACT_BF16;
}

/* Rows whose parts are kept at once. */
enum { SPLIT_ROWS = 2048 };

static size_t split_rows(int32_t n) {
    return 3 * (size_t)(n < SPLIT_ROWS ? n : SPLIT_ROWS);
}

size_t cuda_split_bytes(int32_t rows, int32_t cols, int32_t n) {
    return split_rows(n) * (qep_act_row_bytes(QEP_ACT_BF16, cols) + (size_t)rows * sizeof(float));
}

/* Prefill on F32 activations and BF16 weights: three bf16 matmuls in one. */
static enum qep_status matmul_split(struct cuda_backend *be, const struct cuda_matmul *job) {
    int32_t cols = job->products[0].weight->shape.cols, widest = 0;
    for (int32_t p = 0; p < job->num; p++) {
        int32_t rows = job->products[p].weight->shape.rows;
        widest = rows > widest ? rows : widest;
    }
    size_t stride = qep_act_row_bytes(QEP_ACT_BF16, cols);
    void *parts = NULL;
    QEP_TRY(cuda_reserve(be, CUDA_WS_MATMUL, cuda_split_bytes(widest, cols, job->n), &parts));
    float *sums = (float *)(void *)((char *)parts + split_rows(job->n) * stride);
    for (int32_t first = 0; first < job->n; first += SPLIT_ROWS) {
        int32_t n = job->n - first < SPLIT_ROWS ? job->n - first : SPLIT_ROWS;
        const char *act = (const char *)job->act + (size_t)first * job->row_stride;
        QEP_TRY(cuda_check(
            cuda_launch_split(be->stream, act, job->row_stride, n, cols, parts, stride), "matmul"));
        for (int32_t p = 0; p < job->num; p++) {
            struct qep_product three = {.weight = job->products[p].weight, .out = sums};
            struct cuda_matmul part = {.products = &three,
                                       .num = 1,
                                       .act = parts,
                                       .row_stride = stride,
                                       .n = 3 * n,
                                       .num_sms = job->num_sms};
            QEP_TRY(cuda_check(cuda_launch_matmul_prefill(be->stream, &part), "matmul"));
            QEP_TRY(cuda_check(cuda_launch_join(be->stream, sums, first, n, &job->products[p]),
                               "matmul"));
        }
    }
    return QEP_OK;
}

static enum qep_status run_job(struct cuda_backend *be, const struct cuda_matmul *job,
                               enum qep_act_type act_type, bool decode) {
    enum qep_weight_type type = job->products[0].weight->shape.type;
    if (!decode && act_type == QEP_ACT_F32 && type == QEP_WEIGHT_BF16)
        return matmul_split(be, job);
    if (act_type == QEP_ACT_F32 || type == QEP_WEIGHT_F32)
        return cuda_check(cuda_launch_matmul_f32(be->stream, job, act_type), "matmul");
    return cuda_check(decode ? cuda_launch_matmul_decode(be->stream, job)
                             : cuda_launch_matmul_prefill(be->stream, job),
                      "matmul");
}

static bool alike(const struct qep_product *a, const struct qep_product *b) {
    const struct cuda_matrix *first = &a->weight->shape, *second = &b->weight->shape;
    return first->type == second->type && first->group32 == second->group32;
}

/* Products that can share launches are a job, wherever in the list they are. */
enum qep_status cuda_matmul(struct qep_backend *be, const struct qep_product *products, int32_t num,
                            const void *act, size_t row_stride, enum qep_act_type type, int32_t n,
                            int32_t decode) {
    bool done[QEP_MAX_PRODUCTS] = {false};
    assert(num >= 1 && num <= QEP_MAX_PRODUCTS && row_stride % 16 == 0);
    for (int32_t first = 0; n > 0 && first < num; first++) {
        struct qep_product same[QEP_MAX_PRODUCTS];
        struct cuda_matmul job = {.products = same,
                                  .act = act,
                                  .row_stride = row_stride,
                                  .n = n,
                                  .num_sms = cuda_backend_of(be)->num_sms};
        for (int32_t p = first; p < num; p++) {
            assert(cuda_supports(be, products[p].weight->shape.type, type) &&
                   products[p].weight->shape.cols == products[0].weight->shape.cols);
            if (done[p] || !alike(&products[first], &products[p]))
                continue;
            done[p] = true;
            same[job.num++] = products[p];
        }
        if (job.num > 0)
            QEP_TRY(run_job(cuda_backend_of(be), &job, type, decode != 0));
    }
    return QEP_OK;
}
