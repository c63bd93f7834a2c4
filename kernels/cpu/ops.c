/* The table of one ISA level. */
#include "kernels/cpu/cpu.h"

const struct qep_backend_ops CPU(ops) = {
    .name = "cpu",
    .alloc = cpu_alloc,
    .free = cpu_free,
    .upload = cpu_upload,
    .download = cpu_download,
    .zero = cpu_zero,
    .sync = cpu_sync,
    .weight_create = cpu_weight_create,
    .weight_destroy = cpu_weight_destroy,
    .supports = cpu_supports,
    .embed = cpu_embed,
    .rms_norm = CPU(rms_norm),
    .act_convert = CPU(act_convert),
    .matmul = CPU(matmul),
    .swiglu = CPU(swiglu),
    .attention_kv = CPU(attention_kv),
    .attention = CPU(attention),
    .delta_conv = CPU(delta_conv),
    .delta = CPU(delta),
    .delta_norm = CPU(delta_norm),
    .router_topk = CPU(router_topk),
    .experts = CPU(experts),
    .tree_sum = CPU(tree_sum),
    .destroy = cpu_destroy,
};
