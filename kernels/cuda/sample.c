/* Sampling and step control: entries of the device table. */
#include "kernels/cuda/sample.h"

#include "kernels/cuda/device_entries.h"
#include "kernels/cuda/need.h"

#include <assert.h>

static int64_t divide_up(int64_t n, int64_t by) {
    return (n + by - 1) / by;
}

/* Cuts depend on the range alone. */
static enum qep_status make_shape(struct sample_shape *s, int32_t num_vocab, int32_t first_id,
                                  int32_t vocab_size, int32_t num_ids) {
    int64_t end = (int64_t)first_id + num_vocab, span;
    *s = (struct sample_shape){.num_vocab = num_vocab,
                               .first_id = first_id,
                               .vocab_size = vocab_size,
                               .num_ids = num_ids,
                               .chunk0 = first_id - first_id % SAMPLE_QUAD};
    s->end_id = (int32_t)(end < num_ids ? end : num_ids);
    span = s->end_id > s->chunk0 ? s->end_id - s->chunk0 : 1;
    int64_t units = divide_up(span, (int64_t)SAMPLE_TARGET_CHUNKS * SAMPLE_CHUNK_UNIT);
    s->chunk_units = (int32_t)(units < SAMPLE_MAX_UNITS ? units : SAMPLE_MAX_UNITS);
    int64_t chunks = divide_up(span, (int64_t)s->chunk_units * SAMPLE_CHUNK_UNIT);
    if (chunks > SAMPLE_MAX_CHUNKS)
        return qep_fail(QEP_ERR_UNAVAILABLE, "cuda: sampling from %lld ids of one rank, at most %d",
                        (long long)span, SAMPLE_MAX_CHUNKS * SAMPLE_MAX_UNITS * SAMPLE_CHUNK_UNIT);
    s->num_chunks = (int32_t)chunks;
    return QEP_OK;
}

static size_t list_bytes(const struct sample_shape *shape, int32_t n) {
    const struct sample_lists *lists = NULL;
    size_t count = (size_t)n * (size_t)shape->num_chunks, entries = count * QEP_SAMPLE_CANDIDATES;
    return entries * (sizeof *lists->keys + sizeof *lists->ids) +
           count * (sizeof *lists->weights + SAMPLE_INFO * sizeof *lists->info);
}

size_t cuda_sample_bytes(const struct qep_device_load *load) {
    struct sample_shape shape;
    if (load->sample_rows == 0 || make_shape(&shape, load->num_vocab, load->first_id,
                                             load->vocab_size, load->vocab_size) != QEP_OK)
        return 0;
    return list_bytes(&shape, load->sample_rows);
}

static enum qep_status reserve_lists(struct cuda_backend *cu, struct sample_lists *lists,
                                     const struct sample_shape *shape, int32_t n) {
    size_t count = (size_t)n * (size_t)shape->num_chunks, entries = count * QEP_SAMPLE_CANDIDATES;
    void *at = NULL;
    QEP_TRY(cuda_reserve(cu, CUDA_WS_SAMPLE, list_bytes(shape, n), &at));
    lists->keys = at;
    lists->weights = (double *)(void *)(lists->keys + entries);
    lists->ids = (int32_t *)(void *)(lists->weights + count);
    lists->info = lists->ids + entries;
    return QEP_OK;
}

enum qep_status cuda_sample_candidates(struct qep_backend *be, struct qep_row_candidates *out,
                                       const float *logits, int32_t n, int32_t num_vocab,
                                       int32_t first_id, int32_t vocab_size, int32_t num_ids,
                                       const uint8_t *allowed, const uint8_t *seen,
                                       const struct qep_device_draw *draws) {
    struct cuda_backend *cu = cuda_backend_of(be);
    struct sample_shape shape;
    struct sample_lists lists;
    assert(num_vocab >= 0 && first_id >= 0 && num_ids <= vocab_size &&
           num_vocab <= vocab_size - first_id);
    if (n == 0)
        return QEP_OK;
    QEP_TRY(make_shape(&shape, num_vocab, first_id, vocab_size, num_ids));
    QEP_TRY(reserve_lists(cu, &lists, &shape, n));
    QEP_TRY(cuda_check(
        cuda_launch_sample_chunks(&shape, &lists, logits, n, allowed, seen, draws, cu->stream),
        "sample_candidates"));
    return cuda_check(cuda_launch_sample_merge(&shape, &lists, out, n, draws, cu->stream),
                      "sample_candidates");
}

enum qep_status cuda_sample_final(struct qep_backend *be, int32_t *tokens,
                                  const struct qep_row_candidates *candidates, int32_t num_ranks,
                                  int32_t n, int32_t vocab_size, int32_t num_ids, uint8_t *seen,
                                  const struct qep_device_draw *draws) {
    if (n == 0)
        return QEP_OK;
    return cuda_check(cuda_launch_sample_final(tokens, candidates, num_ranks, n, vocab_size,
                                               num_ids, seen, draws, cuda_backend_of(be)->stream),
                      "sample_final");
}

enum qep_status cuda_mark_seen(struct qep_backend *be, uint8_t *seen, int32_t slot,
                               int32_t vocab_size, const int32_t *ids, int32_t n, uint8_t bits) {
    assert((uintptr_t)seen % sizeof(uint32_t) == 0 && slot >= 0);
    if (n == 0)
        return QEP_OK;
    return cuda_check(cuda_launch_mark_seen((uint32_t *)(void *)seen, slot, vocab_size, ids, n,
                                            bits, cuda_backend_of(be)->stream),
                      "mark_seen");
}

enum qep_status cuda_advance(struct qep_backend *be, struct qep_span *spans,
                             struct qep_device_draw *draws, int32_t *ids, const int32_t *tokens,
                             int32_t n) {
    if (n == 0)
        return QEP_OK;
    return cuda_check(
        cuda_launch_advance(spans, draws, ids, tokens, n, cuda_backend_of(be)->stream), "advance");
}
