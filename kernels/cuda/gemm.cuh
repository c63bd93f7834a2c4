/* Many activation rows times packed tiles: a block of 8 warps computes 8 tiles (128 rows of the
 * matrix) times COLS activation rows, K in blocks of 64 through a pipeline of cp.async stages. The
 * order of K is fixed and never split: a column's bits do not depend on COLS, on its place or on
 * its neighbours. */
#ifndef QEP_KERNELS_CUDA_GEMM_CUH
#define QEP_KERNELS_CUDA_GEMM_CUH

#include "kernels/cuda/packed.cuh"

enum { GEMM_TILES = 8, GEMM_THREADS = 256, GEMM_STAGES = 4 };

/* Bytes of one stage: packed weights, two groups of scales per tile, activations. */
template <int TYPE, int COLS> struct gemm_stage {
    enum {
        WEIGHTS = GEMM_TILES * packed_type<TYPE>::LOADS * CUDA_LOAD_BYTES,
        SCALES = packed_type<TYPE>::SCALED ? GEMM_TILES * 2 * CUDA_GROUP_BYTES : 0,
        ACTS = COLS * 2 * CUDA_BLOCK_COLS,
        BYTES = WEIGHTS + SCALES + ACTS
    };
};

/* Activations of a stage: rows of 128 bytes; chunk c of 16 bytes of row r lies at c ^ (4 (r & 1)),
 * so that the eight lanes of a quarter warp meet all banks once. */
static __device__ __forceinline__ int gemm_act_at(int row, int chunk) {
    return row * 128 + (chunk ^ ((row & 1) << 2)) * 16;
}

/* What a thread copies into every stage. */
template <int COLS> struct gemm_source {
    gptr<const byte_t> data, scales; /* of the block's first tile */
    gptr<const byte_t> act[COLS / 32];
    int tiles;  /* present, of GEMM_TILES */
    int chunks; /* of an activation row */
};

template <int TYPE, int COLS>
static __device__ __forceinline__ void
gemm_load(const cuda_matrix &m, const gemm_source<COLS> &from, int block, sptr<byte_t> stage) {
    typedef gemm_stage<TYPE, COLS> layout;
    enum { LOADS = packed_type<TYPE>::LOADS };
    int tid = threadIdx.x;
#pragma unroll
    for (int i = 0; i < LOADS; i++) {
        int piece = tid + i * GEMM_THREADS, tile = piece / (32 * LOADS);
        bool present = tile < from.tiles;
        size_t at = (static_cast<size_t>(present ? tile : 0) * m.num_blocks + block) *
                        (LOADS * CUDA_LOAD_BYTES) +
                    piece % (32 * LOADS) * 16;
        cp_async16(stage + piece * 16, from.data + at, present ? 16 : 0);
    }
    if (packed_type<TYPE>::SCALED && tid < GEMM_TILES * 4) {
        int tile = tid / 4, group = min(group_of(m, 2 * block + tid / 2 % 2), m.num_groups - 1);
        bool present = tile < from.tiles;
        size_t at =
            (static_cast<size_t>(present ? tile : 0) * m.num_groups + group) * CUDA_GROUP_BYTES +
            tid % 2 * 16;
        cp_async16(stage + layout::WEIGHTS + tid * 16, from.scales + at, present ? 16 : 0);
    }
    int chunk = tid % 8;
    bool inside = block * 8 + chunk < from.chunks;
    size_t at = inside ? (static_cast<size_t>(block) * 8 + chunk) * 16 : 0;
#pragma unroll
    for (int i = 0; i < COLS / 32; i++)
        cp_async16(stage + layout::WEIGHTS + layout::SCALES + gemm_act_at(tid / 8 + i * 32, chunk),
                   from.act[i] + at, inside ? 16 : 0);
}

/* One block of K: warp (row = warp % 4, half of the columns = warp / 4) takes tiles 2 row, 2 row +
 * 1 and NT column tiles of 8. group_end: where the scale
 * group ends, in 32s. */
template <int TYPE, int COLS, int NT>
static __device__ __forceinline__ void gemm_compute(const cuda_matrix &m, int block, int &group_end,
                                                    sptr<const byte_t> stage,
                                                    float (&acc)[2][NT][4], float (&y)[2][NT][4]) {
    typedef gemm_stage<TYPE, COLS> layout;
    enum { LOADS = packed_type<TYPE>::LOADS };
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    int tile0 = warp % 4 * 2, col0 = warp / 4 * (COLS / 2);
    sptr<const byte_t> acts = stage + layout::WEIGHTS + layout::SCALES;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        uint32_t a[2][2][4];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            uint4 w[LOADS];
#pragma unroll
            for (int l = 0; l < LOADS; l++)
                if (LOADS == 1 || 2 * l / LOADS == h)
                    w[l] = load16(stage + ((tile0 + i) * LOADS + l) * CUDA_LOAD_BYTES + lane * 16);
            weight_fragment<TYPE>(a[i][0], w, 2 * h);
            weight_fragment<TYPE>(a[i][1], w, 2 * h + 1);
        }
#pragma unroll
        for (int j = 0; j < NT; j++) {
            uint4 x = load16(acts + gemm_act_at(col0 + 8 * j + g, 4 * h + t));
#pragma unroll
            for (int step = 0; step < 2; step++) {
                uint32_t b[2];
                act_fragment(b, x, step);
                mma_bf16_16816(acc[0][j], a[0][step], b);
                mma_bf16_16816(acc[1][j], a[1][step], b);
            }
        }
        bool ends = 2 * block + h + 1 == group_end;
        if (packed_type<TYPE>::SCALED && (ends || 2 * block + h + 1 == 2 * m.num_blocks)) {
            group_end += ends ? m.group32 : 0;
#pragma unroll
            for (int i = 0; i < 2; i++)
                scale_sums(y[i], acc[i],
                           load4(stage + layout::WEIGHTS + ((tile0 + i) * 2 + h) * 32 + g * 4));
        }
    }
}

/* What the warp's sums are added to. All is read before anything is written, so that loads do not
 * wait for each other. */
template <int NT, class Store>
static __device__ __forceinline__ void gemm_add(const Store &store, int tile0, int col0,
                                                int num_columns, float (&sums)[2][NT][4]) {
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    float factor[NT][2];
#pragma unroll
    for (int j = 0; j < NT; j++)
#pragma unroll
        for (int c = 0; c < 2; c++)
            factor[j][c] = store.factor(min(col0 + 8 * j + 2 * t + c, num_columns - 1));
#pragma unroll
    for (int i = 0; i < 2; i++)
#pragma unroll
        for (int j = 0; j < NT; j++)
#pragma unroll
            for (int c = 0; c < 4; c++) {
                int column = col0 + 8 * j + 2 * t + c % 2;
                int row = store.row_of((tile0 + i) * CUDA_TILE_UNITS + g, c / 2);
                if (column < num_columns)
                    sums[i][j][c] = store.added(row, column, factor[j][c % 2], sums[i][j][c]);
            }
}

/* Tiles tile0 .. tile0 + 8 of the matrix times `num_columns` <= COLS activation rows; columns(c)
 * and store as in gemv.cuh. */
template <int TYPE, int COLS, class Columns, class Store>
static __device__ __forceinline__ void
gemm_tile(const cuda_matrix &m, gptr<const byte_t> data, gptr<const byte_t> scales, int tile0,
          const Columns &columns, int num_columns, const Store &store) {
    enum { NT = COLS / 16, BYTES = gemm_stage<TYPE, COLS>::BYTES };
    shared_arena arena;
    sptr<byte_t> stages = arena.take<byte_t>(GEMM_STAGES * BYTES);
    gemm_source<COLS> from;
    float acc[2][NT][4], y[2][NT][4];
    int tid = threadIdx.x;
    from.tiles = min(m.num_tiles - tile0, static_cast<int>(GEMM_TILES));
    from.chunks = (m.cols + 7) / 8;
    from.data = data + static_cast<size_t>(tile0) * m.num_blocks * packed_type<TYPE>::LOADS *
                           CUDA_LOAD_BYTES;
    from.scales = scales;
    if (packed_type<TYPE>::SCALED)
        from.scales = scales + static_cast<size_t>(tile0) * m.num_groups * CUDA_GROUP_BYTES;
#pragma unroll
    for (int i = 0; i < COLS / 32; i++) /* beyond the last column: the first, for nobody */
        from.act[i] = columns(tid / 8 + i * 32 < num_columns ? tid / 8 + i * 32 : 0);
#pragma unroll
    for (int i = 0; i < 2; i++) {
        clear_sums(acc[i]);
        clear_sums(y[i]);
    }
    for (int s = 0; s < GEMM_STAGES - 1; s++) {
        if (s < m.num_blocks)
            gemm_load<TYPE, COLS>(m, from, s, stages + s * BYTES);
        cp_async_commit();
    }
    int group_end = m.group32;
    for (int block = 0; block < m.num_blocks; block++) {
        cp_async_wait<GEMM_STAGES - 2>();
        __syncthreads();
        int next = block + GEMM_STAGES - 1;
        if (next < m.num_blocks)
            gemm_load<TYPE, COLS>(m, from, next, stages + next % GEMM_STAGES * BYTES);
        cp_async_commit();
        gemm_compute<TYPE, COLS, NT>(m, block, group_end, stages + block % GEMM_STAGES * BYTES, acc,
                                     y);
    }
    int lane = tid % 32, warp = tid / 32, g = lane / 4, t = lane % 4;
    int col0 = warp / 4 * (COLS / 2);
    float(&sums)[2][NT][4] = packed_type<TYPE>::SCALED ? y : acc;
    if constexpr (Store::ADDS)
        if (store.adds())
            gemm_add<NT>(store, tile0 + warp % 4 * 2, col0, num_columns, sums);
#pragma unroll
    for (int i = 0; i < 2; i++) {
        int tile = tile0 + warp % 4 * 2 + i;
        if (tile >= m.num_tiles)
            continue;
#pragma unroll
        for (int j = 0; j < NT; j++)
#pragma unroll
            for (int c = 0; c < 2; c++) {
                int column = col0 + 8 * j + 2 * t + c;
                if (column < num_columns)
                    store(tile * CUDA_TILE_UNITS + g, column, sums[i][j][c], sums[i][j][c + 2]);
            }
    }
}

/* Columns of a block for n activation rows: a block for every SM first, then less reading of the
 * weights. */
static inline int gemm_columns(int n, int num_tiles, int num_sms) {
    int row_blocks = (num_tiles + GEMM_TILES - 1) / GEMM_TILES, cols = 128;
    while (cols > 32 && (n <= cols / 2 || row_blocks * ((n + cols - 1) / cols) < num_sms))
        cols /= 2;
    return cols;
}

#endif
