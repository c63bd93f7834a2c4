/* Routed experts: `routed` makes its work lists on the device, `experts` brings them from the host;
 * the kernels are the same. */
#include "kernels/cuda/experts.h"

#include "base/mem.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/device_entries.h"
#include "kernels/cuda/need.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

/* Outputs of items kept at once by `routed`: more rows than that go in parts. */
enum { MAX_ITEM_BYTES = 256 << 20 };

struct qep_expert_set {
    struct cuda_matrix gate_up, down;
    int32_t num;
    struct cuda_expert *table; /* dev [num] */
};

static bool same_shape(const struct cuda_matrix *a, const struct cuda_matrix *b) {
    return a->type == b->type && a->rows == b->rows && a->cols == b->cols &&
           a->group32 == b->group32;
}

static enum qep_status check_expert(const struct qep_weight *gate_up, const struct qep_weight *down,
                                    const struct cuda_matrix *gate_up0,
                                    const struct cuda_matrix *down0) {
    if (gate_up->shape.type == QEP_WEIGHT_F32 || down->shape.type == QEP_WEIGHT_F32)
        return qep_fail(QEP_ERR_USAGE, "the cuda backend takes no fp32 experts");
    if (!same_shape(&gate_up->shape, gate_up0) || !same_shape(&down->shape, down0))
        return qep_fail(QEP_ERR_USAGE,
                        "the cuda backend takes experts of one type and scale group per layer");
    return QEP_OK;
}

static struct cuda_expert entry_of(const struct qep_weight *gate_up,
                                   const struct qep_weight *down) {
    return (struct cuda_expert){gate_up->data, gate_up->scales, down->data, down->scales};
}

enum qep_status cuda_expert_set_create(struct qep_backend *be,
                                       const struct qep_weight *const *gate_up,
                                       const struct qep_weight *const *down, int32_t num,
                                       struct qep_expert_set **out) {
    void *mem = NULL, *host = NULL, *dev = NULL;
    enum qep_status st = QEP_OK;
    size_t bytes = (size_t)num * sizeof(struct cuda_expert);
    *out = NULL;
    assert(num > 0);
    QEP_TRY(qep_calloc(1, sizeof(struct qep_expert_set), "expert table", &mem));
    struct qep_expert_set *set = mem;
    set->gate_up = gate_up[0]->shape;
    set->down = down[0]->shape;
    set->num = num;
    QEP_TRY_GOTO(st, done, qep_alloc((size_t)num, sizeof(struct cuda_expert), "experts", &host));
    for (int32_t e = 0; e < num; e++) {
        QEP_TRY_GOTO(st, done, check_expert(gate_up[e], down[e], &set->gate_up, &set->down));
        ((struct cuda_expert *)host)[e] = entry_of(gate_up[e], down[e]);
    }
    QEP_TRY_GOTO(st, done, cuda_alloc(be, bytes, "expert table", &dev));
    set->table = dev;
    QEP_TRY_GOTO(st, done, cuda_upload(be, dev, host, bytes));
    *out = set;
    set = NULL;
done:
    free(host);
    cuda_expert_set_destroy(be, set);
    return st;
}

void cuda_expert_set_destroy(struct qep_backend *be, struct qep_expert_set *set) {
    if (set == NULL)
        return;
    cuda_free(be, set->table);
    free(set);
}

/* ---- work lists ---- */

static size_t padded(size_t bytes) {
    return (bytes + 255) / 256 * 256;
}

/* Takes `count` words from the block at *at; with base NULL only counts. */
static void *take(char *base, size_t *at, size_t count) {
    void *part = base == NULL ? NULL : base + *at;
    *at += padded(count * 4);
    return part;
}

/* Columns of a prefill tile: about the items an expert gets. */
static int32_t tile_cols_of(size_t items, int32_t num_experts) {
    size_t each = items / (size_t)num_experts;
    return each > 64 ? 128 : each > 32 ? 64 : 32;
}

/* Lays the map out in `base` (NULL: only its size), for `pairs` pairs of rows and experts, of which
 * every one may be an item here. num_shares: parts among which the pairs are spread evenly, for the
 * size of tiles. */
static size_t lay_out(struct cuda_expert_map *map, char *base, int32_t num_experts, size_t pairs,
                      int32_t num_rows, int32_t num_shares) {
    size_t experts = (size_t)num_experts, active = pairs < experts ? pairs : experts, at = 0;
    size_t row_blocks = ((size_t)num_rows + CUDA_ROUTE_ROWS - 1) / CUDA_ROUTE_ROWS;
    map->num_experts = num_experts;
    map->tile_cols = tile_cols_of(pairs, num_shares);
    map->max_active = (int32_t)active;
    map->max_items = (int32_t)pairs;
    map->max_tiles = (int32_t)(pairs / (size_t)map->tile_cols + active);
    map->counts = take(base, &at, 2);
    map->item_begin = take(base, &at, experts + 1);
    map->active = take(base, &at, active);
    map->tile_expert = take(base, &at, (size_t)map->max_tiles);
    map->tile_begin = take(base, &at, (size_t)map->max_tiles);
    map->item_row = take(base, &at, pairs);
    map->item_weight = take(base, &at, pairs);
    map->pair_item = take(base, &at, pairs);
    map->block_count = take(base, &at, row_blocks * experts);
    return at;
}

static enum qep_status run_job(struct cuda_backend *be, struct cuda_expert_job *job,
                               int32_t decode) {
    job->hidden_stride = qep_act_row_bytes(QEP_ACT_BF16, job->down.cols);
    QEP_TRY(cuda_reserve(be, CUDA_WS_EXPERT_HIDDEN, (size_t)job->map.max_items * job->hidden_stride,
                         &job->hidden));
    return cuda_check(decode ? cuda_launch_experts_decode(be->stream, job)
                             : cuda_launch_experts_prefill(be->stream, job),
                      "experts");
}

/* ---- routed ---- */

static enum qep_status check_act(enum qep_act_type type) {
    return type == QEP_ACT_BF16
               ? QEP_OK
               : qep_fail(QEP_ERR_USAGE, "the cuda backend's experts take bf16 activations");
}

static enum qep_status routed_part(struct cuda_backend *be, const struct qep_routed_args *args,
                                   int32_t row0, int32_t num_rows, float *out_rows) {
    const struct qep_expert_set *set = args->experts;
    struct qep_topk topk = args->topk;
    size_t first = (size_t)row0, pairs = (size_t)num_rows * (size_t)topk.top_k;
    struct cuda_expert_job job = {.gate_up = set->gate_up,
                                  .down = set->down,
                                  .table = set->table,
                                  .rows = (const char *)args->rows + first * args->row_stride,
                                  .row_stride = args->row_stride,
                                  .num_rows = num_rows};
    void *base = NULL, *out = NULL;
    size_t bytes = lay_out(&job.map, NULL, set->num, pairs, num_rows, args->num_experts);
    QEP_TRY(cuda_reserve(be, CUDA_WS_EXPERT_MAP, bytes, &base));
    lay_out(&job.map, base, set->num, pairs, num_rows, args->num_experts);
    QEP_TRY(cuda_reserve(be, CUDA_WS_EXPERT_OUT, pairs * (size_t)args->hidden_size * sizeof(float),
                         &out));
    job.out = out;
    topk.idx = (const void *)((const char *)topk.idx + first * topk.idx_stride);
    topk.weights = (const void *)((const char *)topk.weights + first * topk.weights_stride);
    QEP_TRY(cuda_check(cuda_launch_route(be->stream, &job.map, &topk, num_rows, args->first_expert),
                       "routed"));
    QEP_TRY(run_job(be, &job, args->decode));
    return cuda_check(args->base != NULL
                          ? cuda_launch_row_sums(be->stream, args, row0, num_rows,
                                                 job.map.pair_item, job.out, out_rows)
                          : cuda_launch_partials(be->stream, args, row0, num_rows,
                                                 job.map.pair_item, job.out, out_rows),
                      "routed");
}

/* Rows of one part. */
static int32_t part_rows(int32_t top_k, int32_t hidden_size) {
    size_t row_bytes = (size_t)top_k * (size_t)hidden_size * sizeof(float);
    size_t most = MAX_ITEM_BYTES / row_bytes / 64 * 64;
    return most < 64 ? 64 : most > 65536 ? 65536 : (int32_t)most;
}

void cuda_routed_bytes(const struct qep_device_load *load, int32_t num_rows,
                       struct cuda_routed_bytes *out) {
    struct cuda_expert_map map;
    int32_t part = part_rows(load->top_k, load->hidden_size);
    int32_t rows = num_rows < part ? num_rows : part;
    size_t pairs = (size_t)rows * (size_t)load->top_k;
    out->map = lay_out(&map, NULL, load->num_local_experts, pairs, rows, load->num_experts);
    out->out = pairs * (size_t)load->hidden_size * sizeof(float);
    out->hidden = pairs * qep_act_row_bytes(QEP_ACT_BF16, load->intermediate_size);
    out->table = (size_t)load->num_local_experts * sizeof(struct cuda_expert);
}

enum qep_status cuda_routed(struct qep_backend *be, const struct qep_routed_args *args,
                            float *out) {
    int32_t part = part_rows(args->topk.top_k, args->hidden_size);
    QEP_TRY(check_act(args->act_type));
    assert(args->topk.top_k <= QEP_DEVICE_MAX_TOP_K);
    assert(args->base == NULL || args->experts->num == args->num_experts);
    for (int32_t row = 0; row < args->num_rows; row += part) {
        int32_t left = args->num_rows - row;
        QEP_TRY(routed_part(cuda_backend_of(be), args, row, left < part ? left : part, out));
    }
    return QEP_OK;
}

enum qep_status cuda_combine(struct qep_backend *be, const struct qep_combine_args *args,
                             float *out) {
    if (args->num_rows == 0)
        return QEP_OK;
    assert(args->topk.top_k <= QEP_DEVICE_MAX_TOP_K);
    return cuda_check(cuda_launch_combine(cuda_backend_of(be)->stream, args, out), "combine");
}

/* ---- experts, with host lists ---- */

/* item_begin, active and tiles of the host's items into `block`, a host copy of the map's words. */
static void fill_lists(const struct qep_expert_args *args, struct cuda_expert_map *host) {
    int32_t item = 0;
    for (int32_t e = 0; e < host->num_experts; e++) {
        int32_t begin = item;
        host->item_begin[e] = begin;
        while (item < args->num_items && args->item_expert[item] == e)
            item++;
        if (item > begin)
            host->active[host->counts[0]++] = e;
        for (int32_t at = begin; at < item; at += host->tile_cols) {
            host->tile_expert[host->counts[1]] = e;
            host->tile_begin[host->counts[1]++] = at;
        }
    }
    host->item_begin[host->num_experts] = item;
    memcpy(host->item_row, args->item_row, (size_t)args->num_items * sizeof *args->item_row);
    memcpy(host->item_weight, args->item_weight,
           (size_t)args->num_items * sizeof *args->item_weight);
}

static enum qep_status upload_lists(struct cuda_backend *be, const struct qep_expert_args *args,
                                    struct cuda_expert_map *map, int32_t num_experts) {
    size_t items = (size_t)args->num_items;
    struct cuda_expert_map host;
    void *block = NULL, *base = NULL;
    size_t bytes = lay_out(map, NULL, num_experts, items, 0, num_experts);
    QEP_TRY(cuda_reserve(be, CUDA_WS_EXPERT_MAP, bytes, &base));
    lay_out(map, base, num_experts, items, 0, num_experts);
    QEP_TRY(qep_calloc(bytes, 1, "expert lists", &block));
    lay_out(&host, block, num_experts, items, 0, num_experts);
    fill_lists(args, &host);
    enum qep_status st = cuda_upload(&be->base, base, block, bytes);
    free(block);
    return st;
}

static enum qep_status upload_table(struct cuda_backend *be, const struct qep_expert_args *args,
                                    struct cuda_expert_job *job, int32_t num_experts) {
    void *host = NULL, *dev = NULL;
    enum qep_status st = QEP_OK;
    size_t bytes = (size_t)num_experts * sizeof(struct cuda_expert);
    QEP_TRY(cuda_reserve(be, CUDA_WS_EXPERT_TABLE, bytes, &dev));
    QEP_TRY(qep_calloc(bytes, 1, "expert table", &host));
    for (int32_t i = 0; i < args->num_items; i++) {
        int32_t e = args->item_expert[i];
        QEP_TRY_GOTO(st, done,
                     check_expert(args->gate_up[e], args->down[e], &job->gate_up, &job->down));
        ((struct cuda_expert *)host)[e] = entry_of(args->gate_up[e], args->down[e]);
    }
    job->table = dev;
    st = cuda_upload(&be->base, dev, host, bytes);
done:
    free(host);
    return st;
}

enum qep_status cuda_experts(struct qep_backend *base, const struct qep_expert_args *args,
                             float *out) {
    struct cuda_backend *be = cuda_backend_of(base);
    if (args->num_items == 0)
        return QEP_OK;
    QEP_TRY(check_act(args->act_type));
    int32_t some = args->item_expert[0], num_experts = args->item_expert[args->num_items - 1] + 1;
    struct cuda_expert_job job = {.gate_up = args->gate_up[some]->shape,
                                  .down = args->down[some]->shape,
                                  .rows = args->rows,
                                  .row_stride = args->row_stride,
                                  .num_rows = args->num_rows,
                                  .out = out};
    QEP_TRY(upload_table(be, args, &job, num_experts));
    QEP_TRY(upload_lists(be, args, &job.map, num_experts));
    return run_job(be, &job, args->decode);
}

/* ---- sums and lists ---- */

enum qep_status cuda_tree_sum(struct qep_backend *base, const struct qep_tree_args *args,
                              float *out) {
    struct cuda_backend *be = cuda_backend_of(base);
    struct qep_tree_args dev = *args;
    size_t num_out = (size_t)args->num_out, at = 0;
    if (num_out == 0)
        return QEP_OK;
    size_t leaves = (size_t)args->leaf_begin[num_out];
    void *block = NULL;
    QEP_TRY(
        cuda_reserve(be, CUDA_WS_TREE, padded((num_out + 1) * 4) + 2 * padded(leaves * 4), &block));
    dev.leaf_begin = take(block, &at, num_out + 1);
    dev.leaf_row = take(block, &at, leaves);
    dev.leaf_id = take(block, &at, leaves);
    QEP_TRY(cuda_upload(base, block, args->leaf_begin, (num_out + 1) * 4));
    if (leaves > 0) {
        QEP_TRY(cuda_upload(base, (char *)block + padded((num_out + 1) * 4), args->leaf_row,
                            leaves * 4));
        QEP_TRY(cuda_upload(base, (char *)block + padded((num_out + 1) * 4) + padded(leaves * 4),
                            args->leaf_id, leaves * 4));
    }
    return cuda_check(cuda_launch_tree_sum(be->stream, &dev, out), "tree_sum");
}

enum qep_status cuda_route_lists(struct qep_backend *be, const struct qep_topk *topk, int32_t n,
                                 const int32_t *expert_rank, int32_t num_ranks, int32_t *rows,
                                 int32_t *positions, int32_t *counts) {
    return cuda_check(cuda_launch_route_lists(cuda_backend_of(be)->stream, topk, n, expert_rank,
                                              num_ranks, rows, positions, counts),
                      "route_lists");
}

enum qep_status cuda_pack(struct qep_backend *be, void *packets, const void *act, size_t row_bytes,
                          const struct qep_topk *topk, const int32_t *list, int32_t num) {
    if (num == 0)
        return QEP_OK;
    return cuda_check(
        cuda_launch_pack(cuda_backend_of(be)->stream, packets, act, row_bytes, topk, list, num),
        "pack");
}

enum qep_status cuda_gather_rows(struct qep_backend *be, void *out, const void *rows, size_t bytes,
                                 const int32_t *list, int32_t num) {
    if (num == 0)
        return QEP_OK;
    return cuda_check(
        cuda_launch_gather_rows(cuda_backend_of(be)->stream, out, rows, bytes, list, num),
        "gather_rows");
}
