/* Bytes that ops will ask of their workspaces, each computed beside the op that asks. */
#ifndef QEP_KERNELS_CUDA_NEED_H
#define QEP_KERNELS_CUDA_NEED_H

#include "kernels/device_ops.h"

#ifdef __cplusplus
extern "C" {
#endif

struct cuda_routed_bytes {
    size_t map, out, hidden; /* workspaces */
    size_t table;            /* of a layer's expert set */
};

/* matmul.c: a [rows, cols] matrix of BF16 and n rows of F32 activations */
size_t cuda_split_bytes(int32_t rows, int32_t cols, int32_t n);
/* experts.c */
void cuda_routed_bytes(const struct qep_device_load *load, int32_t num_rows,
                       struct cuda_routed_bytes *out);
/* attention.c */
size_t cuda_attention_decode_bytes(const struct qep_attention_dims *dims, int32_t num_rows,
                                   size_t *counter_bytes);
/* deltanet.c: prefill of num_rows rows in num_spans spans */
size_t cuda_delta_bytes(const struct qep_delta_dims *dims, int32_t num_rows, int32_t num_spans);
/* sample.c */
size_t cuda_sample_bytes(const struct qep_device_load *load);

#ifdef __cplusplus
}
#endif
#endif
