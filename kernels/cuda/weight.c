/* Loading weights: the canonical form is uploaded in parts and repacked on the device. */
#include "kernels/cuda/weight.h"

#include "base/mem.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/device_entries.h"
#include "kernels/cuda/matmul.h"

#include <assert.h>
#include <stdlib.h>

/* Bytes of canonical rows on the device beside the packed form. */
enum { PART_BYTES = 8 << 20 };

static bool is_quantised(enum qep_weight_type type) {
    return type == QEP_WEIGHT_INT8 || type == QEP_WEIGHT_INT4;
}

static enum qep_status check_limits(const struct qep_host_weight *host) {
    /* Grids: one row of blocks per four tiles of 16 rows. */
    enum { MAX_DIM = 1 << 20 };
    if (host->rows < 1 || host->rows > MAX_DIM || host->cols < 1 || host->cols > MAX_DIM)
        return qep_fail(QEP_ERR_USAGE,
                        "a matrix of %lld x %lld: the cuda backend takes 1 to %d rows and columns",
                        (long long)host->rows, (long long)host->cols, MAX_DIM);
    if (is_quantised(host->type) && (host->group_size < 32 || host->group_size % 32 != 0))
        return qep_fail(QEP_ERR_USAGE,
                        "scale groups of %d columns: the cuda backend takes multiples of 32",
                        host->group_size);
    return QEP_OK;
}

static struct cuda_matrix shape_of(const struct qep_host_weight *host) {
    struct cuda_matrix m = {
        .type = host->type, .rows = (int32_t)host->rows, .cols = (int32_t)host->cols, .group32 = 1};
    m.half = (m.rows + 1) / 2;
    m.num_tiles = (m.half + CUDA_TILE_UNITS - 1) / CUDA_TILE_UNITS;
    m.num_blocks = (m.cols + CUDA_BLOCK_COLS - 1) / CUDA_BLOCK_COLS;
    if (is_quantised(host->type)) {
        int32_t num32 = (m.cols + 31) / 32;
        m.group32 = host->group_size / 32 < num32 ? host->group_size / 32 : num32;
        m.num_groups = (num32 + m.group32 - 1) / m.group32;
    }
    if (m.group32 > 1)
        m.group_magic =
            (uint32_t)(((UINT64_C(1) << 32) + (uint32_t)m.group32 - 1) / (uint32_t)m.group32);
    return m;
}

/* What one load needs: its source, the packed target, and room for one part. */
struct load_job {
    struct qep_backend *be;
    const struct qep_host_weight *host;
    struct qep_weight *weight;
    size_t row_bytes, row_scale_bytes; /* canonical */
    void *part, *scale_part;           /* dev */
    int32_t part_tiles;
};

/* Tiles of one part; *tile_bytes, *tile_scale_bytes: of a tile's canonical rows. */
static int32_t tiles_of_part(const struct cuda_matrix *m, size_t *tile_bytes,
                             size_t *tile_scale_bytes) {
    *tile_bytes = 2 * CUDA_TILE_UNITS * qep_weight_data_bytes(m->type, 1, m->cols);
    *tile_scale_bytes = 2 * CUDA_TILE_UNITS * (size_t)m->num_groups * sizeof(uint16_t);
    size_t tiles = PART_BYTES / *tile_bytes;
    return tiles < 1 ? 1 : tiles < (size_t)m->num_tiles ? (int32_t)tiles : m->num_tiles;
}

uint64_t cuda_weight_bytes(const struct qep_backend *be, const struct qep_weight_dims *dims,
                           uint64_t *loading) {
    const struct qep_host_weight host = {
        .type = dims->type, .rows = dims->rows, .cols = dims->cols, .group_size = dims->group_size};
    size_t tile_bytes, tile_scale_bytes;
    *loading = 0;
    if (check_limits(&host) != QEP_OK)
        return 0; /* refused by name when it is loaded */
    const struct cuda_matrix m = shape_of(&host);
    size_t tiles = (size_t)tiles_of_part(&m, &tile_bytes, &tile_scale_bytes);
    uint64_t bytes = cuda_block_bytes(be, (size_t)m.num_tiles * cuda_tile_bytes(&m));
    *loading = cuda_block_bytes(be, tiles * tile_bytes);
    if (m.num_groups == 0)
        return bytes;
    *loading += cuda_block_bytes(be, tiles * tile_scale_bytes);
    return bytes + cuda_block_bytes(be, (size_t)m.num_tiles * cuda_tile_scale_bytes(&m));
}

/* Both halves' rows of the part, one after the other. */
static enum qep_status upload_rows(const struct load_job *job, const struct cuda_repack_part *part,
                                   const void *from, size_t row_bytes, void *to) {
    const char *rows = from;
    size_t first = (size_t)part->tile0 * CUDA_TILE_UNITS;
    size_t second = first + (size_t)job->weight->shape.half;
    size_t first_bytes = (size_t)part->num_first * row_bytes;
    QEP_TRY(cuda_upload(job->be, to, rows + first * row_bytes, first_bytes));
    if (part->num_second == 0)
        return QEP_OK;
    return cuda_upload(job->be, (char *)to + first_bytes, rows + second * row_bytes,
                       (size_t)part->num_second * row_bytes);
}

static int32_t rows_from(int32_t first, int32_t count, int32_t end) {
    int32_t rows = end - first;
    return rows < 0 ? 0 : rows < count ? rows : count;
}

static enum qep_status load_part(const struct load_job *job, int32_t tile0) {
    struct cuda_backend *be = cuda_backend_of(job->be);
    const struct cuda_matrix *m = &job->weight->shape;
    int32_t num_tiles =
        m->num_tiles - tile0 < job->part_tiles ? m->num_tiles - tile0 : job->part_tiles;
    int32_t unit0 = tile0 * CUDA_TILE_UNITS, units = num_tiles * CUDA_TILE_UNITS;
    struct cuda_repack_part part = {
        .tile0 = tile0,
        .num_tiles = num_tiles,
        .num_first = rows_from(unit0, units, m->half),
        .num_second = rows_from(unit0, units, m->rows - m->half),
        .planes = job->host->planes,
    };
    size_t plane = (size_t)m->rows * (size_t)m->cols;
    size_t part_plane = (size_t)(part.num_first + part.num_second) * (size_t)m->cols;
    cudaError_t error;
    QEP_TRY(upload_rows(job, &part, job->host->data, job->row_bytes, job->part));
    if (part.planes)
        QEP_TRY(upload_rows(job, &part, (const char *)job->host->data + plane, job->row_bytes,
                            (char *)job->part + part_plane));
    if (m->num_groups > 0)
        QEP_TRY(upload_rows(job, &part, job->host->scales, job->row_scale_bytes, job->scale_part));
    pthread_mutex_lock(&be->lock);
    error = cuda_launch_repack(be->stream, m, &part, job->part, job->weight->data);
    if (error == cudaSuccess && m->num_groups > 0)
        error =
            cuda_launch_repack_scales(be->stream, m, &part, job->scale_part, job->weight->scales);
    pthread_mutex_unlock(&be->lock);
    return cuda_check(error, "weight_create");
}

static enum qep_status load(struct load_job *job) {
    const struct cuda_matrix *m = &job->weight->shape;
    enum qep_status st = QEP_OK;
    job->row_bytes = qep_weight_data_bytes(m->type, 1, m->cols);
    job->row_scale_bytes = (size_t)m->num_groups * sizeof(uint16_t);
    size_t tile_bytes, tile_scale_bytes;
    job->part_tiles = tiles_of_part(m, &tile_bytes, &tile_scale_bytes);
    size_t tiles = (size_t)job->part_tiles;
    if (job->host->planes) /* each of them has rows of half the bytes */
        job->row_bytes /= 2;
    QEP_TRY_GOTO(st, done, cuda_alloc(job->be, tiles * tile_bytes, "weight upload", &job->part));
    if (m->num_groups > 0)
        QEP_TRY_GOTO(
            st, done,
            cuda_alloc(job->be, tiles * tile_scale_bytes, "weight upload", &job->scale_part));
    for (int32_t tile = 0; tile < m->num_tiles; tile += job->part_tiles)
        QEP_TRY_GOTO(st, done, load_part(job, tile));
done:
    cuda_free(job->be, job->part);
    cuda_free(job->be, job->scale_part);
    return st;
}

enum qep_status cuda_weight_create(struct qep_backend *be, const struct qep_host_weight *host,
                                   struct qep_weight **out) {
    void *mem = NULL;
    enum qep_status st = QEP_OK;
    *out = NULL;
    QEP_TRY(check_limits(host));
    QEP_TRY(qep_calloc(1, sizeof(struct qep_weight), "weight", &mem));
    struct qep_weight *weight = mem;
    weight->shape = shape_of(host);
    const struct cuda_matrix *m = &weight->shape;
    struct load_job job = {.be = be, .host = host, .weight = weight};
    QEP_TRY_GOTO(
        st, done,
        cuda_alloc(be, (size_t)m->num_tiles * cuda_tile_bytes(m), "weight", &weight->data));
    if (m->num_groups > 0)
        QEP_TRY_GOTO(st, done,
                     cuda_alloc(be, (size_t)m->num_tiles * cuda_tile_scale_bytes(m),
                                "weight scales", &weight->scales));
    QEP_TRY_GOTO(st, done, load(&job));
    *out = weight;
    weight = NULL;
done:
    cuda_weight_destroy(be, weight);
    return st;
}

void cuda_weight_destroy(struct qep_backend *be, struct qep_weight *weight) {
    if (weight == NULL)
        return;
    cuda_free(be, weight->data);
    cuda_free(be, weight->scales);
    free(weight);
}

enum qep_status cuda_embed(struct qep_backend *be, float *out, const struct qep_weight *weight,
                           const int32_t *ids, int32_t n) {
    if (n == 0)
        return QEP_OK;
    return cuda_check(cuda_launch_embed(cuda_backend_of(be)->stream, &weight->shape, weight->data,
                                        weight->scales, ids, n, out),
                      "embed");
}
