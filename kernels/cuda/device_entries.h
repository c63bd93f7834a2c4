/* The entries of the device table (device_ops.h), by file. */
#ifndef QEP_KERNELS_CUDA_DEVICE_ENTRIES_H
#define QEP_KERNELS_CUDA_DEVICE_ENTRIES_H

#include "kernels/device_ops.h"

#ifdef __cplusplus
extern "C" {
#endif

/* deltanet.c */
enum qep_status cuda_delta_decode(struct qep_backend *be, const struct qep_delta_dims *dims,
                                  const struct qep_batch *batch, struct qep_rows_out out,
                                  const struct qep_delta_decode_args *args);
/* weight.c, need.c */
uint64_t cuda_weight_bytes(const struct qep_backend *be, const struct qep_weight_dims *dims,
                           uint64_t *loading);
uint64_t cuda_workspace_bytes(const struct qep_backend *be, const struct qep_device_load *load);
/* experts.c */
enum qep_status cuda_expert_set_create(struct qep_backend *be,
                                       const struct qep_weight *const *gate_up,
                                       const struct qep_weight *const *down, int32_t num,
                                       struct qep_expert_set **out);
void cuda_expert_set_destroy(struct qep_backend *be, struct qep_expert_set *set);
enum qep_status cuda_routed(struct qep_backend *be, const struct qep_routed_args *args, float *out);
enum qep_status cuda_combine(struct qep_backend *be, const struct qep_combine_args *args,
                             float *out);
enum qep_status cuda_route_lists(struct qep_backend *be, const struct qep_topk *topk, int32_t n,
                                 const int32_t *expert_rank, int32_t num_ranks, int32_t *rows,
                                 int32_t *positions, int32_t *counts);
enum qep_status cuda_pack(struct qep_backend *be, void *packets, const void *act, size_t row_bytes,
                          const struct qep_topk *topk, const int32_t *list, int32_t num);
enum qep_status cuda_gather_rows(struct qep_backend *be, void *out, const void *rows, size_t bytes,
                                 const int32_t *list, int32_t num);
/* sample.c */
enum qep_status cuda_mark_seen(struct qep_backend *be, uint8_t *seen, int32_t slot,
                               int32_t vocab_size, const int32_t *ids, int32_t n, uint8_t bits);
enum qep_status cuda_sample_candidates(struct qep_backend *be, struct qep_row_candidates *out,
                                       const float *logits, int32_t n, int32_t num_vocab,
                                       int32_t first_id, int32_t vocab_size, int32_t num_ids,
                                       const uint8_t *allowed, const uint8_t *seen,
                                       const struct qep_device_draw *draws);
enum qep_status cuda_sample_final(struct qep_backend *be, int32_t *tokens,
                                  const struct qep_row_candidates *candidates, int32_t num_ranks,
                                  int32_t n, int32_t vocab_size, int32_t num_ids, uint8_t *seen,
                                  const struct qep_device_draw *draws);
enum qep_status cuda_advance(struct qep_backend *be, struct qep_span *spans,
                             struct qep_device_draw *draws, int32_t *ids, const int32_t *tokens,
                             int32_t n);
/* graph.c */
enum qep_status cuda_host_alloc(struct qep_backend *be, size_t bytes, void **host);
void cuda_host_free(struct qep_backend *be, void *host);
enum qep_status cuda_event_create(struct qep_backend *be, struct qep_event **out);
void cuda_event_destroy(struct qep_backend *be, struct qep_event *event);
enum qep_status cuda_download_async(struct qep_backend *be, void *pinned, const void *dev,
                                    size_t bytes, struct qep_event *done);
enum qep_status cuda_event_wait(struct qep_backend *be, struct qep_event *event);
enum qep_status cuda_capture_begin(struct qep_backend *be);
enum qep_status cuda_capture_end(struct qep_backend *be, struct qep_graph **out);
enum qep_status cuda_graph_launch(struct qep_backend *be, struct qep_graph *graph);
void cuda_graph_destroy(struct qep_backend *be, struct qep_graph *graph);
/* profile.c */
enum qep_status cuda_profile_begin(struct qep_backend *be);
enum qep_status cuda_profile_end(struct qep_backend *be, struct qep_launch_time **times,
                                 size_t *num);

#ifdef __cplusplus
}
#endif
#endif
