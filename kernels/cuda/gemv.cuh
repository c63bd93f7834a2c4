/* Few activation rows times packed tiles: a warp takes one tile and one slice of K, and the slices
 * are added in order. The bits follow from the matrix's shape and the number of slices, which
 * follows from the shapes of the launch. Weights come through a ring of cp.async stages of the
 * warp's own: loads to registers would be moved to their uses by the compiler, and memory would
 * idle. */
#ifndef QEP_KERNELS_CUDA_GEMV_CUH
#define QEP_KERNELS_CUDA_GEMV_CUH

#include "kernels/cuda/packed.cuh"

enum { GEMV_MAX_WARPS = 16 };

/* Slices of K: about 2048 warps for `tiles` at once. */
static inline int gemv_slices(int num_blocks, int64_t tiles) {
    int slices = 1;
    while (slices < GEMV_MAX_WARPS && 2 * slices <= num_blocks && slices * tiles < 2048)
        slices *= 2;
    return slices;
}

/* Tiles of a thread block: at least four warps, more where several columns share activations. */
static inline int gemv_tiles(int slices, int columns) {
    int warps = columns > 2 ? GEMV_MAX_WARPS : 4;
    return slices >= warps ? 1 : warps / slices;
}

/* The ring of one warp (16 of them fit into 163 KB): a stage is one block of 64 columns, its
 * scales, and for one or two activation rows (FEW: bytes of an activation, else 0) the activations
 * too; more rows come from L1, where the warps of other tiles find them as well. */
enum { GEMV_FEW = 2 };
template <int TYPE, int FEW> struct gemv_ring {
    enum {
        LOADS = packed_type<TYPE>::LOADS,
        STAGES = LOADS == 1              ? 8
                 : LOADS == 2            ? 6
                 : LOADS == 4 && FEW < 4 ? 4
                 : LOADS == 4            ? 3
                                         : 2,
        WEIGHTS = LOADS * CUDA_LOAD_BYTES,
        SCALES = packed_type<TYPE>::SCALED ? 2 * CUDA_GROUP_BYTES : 0,
        PIECES = FEW * CUDA_BLOCK_COLS / 16, /* 16-byte pieces of a row's block */
        ACTS = GEMV_FEW * FEW * CUDA_BLOCK_COLS,
        STAGE = WEIGHTS + SCALES + ACTS,
        BYTES = STAGES * STAGE
    };
};

template <int TYPE, int NT, int FEW> static inline size_t gemv_shared(int slices, int tiles) {
    return static_cast<size_t>(slices) * tiles *
           (gemv_ring<TYPE, FEW>::BYTES + NT * 128 * sizeof(float));
}

/* What one lane reads: its part of a tile, activations of columns g, g + 8, ..., and what it copies
 * beside the weights: a piece of a scale group or of an activation row. In the place of absent
 * columns stands another's row: no column sees its neighbours. */
template <int NT> struct gemv_lane {
    gptr<const byte_t> data;    /* of the tile, at this lane */
    gptr<const byte_t> act[NT]; /* rows, unless FEW */
    int num_columns;
    int chunks; /* 16-byte pieces of an activation row */
    /* Piece mul * block + add (scales: the group of these 32s) of `count`, `step` bytes apart, goes
     * to byte `to` of the stage. */
    gptr<const byte_t> extra;
    int mul, add, step, count, to;
    bool scales;
};

/* The last four lanes copy two groups of scales, the first ones FEW activation rows. scales: of the
 * tile; row: the activation row this lane copies from. */
template <int TYPE, int FEW, int NT>
static __device__ __forceinline__ void gemv_extra(gemv_lane<NT> &from, const cuda_matrix &m,
                                                  gptr<const byte_t> scales,
                                                  gptr<const byte_t> row) {
    typedef gemv_ring<TYPE, FEW> ring;
    int lane = threadIdx.x, part = lane - 28;
    from.extra = row;
    from.scales = ring::SCALES > 0 && part >= 0;
    from.mul = from.add = from.step = from.count = from.to = 0;
    if (from.scales) {
        from.extra = scales + part % 2 * 16;
        from.mul = 2, from.add = part / 2, from.step = CUDA_GROUP_BYTES;
        from.count = m.num_groups;
        from.to = ring::WEIGHTS + part * 16;
    } else if (FEW > 0 && lane < ring::PIECES * from.num_columns) {
        from.mul = ring::PIECES, from.add = lane % (FEW > 0 ? ring::PIECES : 1), from.step = 16;
        from.count = from.chunks;
        from.to = ring::WEIGHTS + ring::SCALES + lane * 16;
    }
}

/* The copies of block b into a stage; what lies beyond the matrix is zero. */
template <int TYPE, int NT, int FEW>
static __device__ __forceinline__ void gemv_copy(const cuda_matrix &m, const gemv_lane<NT> &from,
                                                 int b, sptr<byte_t> stage) {
    typedef gemv_ring<TYPE, FEW> ring;
    gptr<const byte_t> data = from.data + static_cast<size_t>(b) * ring::WEIGHTS;
#pragma unroll
    for (int i = 0; i < ring::LOADS; i++)
        cp_async16(stage + (i * CUDA_LOAD_BYTES + static_cast<int>(threadIdx.x) * 16),
                   data + i * CUDA_LOAD_BYTES);
    if (ring::SCALES + ring::ACTS > 0 && from.count > 0) {
        int piece = b * from.mul + from.add;
        if (ring::SCALES > 0 && from.scales)
            piece = group_of(m, piece);
        bool inside = piece < from.count;
        cp_async16(stage + from.to, from.extra + (inside ? piece * from.step : 0), inside ? 16 : 0);
    }
}

/* The lane's activations of the 32 columns k32; zero beyond the row. */
template <int TYPE, int NT, int FEW>
static __device__ __forceinline__ void gemv_acts(uint4 (&x)[NT], const gemv_lane<NT> &from, int k32,
                                                 sptr<const byte_t> stage) {
    typedef gemv_ring<TYPE, FEW> ring;
    int g = threadIdx.x / 4, t = threadIdx.x % 4;
    if (FEW > 0) {
        x[0] = load16(stage + ring::WEIGHTS + ring::SCALES + (g < from.num_columns ? g : 0) * 128 +
                      (4 * (k32 % 2) + t) * 16);
        return;
    }
    bool inside = 4 * k32 + t < from.chunks;
    size_t at = inside ? (static_cast<size_t>(k32) * 4 + t) * 16 : 0;
#pragma unroll
    for (int j = 0; j < NT; j++) {
        x[j] = load16(from.act[j] + at);
        if (!inside)
            x[j] = make_uint4(0, 0, 0, 0);
    }
}

/* One block from its stage; `last`: the slice ends with it. group_end: where the scale group ends,
 * in 32s. */
template <int TYPE, int NT, int FEW>
static __device__ __forceinline__ void
gemv_block(const cuda_matrix &m, const gemv_lane<NT> &from, int b, bool last, int &group_end,
           sptr<const byte_t> stage, float (&acc)[NT][4], float (&y)[NT][4]) {
    typedef gemv_ring<TYPE, FEW> ring;
    int lane = threadIdx.x;
    enum { EARLY = NT <= 2 }; /* all of the block's activations at once */
    uint4 w[ring::LOADS], x[1 + EARLY][NT];
#pragma unroll
    for (int h = 0; h < 1 + EARLY; h++)
        gemv_acts<TYPE, NT, FEW>(x[h], from, 2 * b + h, stage);
#pragma unroll
    for (int i = 0; i < ring::LOADS; i++)
        w[i] = load16(stage + i * CUDA_LOAD_BYTES + lane * 16);
#pragma unroll
    for (int h = 0; h < 2; h++) {
        if (!EARLY && h == 1)
            gemv_acts<TYPE, NT, FEW>(x[0], from, 2 * b + 1, stage);
#pragma unroll
        for (int step = 0; step < 2; step++) {
            uint32_t a[4];
            weight_fragment<TYPE>(a, w, 2 * h + step);
#pragma unroll
            for (int j = 0; j < NT; j++) {
                uint32_t frag[2];
                act_fragment(frag, x[EARLY * h][j], step);
                mma_bf16_16816(acc[j], a, frag);
            }
        }
        bool ends = 2 * b + h + 1 == group_end;
        if (ring::SCALES > 0 && (ends || (last && h == 1))) {
            scale_sums(y, acc, load4(stage + ring::WEIGHTS + h * CUDA_GROUP_BYTES + lane / 4 * 4));
            group_end += ends ? m.group32 : 0;
        }
    }
}

/* The lane's sums over blocks [begin, end) of its tile. */
template <int TYPE, int NT, int FEW>
static __device__ __forceinline__ void gemv_slice(const cuda_matrix &m, const gemv_lane<NT> &from,
                                                  int begin, int end, sptr<byte_t> stages,
                                                  float (&y)[NT][4]) {
    typedef gemv_ring<TYPE, FEW> ring;
    float acc[NT][4];
    clear_sums(acc);
    clear_sums(y);
    int group_end = (group_of(m, 2 * begin) + 1) * m.group32;
#pragma unroll 1
    for (int s = 0; s < ring::STAGES - 1; s++) {
        if (begin + s < end)
            gemv_copy<TYPE, NT, FEW>(m, from, begin + s, stages + s * ring::STAGE);
        cp_async_commit();
    }
    int slot = 0, free_slot = ring::STAGES - 1;
    for (int b = begin; b < end; b++) {
        cp_async_wait<ring::STAGES - 2>();
        __syncwarp(); /* all lanes' pieces are there, and all have read the stage before */
        if (b + ring::STAGES - 1 < end)
            gemv_copy<TYPE, NT, FEW>(m, from, b + ring::STAGES - 1,
                                     stages + free_slot * ring::STAGE);
        cp_async_commit();
        gemv_block<TYPE, NT, FEW>(m, from, b, b + 1 == end, group_end, stages + slot * ring::STAGE,
                                  acc, y);
        slot = slot + 1 == ring::STAGES ? 0 : slot + 1;
        free_slot = free_slot + 1 == ring::STAGES ? 0 : free_slot + 1;
    }
    cp_async_wait<0>();
    __syncwarp(); /* the ring may be filled anew */
    if (!packed_type<TYPE>::SCALED) {
#pragma unroll
        for (int j = 0; j < NT; j++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                y[j][i] = acc[j][i];
    }
}

/* A thread block's shared memory. */
struct gemv_room {
    sptr<byte_t> stages;
    sptr<float> partial;
};

template <int TYPE, int NT, int FEW> static __device__ __forceinline__ gemv_room take_gemv_room() {
    shared_arena arena;
    int warps = static_cast<int>(blockDim.y * blockDim.z);
    gemv_room room;
    room.stages = arena.take<byte_t>(warps * gemv_ring<TYPE, FEW>::BYTES);
    room.partial = arena.take<float>(warps * NT * 128);
    return room;
}

/* One tile times the columns [0, 8 NT) of `columns`, by the warps of one threadIdx.z; the block is
 * (32, slices, tiles), and all its threads come here, tile beyond the matrix or not. columns(c):
 * the activation row of column c < num_columns. Leaves every slice's sums in room.partial, behind a
 * barrier. */
template <int TYPE, int NT, int FEW, class Columns>
static __device__ __forceinline__ void
gemv_sums(const cuda_matrix &m, gptr<const byte_t> data, gptr<const byte_t> scales, int tile,
          const Columns &columns, int num_columns, const gemv_room &room) {
    int lane_idx = threadIdx.x, g = lane_idx / 4;
    int slice = threadIdx.y, slices = blockDim.y;
    enum { SUMS = NT * 128 };
    sptr<float> partial = room.partial + static_cast<int>(threadIdx.z) * slices * SUMS;
    if (tile < m.num_tiles) {
        gemv_lane<NT> from;
        float y[NT][4];
        from.data =
            data +
            static_cast<size_t>(tile) * m.num_blocks * packed_type<TYPE>::LOADS * CUDA_LOAD_BYTES +
            lane_idx * 16;
        from.num_columns = num_columns;
        from.chunks = (m.cols + 7) / 8;
        int copied = FEW > 0 ? lane_idx / 8 : 0;
        gptr<const byte_t> groups = scales;
        if (packed_type<TYPE>::SCALED)
            groups = scales + static_cast<size_t>(tile) * m.num_groups * CUDA_GROUP_BYTES;
        gemv_extra<TYPE, FEW>(from, m, groups, columns(copied < num_columns ? copied : 0));
#pragma unroll
        for (int j = 0; j < NT && FEW == 0; j++)
            from.act[j] = columns(8 * j + g < num_columns ? 8 * j + g : 0);
        int begin = m.num_blocks * slice / slices;
        int end = m.num_blocks * (slice + 1) / slices;
        gemv_slice<TYPE, NT, FEW>(m, from, begin, end,
                                  room.stages + (static_cast<int>(threadIdx.z) * slices + slice) *
                                                    gemv_ring<TYPE, FEW>::BYTES,
                                  y);
#pragma unroll
        for (int j = 0; j < NT; j++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                partial[slice * SUMS + (j * 4 + i) * 32 + lane_idx] = y[j][i];
    }
    __syncthreads();
}

/* Adds up the slices. store(unit, column, first, second): the sums of the unit's rows in both
 * halves, once for every unit < 8 num_tiles and present column; where Store::ADDS they first pass
 * through store.added, see matmul_args.cuh. */
template <int NT, class Store>
static __device__ __forceinline__ void gemv_store(const cuda_matrix &m, int tile, int num_columns,
                                                  const gemv_room &room, const Store &store) {
    int thread = static_cast<int>(threadIdx.y * 32 + threadIdx.x), slices = blockDim.y;
    enum { SUMS = NT * 128 };
    sptr<const float> partial = room.partial + static_cast<int>(threadIdx.z) * slices * SUMS;
    if (tile >= m.num_tiles)
        return;
    for (int p = thread; p < NT * 64; p += slices * 32) {
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
        int unit = tile * CUDA_TILE_UNITS + from / 4;
        if constexpr (Store::ADDS) {
            float factor = store.factor(column);
            first = store.added(store.row_of(unit, 0), column, factor, first);
            second = store.added(store.row_of(unit, 1), column, factor, second);
        }
        store(unit, column, first, second);
    }
}

#endif
