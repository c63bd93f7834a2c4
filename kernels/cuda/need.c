#include "kernels/cuda/need.h"

#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/device_entries.h"

static uint64_t grown(const struct qep_backend *be, size_t bytes) {
    return bytes == 0 ? 0 : cuda_block_bytes(be, cuda_workspace_grown(bytes));
}

static size_t larger(size_t a, size_t b) {
    return a > b ? a : b;
}

static uint64_t expert_bytes(const struct qep_backend *be, const struct qep_device_load *load) {
    struct cuda_routed_bytes prefill, decode;
    if (load->num_local_experts == 0)
        return 0;
    cuda_routed_bytes(load, load->expert_prefill_rows, &prefill);
    cuda_routed_bytes(load, load->expert_decode_rows, &decode);
    return grown(be, larger(prefill.map, decode.map)) + grown(be, larger(prefill.out, decode.out)) +
           grown(be, larger(prefill.hidden, decode.hidden)) +
           (uint64_t)load->num_expert_layers * cuda_block_bytes(be, prefill.table);
}

uint64_t cuda_workspace_bytes(const struct qep_backend *be, const struct qep_device_load *load) {
    uint64_t bytes = expert_bytes(be, load) + grown(be, cuda_sample_bytes(load));
    size_t counters = 0;
    if (load->f32_rows > 0)
        bytes += grown(be, cuda_split_bytes(load->f32_rows, load->f32_cols, load->prefill_rows));
    if (load->attention != NULL) {
        bytes +=
            grown(be, cuda_attention_decode_bytes(load->attention, load->decode_rows, &counters));
        bytes += grown(be, counters);
    }
    if (load->delta != NULL)
        bytes += grown(be, cuda_delta_bytes(load->delta, load->prefill_rows, load->prefill_spans));
    return bytes;
}
