/* Sampling on the device: what its entries (sample.c) and kernels share. Three launches: chunks of
 * a range each find their own best (sample_chunk.cu), a block per row makes one list of them
 * (sample_merge.cu), and a block per row draws from the lists of all ranges (sample_final.cu). */
#ifndef QEP_KERNELS_CUDA_SAMPLE_H
#define QEP_KERNELS_CUDA_SAMPLE_H

#include "kernels/cuda/cuda_backend.h"
#include "kernels/device_ops.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    SAMPLE_THREADS = 256,
    SAMPLE_QUAD = 4, /* ids that share one Philox block; chunks begin at multiples of it */
    SAMPLE_CHUNK_UNIT = SAMPLE_QUAD * SAMPLE_THREADS,
    SAMPLE_MAX_UNITS = 4,     /* of a chunk */
    SAMPLE_MAX_CHUNKS = 1024, /* of a range */
    SAMPLE_TARGET_CHUNKS = 128
};

/* The ids [first_id, end_id) that the logits of one call cover, cut in chunks. */
struct sample_shape {
    int32_t num_vocab; /* logits of one row */
    int32_t first_id, end_id;
    int32_t vocab_size; /* flags of one slot in seen */
    int32_t num_ids;
    int32_t chunk0; /* first id of chunk 0: first_id rounded down to a quad */
    int32_t chunk_units, num_chunks;
};

/* What the chunks found, chunk c of row r at index r * num_chunks + c. */
struct sample_lists {
    uint64_t *keys;  /* [.., QEP_SAMPLE_CANDIDATES] order keys, descending */
    int32_t *ids;    /* [.., QEP_SAMPLE_CANDIDATES] */
    double *weights; /* [..] sum of exp relative to the chunk's largest value */
    int32_t *info;   /* [.., SAMPLE_INFO] */
};
enum {
    SAMPLE_NUM,      /* entries in the list */
    SAMPLE_DRAWABLE, /* ids of the chunk that can be drawn */
    SAMPLE_FLAGS,
    SAMPLE_INFO
};
enum { SAMPLE_NAN = 1, SAMPLE_TIED = 2, SAMPLE_CLOSE = 4 };

cudaError_t cuda_launch_sample_chunks(const struct sample_shape *shape,
                                      const struct sample_lists *lists, const float *logits,
                                      int32_t n, const uint8_t *allowed, const uint8_t *seen,
                                      const struct qep_device_draw *draws, cudaStream_t stream);
cudaError_t cuda_launch_sample_merge(const struct sample_shape *shape,
                                     const struct sample_lists *lists,
                                     struct qep_row_candidates *out, int32_t n,
                                     const struct qep_device_draw *draws, cudaStream_t stream);
cudaError_t cuda_launch_sample_final(int32_t *tokens, const struct qep_row_candidates *candidates,
                                     int32_t num_ranks, int32_t n, int32_t vocab_size,
                                     int32_t num_ids, uint8_t *seen,
                                     const struct qep_device_draw *draws, cudaStream_t stream);
/* step.cu; seen_words: seen as words of 4 bytes. */
cudaError_t cuda_launch_mark_seen(uint32_t *seen_words, int32_t slot, int32_t vocab_size,
                                  const int32_t *ids, int32_t n, uint8_t bits, cudaStream_t stream);
cudaError_t cuda_launch_advance(struct qep_span *spans, struct qep_device_draw *draws, int32_t *ids,
                                const int32_t *tokens, int32_t n, cudaStream_t stream);

#ifdef __cplusplus
}
#endif
#endif
