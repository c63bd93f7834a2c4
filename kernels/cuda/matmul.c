/* Which kernel a matmul takes. */
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/matmul.h"

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

/* Prefill on F32 activations and BF16 weights: three bf16 matmuls in one. */
static enum qep_status matmul_split(struct cuda_backend *be, const struct cuda_matmul *job) {
    size_t stride = qep_act_row_bytes(QEP_ACT_BF16, job->shape.cols),
           rows = (size_t)job->shape.rows;
    size_t most = 3 * (size_t)(job->n < SPLIT_ROWS ? job->n : SPLIT_ROWS);
    void *parts = NULL;
    QEP_TRY(cuda_reserve(be, CUDA_WS_MATMUL, most * (stride + rows * sizeof(float)), &parts));
    float *sums = (float *)(void *)((char *)parts + most * stride);
    for (int32_t first = 0; first < job->n; first += SPLIT_ROWS) {
        int32_t n = job->n - first < SPLIT_ROWS ? job->n - first : SPLIT_ROWS;
        struct cuda_matmul part = *job;
        const char *act = (const char *)job->act + (size_t)first * job->row_stride;
        part.act = parts;
        part.row_stride = stride;
        part.n = 3 * n;
        part.out = sums;
        QEP_TRY(cuda_check(
            cuda_launch_split(be->stream, act, job->row_stride, n, job->shape.cols, parts, stride),
            "matmul"));
        QEP_TRY(cuda_check(cuda_launch_matmul_prefill(be->stream, &part), "matmul"));
        QEP_TRY(cuda_check(
            cuda_launch_join(be->stream, sums, n, job->shape.rows, job->out + (size_t)first * rows),
            "matmul"));
    }
    return QEP_OK;
}

enum qep_status cuda_matmul(struct qep_backend *be, float *out, const void *act, size_t row_stride,
                            enum qep_act_type type, const struct qep_weight *weight, int32_t n,
                            int32_t decode) {
    struct cuda_matmul job = {.shape = weight->shape,
                              .data = weight->data,
                              .scales = weight->scales,
                              .act = act,
                              .row_stride = row_stride,
                              .n = n,
                              .out = out,
                              .num_sms = cuda_backend_of(be)->num_sms};
    cudaStream_t stream = cuda_backend_of(be)->stream;
    assert(cuda_supports(be, weight->shape.type, type) && row_stride % 16 == 0);
    if (n == 0)
        return QEP_OK;
    if (!decode && type == QEP_ACT_F32 && weight->shape.type == QEP_WEIGHT_BF16)
        return matmul_split(cuda_backend_of(be), &job);
    if (type == QEP_ACT_F32 || weight->shape.type == QEP_WEIGHT_F32)
        return cuda_check(cuda_launch_matmul_f32(stream, &job, type), "matmul");
    return cuda_check(decode ? cuda_launch_matmul_decode(stream, &job)
                             : cuda_launch_matmul_prefill(stream, &job),
                      "matmul");
}
