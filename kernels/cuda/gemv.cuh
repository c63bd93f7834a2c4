/* Few activation rows times packed tiles: a warp takes one tile and one slice of K, all its loads
 * straight from global memory to registers in fragment order, and the slices are added in order.
 * The bits follow from the matrix's shape and the number of slices, which follows from the shape.
 */
#ifndef QEP_KERNELS_CUDA_GEMV_CUH
#define QEP_KERNELS_CUDA_GEMV_CUH

#include "kernels/cuda/packed.cuh"

enum { GEMV_MAX_WARPS = 16 };

/* Slices of K: about 2048 warps for `copies` such matrices at once. */
static inline int gemv_slices(const cuda_matrix &m, int copies) {
    int slices = 1;
    while (slices < GEMV_MAX_WARPS && 2 * slices <= m.num_blocks &&
           static_cast<int64_t>(slices) * m.num_tiles * copies < 2048)
        slices *= 2;
    return slices;
}

/* Tiles of a thread block: at least four warps, more where several columns share activations. */
static inline int gemv_tiles(int slices, int column_tiles) {
    int warps = column_tiles >= 4 ? GEMV_MAX_WARPS : 4;
    return slices >= warps ? 1 : warps / slices;
}

static inline size_t gemv_shared(int slices, int tiles, int column_tiles) {
    return static_cast<size_t>(slices) * tiles * column_tiles * 128 * sizeof(float);
}

/* What one lane reads: its part of a tile, and activations of columns g, g + 8, ... In the place of
 * absent columns stands another's row: no column sees its neighbours. */
template <int NT> struct gemv_lane {
    gptr<const byte_t> data, scales; /* of the tile, at this lane */
    gptr<const byte_t> act[NT];      /* at this lane's 16 bytes of the first 32 columns */
    int chunks;                      /* 16-byte pieces of an activation row */
    int t;
};

/* Activations of the 32 columns k32; those beyond the row are zero. */
template <int NT, bool LAST>
static __device__ __forceinline__ void gemv_acts(uint4 (&x)[NT], const gemv_lane<NT> &lane,
                                                 int k32) {
    bool beyond = LAST && 4 * k32 + lane.t >= lane.chunks;
    size_t at = beyond ? 0 : static_cast<size_t>(k32) * 64;
#pragma unroll
    for (int j = 0; j < NT; j++) {
        x[j] = load16(beyond ? lane.act[j] - lane.t * 16 : lane.act[j] + at);
        if (beyond)
            x[j] = make_uint4(0, 0, 0, 0);
    }
}

/* Blocks b .. b + BATCH of a slice that ends at block `end`; LAST: the matrix's last block may be
 * among them. All loads that fit into registers are under way before the first is used. */
template <int TYPE, int NT, int BATCH, bool LAST>
static __device__ __forceinline__ void gemv_batch(const cuda_matrix &m, const gemv_lane<NT> &lane,
                                                  int b, int end, float (&acc)[NT][4],
                                                  float (&y)[NT][4]) {
    enum { LOADS = packed_type<TYPE>::LOADS, SCALED = packed_type<TYPE>::SCALED, EARLY = NT <= 2 };
    uint4 w[BATCH][LOADS], x[EARLY ? 2 * BATCH : 1][NT];
    uint32_t scales[BATCH][2];
#pragma unroll
    for (int u = 0; u < BATCH; u++) {
#pragma unroll
        for (int i = 0; i < LOADS; i++)
            w[u][i] = load16_stream(lane.data +
                                    (static_cast<size_t>(b + u) * LOADS + i) * CUDA_LOAD_BYTES);
#pragma unroll
        for (int h = 0; h < 2; h++) {
            int k32 = 2 * (b + u) + h, group = group_of(m, k32);
            if (LAST)
                group = min(group, m.num_groups - 1);
            if (SCALED)
                scales[u][h] = load4(lane.scales + static_cast<size_t>(group) * CUDA_GROUP_BYTES);
            if (EARLY)
                gemv_acts<NT, LAST>(x[EARLY * (2 * u + h)], lane, k32);
        }
    }
#pragma unroll
    for (int i = 0; i < 2 * BATCH; i++) {
        int k32 = 2 * b + i;
        if (!EARLY)
            gemv_acts<NT, LAST>(x[0], lane, k32);
#pragma unroll
        for (int step = 0; step < 2; step++) {
            uint32_t a[4];
            weight_fragment<TYPE>(a, w[i / 2], 2 * (i % 2) + step);
#pragma unroll
            for (int j = 0; j < NT; j++) {
                uint32_t frag[2];
                act_fragment(frag, x[EARLY * i][j], step);
                mma_bf16_16816(acc[j], a, frag);
            }
        }
        if (SCALED && (k32 + 1 == 2 * end || group_of(m, k32 + 1) != group_of(m, k32)))
            scale_sums(y, acc, scales[i / 2][i % 2]);
    }
}

/* Blocks asked for at once: 64 bytes a lane or more, as registers allow. */
template <int TYPE, int NT> struct gemv_batch_size {
    enum {
        LOADS = packed_type<TYPE>::LOADS,
        VALUE = NT > 1 ? (LOADS == 4 ? 1 : 2) : 4 / LOADS *(LOADS == 4 ? 2 : 1)
    };
};

/* The lane's sums over blocks [begin, end) of its tile. */
template <int TYPE, int NT>
static __device__ __forceinline__ void gemv_slice(const cuda_matrix &m, const gemv_lane<NT> &lane,
                                                  int begin, int end, float (&y)[NT][4]) {
    enum { BATCH = gemv_batch_size<TYPE, NT>::VALUE };
    float acc[NT][4];
    int b = begin, full = min(end, m.num_blocks - 1);
    clear_sums(acc);
    clear_sums(y);
    for (; b + BATCH <= full; b += BATCH)
        gemv_batch<TYPE, NT, BATCH, false>(m, lane, b, end, acc, y);
    for (; b < end; b++)
        gemv_batch<TYPE, NT, 1, true>(m, lane, b, end, acc, y);
    if (!packed_type<TYPE>::SCALED) {
#pragma unroll
        for (int j = 0; j < NT; j++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                y[j][i] = acc[j][i];
    }
}

/* One tile times the columns [0, 8 NT) of `columns`, by the warps of one threadIdx.z; the block is
 * (32, slices, tiles), and all its threads come here, tile beyond the matrix or not. columns(c):
 * the activation row of column c < num_columns. store(unit, column, first, second): the sums of the
 * unit's rows in both halves, once for every unit < 8 num_tiles and present column. */
template <int TYPE, int NT, class Columns, class Store>
static __device__ __forceinline__ void
gemv_tile(const cuda_matrix &m, gptr<const byte_t> data, gptr<const byte_t> scales, int tile,
          const Columns &columns, int num_columns, sptr<float> shared, const Store &store) {
    int lane_idx = threadIdx.x, g = lane_idx / 4, t = lane_idx % 4;
    int slice = threadIdx.y, slices = blockDim.y;
    enum { SUMS = NT * 128 };
    sptr<float> partial = shared + static_cast<int>(threadIdx.z) * slices * SUMS;
    if (tile < m.num_tiles) {
        gemv_lane<NT> lane;
        float y[NT][4];
        lane.data =
            data +
            static_cast<size_t>(tile) * m.num_blocks * packed_type<TYPE>::LOADS * CUDA_LOAD_BYTES +
            lane_idx * 16;
        lane.scales = scales;
        if (packed_type<TYPE>::SCALED)
            lane.scales =
                scales + static_cast<size_t>(tile) * m.num_groups * CUDA_GROUP_BYTES + g * 4;
        lane.chunks = (m.cols + 7) / 8;
        lane.t = t;
#pragma unroll
        for (int j = 0; j < NT; j++)
            lane.act[j] = columns(8 * j + g < num_columns ? 8 * j + g : 0) + t * 16;
        int begin = static_cast<int>(static_cast<int64_t>(m.num_blocks) * slice / slices);
        int end = static_cast<int>(static_cast<int64_t>(m.num_blocks) * (slice + 1) / slices);
        gemv_slice<TYPE, NT>(m, lane, begin, end, y);
#pragma unroll
        for (int j = 0; j < NT; j++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                partial[slice * SUMS + (j * 4 + i) * 32 + lane_idx] = y[j][i];
    }
    __syncthreads();
    if (tile < m.num_tiles) {
        for (int p = slice * 32 + lane_idx; p < NT * 64; p += slices * 32) {
            int from = p % 32, c = p / 32 % 2, j = p / 64;
            int column = 8 * j + 2 * (from % 4) + c;
            if (column >= num_columns)
                continue;
            int at = (j * 4 + c) * 32 + from;
            float first = partial[at], second = partial[at + 64];
            for (int s = 1; s < slices; s++) {
                first = first + partial[s * SUMS + at];
                second = second + partial[s * SUMS + at + 64];
            }
            store(tile * CUDA_TILE_UNITS + from / 4, column, first, second);
        }
    }
}

#endif
