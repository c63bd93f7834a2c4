/* Inside of the cpu backend. Kernel files are compiled once per ISA level; CPU(name) is the name of
 * an op at the level being compiled.
 *
 * Bits are the same on every level and for every number of threads and rows, because each output
 * has one fixed order of fp32 additions, no multiply-add is fused, and vector lanes hold different
 * outputs (or one of 16 fixed partial sums). Weight rows therefore lie in blocks of 16, one row a
 * lane:
 *
 *   F32, BF16  [block][k][16 rows]
 *   INT8       [block][group of 32 k][8 quads][16 rows][4 k] bytes q + 128
 *   INT4       [block][group of 32 k][4 quads][16 rows][4 k] bytes, low nibble = k of quad j, high
 *              nibble = k of quad j + 4, u as stored
 *   scales     [block][weight group][16 rows] bf16
 *
 * Missing rows and columns are zero weights, so inner loops have no tails. */
#ifndef QEP_KERNELS_CPU_CPU_H
#define QEP_KERNELS_CPU_CPU_H

#include "kernels/backend.h"

#include "base/team.h"

enum { CPU_ROW_BLOCK = 16, CPU_INT8_GROUP_BYTES = 512, CPU_INT4_GROUP_BYTES = 256 };

struct qep_weight {
    enum qep_weight_type type;
    int32_t rows, cols;
    int32_t num_blocks;     /* of 16 rows */
    int32_t num_act_groups; /* of 32 columns */
    int32_t group_size;     /* columns under one scale: a multiple of 32 */
    int32_t num_groups;     /* scales of a row */
    size_t block_bytes;     /* of data */
    void *data;             /* see above */
    uint16_t *scales;       /* NULL unless INT8 / INT4 */
};

struct cpu_backend {
    struct qep_backend base;
    struct qep_team *team; /* borrowed */
    void *scratch;
    size_t scratch_bytes;
};

/* Scratch of one op: ask for the sum of cpu_padded() sizes once, then take the pieces. */
struct cpu_arena {
    char *next;
};

static inline size_t cpu_padded(size_t bytes) {
    return (bytes + 63) / 64 * 64;
}

enum qep_status cpu_arena_init(struct qep_backend *be, struct cpu_arena *arena, size_t bytes);

static inline void *cpu_arena_take(struct cpu_arena *arena, size_t bytes) {
    void *piece = arena->next;
    arena->next += cpu_padded(bytes);
    return piece;
}

int cpu_num_threads(const struct qep_backend *be);

/* Runs fn on the team, or in place when `work` (about one per vectorised element) is not worth
 * waking it. */
void cpu_run(struct qep_backend *be, size_t work, qep_team_fn *fn, void *arg);

enum qep_status cpu_weight_create(struct qep_backend *be, const struct qep_host_weight *host,
                                  struct qep_weight **out);
void cpu_weight_destroy(struct qep_backend *be, struct qep_weight *weight);
bool cpu_supports(const struct qep_backend *be, enum qep_weight_type weight, enum qep_act_type act);
enum qep_status cpu_embed(struct qep_backend *be, float *out, const struct qep_weight *weight,
                          const int32_t *ids, int32_t n);
enum qep_status cpu_alloc(struct qep_backend *be, size_t bytes, const char *what, void **dev);
void cpu_free(struct qep_backend *be, void *dev);
enum qep_status cpu_upload(struct qep_backend *be, void *dev, const void *host, size_t bytes);
enum qep_status cpu_download(struct qep_backend *be, void *host, const void *dev, size_t bytes);
enum qep_status cpu_zero(struct qep_backend *be, void *dev, size_t bytes);
enum qep_status cpu_sync(struct qep_backend *be);
void cpu_destroy(struct qep_backend *be);

extern const struct qep_backend_ops cpu_ops_baseline, cpu_ops_avx2, cpu_ops_avx512;

#ifdef QEP_CPU_ISA
#define CPU_PASTE2(a, b) a##_##b
#define CPU_PASTE(a, b) CPU_PASTE2(a, b)
#define CPU(name) CPU_PASTE(cpu_##name, QEP_CPU_ISA)

/* One activation row on its way through a matmul: fp32 (F32 and BF16 activations) or the INT8 row
 * with the sums of its groups. out is the row of outputs. */
struct cpu_act_row {
    const void *x;
    const int32_t *sums;
    float *out;
};

enum { CPU_GEMM_K_BLOCK = 128, CPU_GEMM_PANEL = CPU_ROW_BLOCK * CPU_GEMM_K_BLOCK };

/* Scratch floats a thread needs for CPU(gemm) of at most n rows. */
size_t CPU(gemm_scratch)(enum qep_act_type type, int32_t cols, int32_t n);
/* Outputs of weight row blocks [block0, block1) for all n rows. */
void CPU(gemm)(const struct qep_weight *weight, bool int8, const struct cpu_act_row *rows,
               int32_t n, int32_t block0, int32_t block1, float *scratch);
/* Bytes per row that CPU(gemm) needs beside the activation row itself. */
size_t CPU(prepared_bytes)(enum qep_act_type type, int32_t cols);
/* Fills row->x and row->sums from activation row `act`; `prepared` is the room above. */
void CPU(prepare_row)(enum qep_act_type type, const void *act, int32_t cols, void *prepared,
                      struct cpu_act_row *row);
/* The activation rows of f32 rows that are done. */
enum qep_status CPU(finish_rows)(struct qep_backend *be, const struct qep_rows_out *out, int32_t n,
                                 int32_t cols);
void CPU(convert_row)(enum qep_act_type type, const float *x, int32_t cols, void *out);

/* One prefill chunk of one DeltaNet head: see delta_chunk.c. */
struct cpu_delta_chunk {
    int32_t num_rows, key_dim, value_dim;
    const float *q, *k; /* [64, key_dim] normalised, q scaled */
    const float *v;     /* row i at v + i * v_stride */
    size_t v_stride;
    float *out; /* likewise */
    size_t out_stride;
    const float *g, *beta; /* [64] */
    float *state;          /* [key_dim, padded value_dim] */
    float *scratch;
};
size_t CPU(delta_chunk_scratch)(int32_t key_dim, int32_t value_dim); /* floats */
void CPU(delta_chunk)(const struct cpu_delta_chunk *chunk);

enum qep_status CPU(rms_norm)(struct qep_backend *be, struct qep_rows_out out, const float *x,
                              const float *w, int32_t n, int32_t cols, float eps);
enum qep_status CPU(act_convert)(struct qep_backend *be, void *out, size_t row_stride,
                                 enum qep_act_type type, const float *x, int32_t n, int32_t cols);
enum qep_status CPU(matmul)(struct qep_backend *be, const struct qep_product *products, int32_t num,
                            const void *act, size_t row_stride, enum qep_act_type type, int32_t n,
                            int32_t decode);
enum qep_status CPU(swiglu)(struct qep_backend *be, struct qep_rows_out out, const float *gate,
                            const float *up, int32_t n, int32_t cols);
enum qep_status CPU(attention_kv)(struct qep_backend *be, const struct qep_attention_dims *dims,
                                  const struct qep_batch *batch, const float *k, const float *v,
                                  const float *k_norm, void *const *blocks);
enum qep_status CPU(attention)(struct qep_backend *be, const struct qep_attention_dims *dims,
                               const struct qep_batch *batch, struct qep_rows_out out,
                               const float *qg, const float *q_norm, void *const *blocks);
enum qep_status CPU(delta_conv)(struct qep_backend *be, const struct qep_delta_dims *dims,
                                const struct qep_batch *batch, float *out, const float *qkv,
                                const float *weight, float *conv_state);
enum qep_status CPU(delta)(struct qep_backend *be, const struct qep_delta_dims *dims,
                           const struct qep_batch *batch, float *out, const float *qkv,
                           const float *a, const float *b, const float *A_log, const float *dt_bias,
                           float *state);
enum qep_status CPU(delta_norm)(struct qep_backend *be, const struct qep_delta_dims *dims,
                                float *out, const float *o, const float *z, const float *w,
                                int32_t n);
enum qep_status CPU(router_topk)(struct qep_backend *be, int32_t *topk_idx, float *topk_weights,
                                 const float *logits, int32_t n, int32_t num_experts, int32_t top_k,
                                 const struct qep_span *dev_spans);
enum qep_status CPU(experts)(struct qep_backend *be, const struct qep_expert_args *args,
                             float *out);
enum qep_status CPU(tree_sum)(struct qep_backend *be, const struct qep_tree_args *args, float *out);
#endif

#endif
