/* Canonical rows (kernels/weight.h) to packed tiles, and packed rows back to fp32 for the
 * embedding. */
#include "kernels/cuda/matmul.h"
#include "kernels/cuda/packed.cuh"

/* Columns and halves within a block of the elements of one 16-byte load, in memory order. */
struct element {
    int second, col;
};

/* Element i (of 32, 16, 8 or 4) of load `load`; t = lane % 4. */
static __device__ __forceinline__ element element_of(int type, int load, int t, int i) {
    int h, j, q, s;
    if (type == QEP_WEIGHT_INT4) {
        int nibble = i % 8;
        h = i / 16, j = i / 8 % 2, s = nibble % 2, q = nibble / 2 % 2 * 2 + nibble / 4;
    } else if (type == QEP_WEIGHT_INT8) {
        int byte = i % 4;
        h = load, j = i / 8, s = byte % 2, q = i / 4 % 2 * 2 + byte / 2;
    } else if (type == QEP_WEIGHT_BF16) {
        int word = i / 2;
        h = load / 2, j = load % 2, s = word % 2, q = word / 2 * 2 + i % 2;
    } else {
        h = load / 4, j = load / 2 % 2, s = load % 2, q = i;
    }
    return {s, 32 * h + 8 * t + 4 * j + q};
}

/* The stored bits of one element, as the packed form has them. low > 0: bf16 in two planes, the
 * second `low` bytes behind the first. */
static __device__ __forceinline__ uint32_t canonical_bits(int type, gptr<const byte_t> data,
                                                          size_t row, int cols, int col,
                                                          size_t low) {
    size_t at = row * static_cast<size_t>(cols) + static_cast<size_t>(col);
    if (low > 0) {
        uint32_t high_byte = data[at], low_byte = data[low + at];
        uint32_t rotated = high_byte << 8 | low_byte;
        return (rotated >> 1 | rotated << 15) & 0xffffu;
    }
    if (type == QEP_WEIGHT_INT4) {
        uint32_t pair = data[row * ((static_cast<size_t>(cols) + 1) / 2) + col / 2];
        return col % 2 == 0 ? pair & 15u : pair >> 4;
    }
    if (type == QEP_WEIGHT_INT8)
        return static_cast<uint32_t>(data[at]) ^ 0x80u;
    uint32_t bits = 0;
    int size = type == QEP_WEIGHT_BF16 ? 2 : 4;
    for (int b = 0; b < size; b++)
        bits |= static_cast<uint32_t>(data[at * size + b]) << (8 * b);
    return bits;
}

/* One thread writes one lane's 16 bytes. rows of `from`: num_first rows of the first half, then
 * those of the second, both starting at unit 8 * tile0. */
static __global__ void repack_kernel(cuda_matrix m, int tile0, int num_tiles, int num_first,
                                     int num_second, size_t low, gptr<const byte_t> from,
                                     gptr<byte_t> data) {
    int loads = m.type == QEP_WEIGHT_INT4   ? 1
                : m.type == QEP_WEIGHT_INT8 ? 2
                : m.type == QEP_WEIGHT_BF16 ? 4
                                            : 8;
    size_t count = static_cast<size_t>(num_tiles) * m.num_blocks * loads * 32;
    size_t at = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (at >= count)
        return;
    int lane = static_cast<int>(at % 32), load = static_cast<int>(at / 32 % loads);
    int block = static_cast<int>(at / 32 / loads % m.num_blocks);
    int tile = static_cast<int>(at / 32 / loads / m.num_blocks);
    int bits = 4 * loads; /* of an element */
    int unit = tile * CUDA_TILE_UNITS + lane / 4;
    uint32_t zero = m.type == QEP_WEIGHT_INT4 ? 8u : m.type == QEP_WEIGHT_INT8 ? 128u : 0u;
    uint32_t words[4] = {0, 0, 0, 0};
    for (int i = 0; i < 128 / bits; i++) {
        element e = element_of(m.type, load, lane % 4, i);
        int col = block * CUDA_BLOCK_COLS + e.col;
        bool inside = col < m.cols && unit < (e.second ? num_second : num_first);
        size_t row = static_cast<size_t>(e.second ? num_first + unit : unit);
        uint32_t value = inside ? canonical_bits(m.type, from, row, m.cols, col, low) : zero;
        words[i * bits / 32] |= value << (i * bits % 32);
    }
    size_t first = static_cast<size_t>(tile0) * m.num_blocks * loads * CUDA_LOAD_BYTES;
    store16(data + first + at * 16, make_uint4(words[0], words[1], words[2], words[3]));
}

/* scales bf16 [rows][groups] of the same rows to [tile][group][8][2]. */
static __global__ void repack_scales_kernel(cuda_matrix m, int tile0, int num_tiles, int num_first,
                                            int num_second, gptr<const uint16_t> from,
                                            gptr<uint16_t> scales) {
    size_t per_tile = static_cast<size_t>(m.num_groups) * 16;
    size_t at = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
    if (at >= per_tile * num_tiles)
        return;
    int second = static_cast<int>(at % 2);
    int unit = static_cast<int>(at / per_tile) * CUDA_TILE_UNITS + static_cast<int>(at / 2 % 8);
    size_t group = at % per_tile / 16;
    bool inside = unit < (second ? num_second : num_first);
    size_t row = static_cast<size_t>(second ? num_first + unit : unit);
    uint16_t value = 0;
    if (inside)
        value = from[row * m.num_groups + group];
    scales[tile0 * per_tile + at] = value;
}

static unsigned int blocks_of(size_t count, unsigned int threads) {
    return static_cast<unsigned int>((count + threads - 1) / threads);
}

extern "C" cudaError_t cuda_launch_repack(cudaStream_t stream, const struct cuda_matrix *m,
                                          const struct cuda_repack_part *part, const void *from,
                                          void *data) {
    size_t count = static_cast<size_t>(part->num_tiles) * cuda_tile_bytes(m) / 16;
    size_t low = part->planes == 0 ? 0
                                   : static_cast<size_t>(part->num_first + part->num_second) *
                                         static_cast<size_t>(m->cols);
    return launch(repack_kernel, dim3(blocks_of(count, 256)), dim3(256), 0, stream, *m, part->tile0,
                  part->num_tiles, part->num_first, part->num_second, low,
                  static_cast<const byte_t *>(from), static_cast<byte_t *>(data));
}

extern "C" cudaError_t cuda_launch_repack_scales(cudaStream_t stream, const struct cuda_matrix *m,
                                                 const struct cuda_repack_part *part,
                                                 const void *from, void *scales) {
    size_t count = static_cast<size_t>(part->num_tiles) * static_cast<size_t>(m->num_groups) * 16;
    return launch(repack_scales_kernel, dim3(blocks_of(count, 256)), dim3(256), 0, stream, *m,
                  part->tile0, part->num_tiles, part->num_first, part->num_second,
                  static_cast<const uint16_t *>(from), static_cast<uint16_t *>(scales));
}

/* One element of a packed row. */
static __device__ __forceinline__ float packed_value(const cuda_matrix &m, gptr<const byte_t> data,
                                                     gptr<const byte_t> scales, int row, int col) {
    int second = row >= m.half, unit = row - second * m.half;
    int tile = unit / CUDA_TILE_UNITS, g = unit % CUDA_TILE_UNITS;
    int block = col / CUDA_BLOCK_COLS, h = col / 32 % 2, t = col / 8 % 4, j = col / 4 % 2;
    int q = col % 4, lane = g * 4 + t, loads, load, word;
    if (m.type == QEP_WEIGHT_INT4)
        loads = 1, load = 0, word = 2 * h + j;
    else if (m.type == QEP_WEIGHT_INT8)
        loads = 2, load = h, word = 2 * j + q / 2;
    else if (m.type == QEP_WEIGHT_BF16)
        loads = 4, load = 2 * h + j, word = second + 2 * (q / 2);
    else
        loads = 8, load = 4 * h + 2 * j + second, word = q;
    size_t at = (static_cast<size_t>(tile) * m.num_blocks + block) * loads + load;
    uint32_t w = load4(data + at * CUDA_LOAD_BYTES + lane * 16 + word * 4);
    if (m.type == QEP_WEIGHT_F32)
        return __uint_as_float(w);
    if (m.type == QEP_WEIGHT_BF16)
        return q % 2 == 0 ? bf16x2_lo(w) : bf16x2_hi(w);
    int value = m.type == QEP_WEIGHT_INT8
                    ? static_cast<int>(w >> (8 * (second + 2 * (q % 2))) & 255u) - 128
                    : static_cast<int>(w >> (4 * (second + 2 * (q / 2) + 4 * (q % 2))) & 15u) - 8;
    size_t group = static_cast<size_t>(tile) * m.num_groups + group_of(m, col / 32);
    uint32_t pair = load4(scales + group * CUDA_GROUP_BYTES + g * 4);
    return static_cast<float>(value) * (second ? bf16x2_hi(pair) : bf16x2_lo(pair));
}

/* Row ids[blockIdx.x] of the matrix; a negative id gives zeros. */
static __global__ void embed_kernel(cuda_matrix m, gptr<const byte_t> data,
                                    gptr<const byte_t> scales, gptr<const int32_t> ids,
                                    gptr<float> out) {
    int id = ids[blockIdx.x];
    size_t first = static_cast<size_t>(blockIdx.x) * m.cols;
    for (int c = static_cast<int>(threadIdx.x); c < m.cols; c += static_cast<int>(blockDim.x))
        out[first + c] = id < 0 ? 0.0f : packed_value(m, data, scales, id, c);
}

extern "C" cudaError_t cuda_launch_embed(cudaStream_t stream, const struct cuda_matrix *m,
                                         const void *data, const void *scales, const int32_t *ids,
                                         int32_t n, float *out) {
    return launch(embed_kernel, dim3(static_cast<unsigned int>(n)), dim3(256), 0, stream, *m,
                  static_cast<const byte_t *>(data), static_cast<const byte_t *>(scales), ids, out);
}
