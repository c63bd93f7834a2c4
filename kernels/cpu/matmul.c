/* Matmul over packed weights.
 *
 * F32 and BF16 activations: fp32 products with the exact fp32 value of each weight (q * s has at
 * most 16 bits), summed in blocks of 128 columns, blocks ascending.
 * INT8 activations: exact int32 sums over groups of 32, times (weight scale * activation scale), in
 * fp32 over groups ascending.
 *
 * Few rows: one pass over the weights in memory order. Many rows: a block of weights stays in L1
 * while the rows pass over it, and a block of rows in L2 while the weights do. */
#include "kernels/cpu/cpu.h"

#include "kernels/cpu/idot.h"
#include "kernels/cpu/tile.h"
#include "kernels/mathfn.h"

#include <assert.h>

enum { ACT_BLOCK = 512, INT8_ACT_BLOCK = 256 }; /* rows that stay in L2 */

/* ---- fp32 ---- */

/* Four columns of 16 rows from bytes (INT8) or from their nibbles at bit `step` (INT4). */
INLINE void dequantise_quad(float *out, vu bits, const bool INT4, const int step, vf scale) {
    const vu mask = (vu){0} + (INT4 ? 15u : 255u);
    for (int i = 0; i < 4; i++) {
        vi u = (vi)((bits >> (unsigned)(8 * i + step)) & mask) - (INT4 ? 8 : 128);
        vf_store(out + i * CPU_ROW_BLOCK, vf_from_vi(u) * scale);
    }
}

/* Columns [k0, k0 + num_k) of one row block as fp32 [k][16]; k0 is a multiple of 32, and whole
 * groups are written. */
INLINE void dequantise_block(float *out, const struct qep_weight *w, const bool INT4, size_t block,
                             size_t k0, size_t num_k) {
    const size_t group_bytes = INT4 ? CPU_INT4_GROUP_BYTES : CPU_INT8_GROUP_BYTES;
    const uint8_t *bytes =
        (const uint8_t *)w->data + block * w->block_bytes + k0 / 32 * group_bytes;
    const uint16_t *scales = w->scales + block * (size_t)w->num_groups * CPU_ROW_BLOCK;
    for (size_t k = k0; k < k0 + num_k; k += 32, bytes += group_bytes, out += 32 * CPU_ROW_BLOCK) {
        const uint16_t *group_scales = scales + k / (size_t)w->group_size * CPU_ROW_BLOCK;
        for (int p = 0; p < PARTS; p++) {
            vf scale = vf_from_bf16(group_scales + p * VL);
            float *lane = out + p * VL;
            for (int j = 0; j < (INT4 ? 4 : 8); j++) {
                vu bits = vu_load(bytes + j * 64 + p * VL * 4);
                dequantise_quad(lane + j * 64, bits, INT4, 0, scale);
                if (INT4)
                    dequantise_quad(lane + (j + 4) * 64, bits, INT4, 4, scale);
            }
        }
    }
}

static void widen_block(float *out, const uint16_t *data, size_t num_k) {
    for (size_t i = 0; i < num_k * CPU_ROW_BLOCK; i += VL)
        vf_store(out + i, vf_from_bf16(data + i));
}

/* One row block x one block of columns, ready for the tile. */
static struct tile_w load_panel(const struct qep_weight *w, int32_t block, size_t k0, size_t num_k,
                                bool many_rows, float *scratch) {
    size_t first = ((size_t)block * (size_t)w->cols + k0) * CPU_ROW_BLOCK;
    if (w->type == QEP_WEIGHT_F32)
        return (struct tile_w){(const float *)w->data + first, false, CPU_ROW_BLOCK};
    if (w->type == QEP_WEIGHT_BF16 && !many_rows)
        return (struct tile_w){(const uint16_t *)w->data + first, true, CPU_ROW_BLOCK};
    if (w->type == QEP_WEIGHT_BF16)
        widen_block(scratch, (const uint16_t *)w->data + first, num_k);
    else if (w->type == QEP_WEIGHT_INT4)
        dequantise_block(scratch, w, true, (size_t)block, k0, num_k);
    else
        dequantise_block(scratch, w, false, (size_t)block, k0, num_k);
    return (struct tile_w){scratch, false, CPU_ROW_BLOCK};
}

/* Writes, or adds to, up to 16 outputs of which `valid` exist. */
INLINE void put_block(float *out, int32_t valid, const vf *acc, bool add) {
    if (valid >= CPU_ROW_BLOCK) {
        for (int p = 0; p < PARTS; p++)
            vf_store(out + p * VL, add ? vf_load(out + p * VL) + acc[p] : acc[p]);
        return;
    }
    float lanes[CPU_ROW_BLOCK];
    for (int p = 0; p < PARTS; p++)
        vf_store(lanes + p * VL, acc[p]);
    for (int32_t i = 0; i < valid; i++)
        out[i] = add ? out[i] + lanes[i] : lanes[i];
}

/* Columns [k0, k0 + num_k) of n rows, tile after tile, each as [k][rows of the tile]. */
static void pack_rows(float *out, const struct cpu_act_row *rows, int32_t n, size_t k0,
                      size_t num_k) {
    for (int32_t i = 0; i < n;) {
        size_t num = (size_t)tile_rows(n - i);
        for (size_t m = 0; m < num; m++) {
            const float *x = (const float *)rows[i + (int32_t)m].x + k0;
            for (size_t k = 0; k < num_k; k++)
                out[k * num + m] = x[k];
        }
        out += num * num_k;
        i += (int32_t)num;
    }
}

/* One weight panel times all rows; packed is pack_rows of the same columns. */
static void float_panel(const struct qep_weight *w, const struct cpu_act_row *rows, int32_t n,
                        int32_t block, size_t k0, const float *packed, float *scratch) {
    size_t left = (size_t)w->cols - k0, num_k = left < CPU_GEMM_K_BLOCK ? left : CPU_GEMM_K_BLOCK;
    int32_t row = block * CPU_ROW_BLOCK;
    struct tile_w panel = load_panel(w, block, k0, num_k, n > TILE_ROWS, scratch);
    for (int32_t i = 0; i < n;) {
        int num = tile_rows(n - i);
        const float *x = packed + (size_t)i * num_k;
        vf acc[TILE_ROWS][PARTS];
        tile(num, &panel, true, &x, (int32_t)num_k, acc);
        for (int m = 0; m < num; m++)
            put_block(rows[i + m].out + row, w->rows - row, acc[m], k0 > 0);
        i += num;
    }
}

/* Reads the weights once, in memory order. */
static void gemm_float_few(const struct qep_weight *w, const struct cpu_act_row *rows, int32_t n,
                           int32_t block0, int32_t block1, float *scratch) {
    size_t cols = (size_t)w->cols;
    float *packed = scratch + CPU_GEMM_PANEL;
    for (size_t k = 0; k < cols && n > 1; k += CPU_GEMM_K_BLOCK)
        pack_rows(packed + (size_t)n * k, rows, n, k,
                  cols - k < CPU_GEMM_K_BLOCK ? cols - k : CPU_GEMM_K_BLOCK);
    for (int32_t b = block0; b < block1; b++)
        for (size_t k = 0; k < cols; k += CPU_GEMM_K_BLOCK)
            float_panel(w, rows, n, b, k,
                        n > 1 ? packed + (size_t)n * k : (const float *)rows[0].x + k, scratch);
}

static void gemm_float_many(const struct qep_weight *w, const struct cpu_act_row *rows, int32_t n,
                            int32_t block0, int32_t block1, float *scratch) {
    size_t cols = (size_t)w->cols;
    float *packed = scratch + CPU_GEMM_PANEL;
    for (size_t k = 0; k < cols; k += CPU_GEMM_K_BLOCK) {
        pack_rows(packed, rows, n, k, cols - k < CPU_GEMM_K_BLOCK ? cols - k : CPU_GEMM_K_BLOCK);
        for (int32_t b = block0; b < block1; b++)
            float_panel(w, rows, n, b, k, packed, scratch);
    }
}

/* ---- int8 ---- */

INLINE void int8_tile(const int M, const bool INT4, const struct qep_weight *w, int32_t block,
                      const struct cpu_act_row *rows) {
    const size_t group_bytes = INT4 ? CPU_INT4_GROUP_BYTES : CPU_INT8_GROUP_BYTES;
    const size_t num_groups = (size_t)w->num_act_groups;
    const size_t groups_per_scale = (size_t)w->group_size / 32;
    const uint8_t *bytes = (const uint8_t *)w->data + (size_t)block * w->block_bytes;
    const uint16_t *scales = w->scales + (size_t)block * (size_t)w->num_groups * 16;
    const int8_t *x[IDOT_ROWS];
    const float *x_scale[IDOT_ROWS];
    vf acc[IDOT_ROWS][PARTS];
    size_t until_next_scale = groups_per_scale;
    for (int m = 0; m < M; m++) {
        x[m] = rows[m].x;
        x_scale[m] = (const float *)(const void *)(x[m] + num_groups * 32);
        for (int p = 0; p < PARTS; p++)
            acc[m][p] = (vf){0};
    }
    for (size_t g = 0; g < num_groups; g++) {
        vi sum[IDOT_ROWS][PARTS];
        idot_group(M, INT4, bytes, x, sum);
        for (int p = 0; p < PARTS; p++) {
            vf scale = vf_from_bf16(scales + p * VL);
            for (int m = 0; m < M; m++) {
                vi exact = sum[m][p] - rows[m].sums[g] * (INT4 ? 8 : 128);
                acc[m][p] += vf_from_vi(exact) * (scale * x_scale[m][g]);
            }
        }
        for (int m = 0; m < M; m++)
            x[m] += 32;
        bytes += group_bytes;
        if (--until_next_scale == 0) {
            until_next_scale = groups_per_scale;
            scales += 16;
        }
    }
    for (int m = 0; m < M; m++)
        put_block(rows[m].out + block * CPU_ROW_BLOCK, w->rows - block * CPU_ROW_BLOCK, acc[m],
                  false);
}

#define INT8_CASE(m)                                                                               \
    case m:                                                                                        \
        if (w->type == QEP_WEIGHT_INT4)                                                            \
            int8_tile(m, true, w, block, rows);                                                    \
        else                                                                                       \
            int8_tile(m, false, w, block, rows);                                                   \
        break

static int int8_rows(int32_t left) {
    if (left >= IDOT_ROWS)
        return IDOT_ROWS;
    return left >= 4 ? 4 : left >= 2 ? 2 : 1;
}

static void int8_tile_any(const struct qep_weight *w, int32_t block, int num,
                          const struct cpu_act_row *rows) {
    switch (num) {
        INT8_CASE(1);
        INT8_CASE(2);
#if defined(__AVX2__)
        INT8_CASE(4);
#endif
#if defined(__AVX512F__)
        INT8_CASE(8);
#endif
    }
}

static void gemm_int8(const struct qep_weight *w, const struct cpu_act_row *rows, int32_t n,
                      int32_t block0, int32_t block1) {
    for (int32_t b = block0; b < block1; b++)
        for (int32_t i = 0; i < n;) {
            int num = int8_rows(n - i);
            int8_tile_any(w, b, num, rows + i);
            i += num;
        }
}

void CPU(gemm)(const struct qep_weight *weight, bool int8, const struct cpu_act_row *rows,
               int32_t n, int32_t block0, int32_t block1, float *scratch) {
    int32_t step = int8 ? INT8_ACT_BLOCK : ACT_BLOCK;
    for (int32_t i = 0; i < n; i += step) {
        int32_t num = n - i < step ? n - i : step;
        if (int8)
            gemm_int8(weight, rows + i, num, block0, block1);
        else if (num <= TILE_ROWS)
            gemm_float_few(weight, rows + i, num, block0, block1, scratch);
        else
            gemm_float_many(weight, rows + i, num, block0, block1, scratch);
    }
}

size_t CPU(gemm_scratch)(enum qep_act_type type, int32_t cols, int32_t n) {
    size_t few = TILE_ROWS * (size_t)cols, rows = n < ACT_BLOCK ? (size_t)n : ACT_BLOCK;
    size_t many = rows * CPU_GEMM_K_BLOCK;
    if (type == QEP_ACT_INT8)
        return 0;
    return CPU_GEMM_PANEL + (few > many ? few : many) + 16;
}

/* ---- activations ---- */

size_t CPU(prepared_bytes)(enum qep_act_type type, int32_t cols) {
    size_t groups = ((size_t)cols + 31) / 32;
    return type == QEP_ACT_F32    ? 0
           : type == QEP_ACT_BF16 ? cpu_padded((size_t)cols * 4)
                                  : cpu_padded(groups * 4);
}

static void group_sums(int32_t *sums, const int8_t *x, size_t num_groups) {
    for (size_t g = 0; g < num_groups; g++) {
        int32_t sum = 0;
        for (size_t i = 0; i < 32; i++)
            sum += x[g * 32 + i];
        sums[g] = sum;
    }
}

void CPU(prepare_row)(enum qep_act_type type, const void *act, int32_t cols, void *prepared,
                      struct cpu_act_row *row) {
    row->x = act;
    row->sums = NULL;
    if (type == QEP_ACT_BF16) {
        const uint16_t *bits = act;
        float *wide = prepared;
        for (int32_t c = 0; c < cols; c++)
            wide[c] = qep_bf16_to_f32(bits[c]);
        row->x = wide;
    } else if (type == QEP_ACT_INT8) {
        group_sums(prepared, act, ((size_t)cols + 31) / 32);
        row->sums = prepared;
    }
}

/* ---- the op ---- */

struct matmul_job {
    const struct qep_product *products;
    int32_t num, n, cols;
    enum qep_act_type type;
    const char *act;
    size_t row_stride, prepared_bytes, thread_floats;
    float *scratch;
    char *prepared;
    struct cpu_act_row *rows;      /* [num][n] */
    float *sums[QEP_MAX_PRODUCTS]; /* [n, rows] of what is added to out; else out */
};

static void prepare_rows(void *arg, int thread_idx, int num_threads) {
    const struct matmul_job *job = arg;
    size_t begin, end, n = (size_t)job->n;
    qep_team_split(n, 1, thread_idx, num_threads, &begin, &end);
    for (size_t i = begin; i < end; i++) {
        CPU(prepare_row)
        (job->type, job->act + i * job->row_stride, job->cols,
         job->prepared + i * job->prepared_bytes, &job->rows[i]);
        for (size_t p = (size_t)job->num; p-- > 0;) {
            job->rows[p * n + i] = job->rows[i];
            job->rows[p * n + i].out = job->sums[p] + i * (size_t)job->products[p].weight->rows;
        }
    }
}

/* Sums of rows [row0, row1) and outputs [col0, col1) to where they are added. */
static void add_sums(const struct qep_product *p, const float *sums, size_t row0, size_t row1,
                     size_t col0, size_t col1) {
    for (size_t i = row0; i < row1; i++) {
        float *out = p->out + i * (size_t)p->weight->rows;
        const float *x = sums + i * (size_t)p->weight->rows;
        float factor = p->epilogue == QEP_EPILOGUE_GATED_ADD ? qep_sigmoidf(p->gate[i]) : 1.0f;
        for (size_t c = col0; c < col1; c++)
            out[c] += factor * x[c]; /* 1 changes nothing */
    }
}

/* This thread's part of one product. */
static void product_part(const struct matmul_job *job, int32_t p, int thread_idx, int num_threads) {
    const struct qep_product *product = &job->products[p];
    const struct qep_weight *weight = product->weight;
    size_t block0 = 0, block1 = (size_t)weight->num_blocks, row0 = 0, row1 = (size_t)job->n;
    /* Narrow matrices are split over rows of activations instead. */
    bool narrow = block1 < 4 * (size_t)num_threads && row1 >= 8 * (size_t)num_threads;
    if (narrow)
        qep_team_split(row1, 8, thread_idx, num_threads, &row0, &row1);
    else
        qep_team_split(block1, 1, thread_idx, num_threads, &block0, &block1);
    if (row0 == row1 || block0 == block1)
        return;
    CPU(gemm)
    (weight, job->type == QEP_ACT_INT8, job->rows + (size_t)p * (size_t)job->n + row0,
     (int32_t)(row1 - row0), (int32_t)block0, (int32_t)block1,
     job->scratch + (size_t)thread_idx * job->thread_floats);
    size_t rows = (size_t)weight->rows, end = block1 * CPU_ROW_BLOCK;
    if (product->epilogue != QEP_EPILOGUE_STORE)
        add_sums(product, job->sums[p], row0, row1, block0 * CPU_ROW_BLOCK,
                 end < rows ? end : rows);
}

static void matmul_part(void *arg, int thread_idx, int num_threads) {
    const struct matmul_job *job = arg;
    for (int32_t p = 0; p < job->num; p++)
        product_part(job, p, thread_idx, num_threads);
}

/* Room for everything; *work: products of the call. */
static enum qep_status init_job(struct qep_backend *be, struct matmul_job *job, size_t *work) {
    struct cpu_arena arena;
    size_t n = (size_t)job->n, sum_bytes[QEP_MAX_PRODUCTS] = {0}, total = 0;
    job->prepared_bytes = CPU(prepared_bytes)(job->type, job->cols);
    job->thread_floats = CPU(gemm_scratch)(job->type, job->cols, job->n);
    size_t row_bytes = cpu_padded(n * (size_t)job->num * sizeof *job->rows);
    size_t scratch_bytes =
        cpu_padded((size_t)cpu_num_threads(be) * job->thread_floats * sizeof(float));
    *work = 0;
    for (int32_t p = 0; p < job->num; p++) {
        const struct qep_product *product = &job->products[p];
        size_t rows = (size_t)product->weight->rows;
        assert(cpu_supports(be, product->weight->type, job->type) &&
               product->weight->cols == job->cols);
        if (product->epilogue != QEP_EPILOGUE_STORE)
            sum_bytes[p] = cpu_padded(n * rows * sizeof(float));
        total += sum_bytes[p];
        *work += n * (size_t)job->cols * rows;
    }
    QEP_TRY(
        cpu_arena_init(be, &arena, row_bytes + scratch_bytes + n * job->prepared_bytes + total));
    job->rows = cpu_arena_take(&arena, row_bytes);
    job->scratch = cpu_arena_take(&arena, scratch_bytes);
    job->prepared = cpu_arena_take(&arena, n * job->prepared_bytes);
    for (int32_t p = 0; p < job->num; p++)
        job->sums[p] =
            sum_bytes[p] > 0 ? cpu_arena_take(&arena, sum_bytes[p]) : job->products[p].out;
    return QEP_OK;
}

enum qep_status CPU(matmul)(struct qep_backend *be, const struct qep_product *products, int32_t num,
                            const void *act, size_t row_stride, enum qep_act_type type, int32_t n,
                            int32_t decode) {
    (void)decode;
    struct matmul_job job = {.products = products,
                             .num = num,
                             .n = n,
                             .cols = products[0].weight->cols,
                             .type = type,
                             .act = act,
                             .row_stride = row_stride};
    size_t work;
    assert(num >= 1 && num <= QEP_MAX_PRODUCTS);
    if (n == 0)
        return QEP_OK;
    QEP_TRY(init_job(be, &job, &work));
    cpu_run(be, (size_t)n * (size_t)job.cols / 4, prepare_rows, &job);
    cpu_run(be, work / 8, matmul_part, &job);
    return QEP_OK;
}
