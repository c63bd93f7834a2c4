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

enum qep_status cuda_matmul(struct qep_backend *be, float *out, const void *act, size_t row_stride,
                            enum qep_act_type type, const struct qep_weight *weight, int32_t n,
                            int32_t decode) {
    struct cuda_matmul job = {.shape = weight->shape,
                              .data = weight->data,
                              .scales = weight->scales,
                              .act = act,
                              .row_stride = row_stride,
                              .n = n,
                              .out = out};
    cudaStream_t stream = cuda_backend_of(be)->stream;
    assert(cuda_supports(be, weight->shape.type, type) && row_stride % 16 == 0);
    if (n == 0)
        return QEP_OK;
    if (type == QEP_ACT_F32 || weight->shape.type == QEP_WEIGHT_F32)
        return cuda_check(cuda_launch_matmul_f32(stream, &job, type), "matmul");
    return cuda_check(decode ? cuda_launch_matmul_decode(stream, &job)
                             : cuda_launch_matmul_prefill(stream, &job),
                      "matmul");
}
