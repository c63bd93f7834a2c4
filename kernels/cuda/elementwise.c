/* Table entries of the row-wise and element-wise ops and the router. */
#include "kernels/cuda/elementwise.h"

#include "kernels/device_ops.h"

#include <assert.h>

void cuda_check_rows(const struct qep_rows_out *out, int32_t cols) {
    (void)cols; /* without asserts */
    assert(out->act == NULL || (out->act_stride % 16 == 0 &&
                                out->act_stride >= qep_act_row_bytes(out->act_type, cols)));
    assert(out->f32 != NULL || (out->act != NULL && out->act_type == QEP_ACT_BF16));
    (void)out;
}

enum qep_status cuda_finish_rows(struct qep_backend *be, const struct qep_rows_out *out, int32_t n,
                                 int32_t cols) {
    if (out->act == NULL || out->act_type == QEP_ACT_BF16)
        return QEP_OK;
    return cuda_act_convert(be, out->act, out->act_stride, out->act_type, out->f32, n, cols);
}

enum qep_status cuda_rms_norm(struct qep_backend *be, struct qep_rows_out out, const float *x,
                              const float *w, int32_t n, int32_t cols, float eps) {
    if (n == 0)
        return QEP_OK;
    cuda_check_rows(&out, cols);
    QEP_TRY(cuda_check(cuda_launch_rms_norm(cuda_backend_of(be)->stream, &out, x, w, n, cols, eps),
                       "rms_norm"));
    return cuda_finish_rows(be, &out, n, cols);
}

enum qep_status cuda_act_convert(struct qep_backend *be, void *out, size_t row_stride,
                                 enum qep_act_type type, const float *x, int32_t n, int32_t cols) {
    cudaStream_t stream = cuda_backend_of(be)->stream;
    cudaError_t error;
    if (n == 0)
        return QEP_OK;
    assert(row_stride % 16 == 0 && row_stride >= qep_act_row_bytes(type, cols));
    if (type == QEP_ACT_F32)
        error = cuda_launch_act_f32(stream, out, row_stride, x, n, cols);
    else if (type == QEP_ACT_BF16)
        error = cuda_launch_act_bf16(stream, out, row_stride, x, n, cols);
    else
        error = cuda_launch_act_int8(stream, out, row_stride, x, n, cols);
    return cuda_check(error, "act_convert");
}

enum qep_status cuda_swiglu(struct qep_backend *be, struct qep_rows_out out, const float *gate,
                            const float *up, int32_t n, int32_t cols) {
    if (n == 0)
        return QEP_OK;
    cuda_check_rows(&out, cols);
    QEP_TRY(cuda_check(cuda_launch_swiglu(cuda_backend_of(be)->stream, &out, gate, up, n, cols),
                       "swiglu"));
    return cuda_finish_rows(be, &out, n, cols);
}

enum qep_status cuda_router_topk(struct qep_backend *be, int32_t *topk_idx, float *topk_weights,
                                 const float *logits, int32_t n, int32_t num_experts, int32_t top_k,
                                 const struct qep_span *dev_spans) {
    if (n == 0)
        return QEP_OK;
    assert(num_experts <= QEP_DEVICE_MAX_EXPERTS && top_k <= QEP_DEVICE_MAX_TOP_K &&
           top_k <= num_experts);
    return cuda_check(cuda_launch_router_topk(cuda_backend_of(be)->stream, topk_idx, topk_weights,
                                              logits, n, num_experts, top_k, dev_spans),
                      "router_topk");
}
