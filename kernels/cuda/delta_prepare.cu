/* The part of the chunked delta rule that does not depend on the state: a block per chunk and value
 * head. See delta_chunk.h. */
#include "kernels/cuda/delta_chunk_device.h"

namespace {

enum {
    WARPS = 4,
    THREADS = WARPS * WARP,
    C = DELTA_C,
    ROW = CHUNKED_MAX_KEY_DIM + 4, /* stride of k and q: lanes (g, t) meet no bank twice */
    SQUARE = C + 1,                /* stride of [C][C] */
    COL_TILES = C / 8
};

struct prepare_room {
    sptr<float> k, q;         /* [C][ROW], tf32 */
    sptr<float> A, X, W;      /* [C][SQUARE]: A; T; scratch of the inverse, before it sums of g */
    sptr<float> g, beta;      /* [C] */
    sptr<float> from_start;   /* [C]: sums of g from row 0 on */
    sptr<float> inv_k, inv_q; /* [C] */
};

/* Rows of the chunk, normalised, zero beyond num_rows and key_head_dim; a warp per row. */
__device__ __forceinline__ void load_rows(sptr<float> dst, sptr<float> inverse, gptr<const float> x,
                                          size_t channels, int num_rows, int key_dim,
                                          float factor) {
    int lane = static_cast<int>(threadIdx.x) % WARP, warp = static_cast<int>(threadIdx.x) / WARP;
    int padded = (key_dim + 7) / 8 * 8;
    for (int r = warp; r < C; r += WARPS) {
        gptr<const float> row = x + static_cast<size_t>(r < num_rows ? r : 0) * channels;
        float inv = inverse_l2(row, key_dim) * factor;
        for (int d = lane; d < padded; d += WARP) {
            float v = 0.0f;
            if (r < num_rows && d < key_dim)
                v = row[d];
            dst[r * ROW + d] = to_tf32(v * inv);
        }
        if (lane == 0)
            inverse[r] = r < num_rows ? inv : 0.0f;
    }
}

/* g and beta, and sums[i][j] = g_{j+1} + ... + g_i. */
__device__ __forceinline__ void sum_decays(const prepare_room &room, const cuda_delta_args &args,
                                           size_t row0, int head, int num_rows) {
    int i = static_cast<int>(threadIdx.x);
    gptr<const float> a(args.a), b(args.b), A_log(args.A_log), bias(args.dt_bias);
    if (i < C) {
        float g = 0.0f, beta = 0.0f;
        if (i < num_rows) {
            size_t at = (row0 + i) * static_cast<size_t>(args.num_value_heads) + head;
            g = log_decay(a[at], A_log[head], bias[head]);
            beta = qep_sigmoidf(b[at]);
        }
        room.g[i] = g;
        room.beta[i] = beta;
    }
    __syncthreads();
    if (i < C) {
        float sum = 0.0f;
        for (int r = i; r < C; r++) {
            float g = room.g[r];
            sum = r == i ? 0.0f : sum + g;
            room.W[r * SQUARE + i] = sum;
        }
    } else if (i == C) {
        float sum = 0.0f;
        for (int r = 0; r < C; r++) {
            float g = room.g[r];
            sum += g;
            room.from_start[r] = sum;
        }
    }
    __syncthreads();
}

/* d = 16 rows of x (from row0 on) times k^T, tiles of 8 columns up to the diagonal. */
__device__ __forceinline__ void lower_product(float (&d)[COL_TILES][4], sptr<float> x,
                                              sptr<float> k, int row0, int key_dim) {
    int lane = static_cast<int>(threadIdx.x) % WARP, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int n = 0; n < COL_TILES; n++)
        d[n][0] = d[n][1] = d[n][2] = d[n][3] = 0.0f;
    for (int kk = 0; kk < key_dim; kk += 8) {
        uint32_t a[4];
#pragma unroll
        for (int i = 0; i < 4; i++)
            a[i] = __float_as_uint(x[(row0 + g + i % 2 * 8) * ROW + kk + t + i / 2 * 4]);
#pragma unroll
        for (int n = 0; n < COL_TILES; n++)
            if (8 * n < row0 + 16) {
                uint32_t b[2] = {__float_as_uint(k[(8 * n + g) * ROW + kk + t]),
                                 __float_as_uint(k[(8 * n + g) * ROW + kk + t + 4])};
                mma_tf32_1688(d[n], a, b);
            }
    }
}

/* A to shared memory, P to the workspace. */
__device__ __forceinline__ void write_products(const prepare_room &room, gptr<float> P,
                                               int key_dim) {
    int lane = static_cast<int>(threadIdx.x) % WARP, warp = static_cast<int>(threadIdx.x) / WARP;
    float kk[COL_TILES][4], qk[COL_TILES][4];
    lower_product(kk, room.k, room.k, 16 * warp, key_dim);
    lower_product(qk, room.q, room.k, 16 * warp, key_dim);
#pragma unroll
    for (int n = 0; n < COL_TILES; n++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int i = 16 * warp + lane / 4 + 8 * half, j = 8 * n + lane % 4 * 2;
            float beta = room.beta[i], p[2];
#pragma unroll
            for (int c = 0; c < 2; c++) {
                float decay = 0.0f;
                if (j + c <= i)
                    decay = qep_expf(room.W[i * SQUARE + j + c]);
                room.A[i * SQUARE + j + c] = j + c < i ? beta * kk[n][2 * half + c] * decay : 0.0f;
                p[c] = j + c <= i ? to_tf32(qk[n][2 * half + c] * decay) : 0.0f;
            }
            store8(P + i * C + j, make_uint2(__float_as_uint(p[0]), __float_as_uint(p[1])));
        }
}

/* Inverse of the 16x16 diagonal blocks of I + A: a thread per column, forward substitution. */
__device__ __forceinline__ void invert_diagonal(const prepare_room &room) {
    int block = static_cast<int>(threadIdx.x) / 16, col = static_cast<int>(threadIdx.x) % 16;
    if (block >= C / 16)
        return;
    float x[16];
#pragma unroll
    for (int i = 0; i < 16; i++) {
        x[i] = i == col ? 1.0f : 0.0f;
#pragma unroll
        for (int j = 0; j < i; j++)
            x[i] = fmaf(-room.A[(16 * block + i) * SQUARE + 16 * block + j], x[j], x[i]);
        room.X[(16 * block + i) * SQUARE + 16 * block + col] = x[i];
    }
}

/* out[i][j] = sign * sum over k of a[i][k] b[k][j], all [size][size] with stride SQUARE; a
 * (A_LOWER) or b is lower triangular and its upper part is not read. */
template <bool A_LOWER>
__device__ __forceinline__ void small_product(sptr<float> out, sptr<float> a, sptr<float> b,
                                              int size, float sign, int thread, int threads) {
    for (int e = thread; e < size * size; e += threads) {
        int i = e / size, j = e % size;
        float sum = 0.0f;
        for (int k = A_LOWER ? 0 : j; k < (A_LOWER ? i + 1 : size); k++)
            sum = fmaf(a[i * SQUARE + k], b[k * SQUARE + j], sum);
        out[i * SQUARE + j] = sign * sum;
    }
}

/* Joins inverted blocks of `size` in pairs: X21 = -X22 (A21 X11). W: scratch. */
__device__ __forceinline__ void join_blocks(const prepare_room &room, int size) {
    int pairs = C / size / 2, threads = THREADS / pairs;
    int pair = static_cast<int>(threadIdx.x) / threads;
    int thread = static_cast<int>(threadIdx.x) % threads;
    int first = 2 * size * pair, second = first + size;
    int lower = second * SQUARE + first;
    small_product<false>(room.W + lower, room.A + lower, room.X + first * SQUARE + first, size,
                         1.0f, thread, threads);
    __syncthreads();
    small_product<true>(room.X + lower, room.X + second * SQUARE + second, room.W + lower, size,
                        -1.0f, thread, threads);
    __syncthreads();
}

__device__ __forceinline__ void write_chunk(const prepare_room &room, gptr<float> chunk,
                                            int num_rows) {
    for (int e = static_cast<int>(threadIdx.x); e < C * C; e += THREADS) {
        int i = e / C, j = e % C;
        float v = 0.0f;
        if (j <= i)
            v = to_tf32(room.X[i * SQUARE + j] * room.beta[j]);
        chunk[CHUNK_T + e] = v;
    }
    int i = static_cast<int>(threadIdx.x);
    if (i < C) {
        float from_start = qep_expf(room.from_start[i]);
        chunk[CHUNK_KEY_FACTOR + i] = from_start * room.inv_k[i];
        chunk[CHUNK_QUERY_FACTOR + i] = from_start * room.inv_q[i];
    }
    if (i == 0)
        chunk[CHUNK_WHOLE] = qep_expf(room.from_start[num_rows - 1]);
}

/* Grid: chunks, value heads, spans. */
__global__ void __launch_bounds__(THREADS)
    delta_prepare_kernel(cuda_delta_args args, gptr<float> workspace) {
    shared_arena arena;
    prepare_room room;
    room.k = arena.take<float>(C * ROW);
    room.q = arena.take<float>(C * ROW);
    room.W = arena.take<float>(C * SQUARE);
    room.g = arena.take<float>(C);
    room.beta = arena.take<float>(C);
    room.from_start = arena.take<float>(C);
    room.inv_k = arena.take<float>(C);
    room.inv_q = arena.take<float>(C);
    room.A = arena.take<float>(C * SQUARE);
    room.X = room.k; /* k and q are done with by then */
    gptr<const qep_span> spans(args.dev_spans);
    gptr<const float> qkv(args.qkv);
    int span_idx = static_cast<int>(blockIdx.z), head = static_cast<int>(blockIdx.y);
    int chunk = static_cast<int>(blockIdx.x), key_dim = args.key_head_dim;
    qep_span span = spans[span_idx];
    int num_rows = min(span.num_rows - chunk * C, static_cast<int>(C));
    if (span.slot < 0 || num_rows <= 0)
        return;
    size_t row0 = static_cast<size_t>(span.row0 + chunk * C), channels = delta_channels(args);
    int key_head = head / (args.num_value_heads / args.num_key_heads);
    gptr<const float> q = qkv + row0 * channels + key_head * key_dim;
    gptr<const float> k = q + args.num_key_heads * key_dim;
    load_rows(room.q, room.inv_q, q, channels, num_rows, key_dim,
              1.0f / sqrtf(static_cast<float>(key_dim)));
    load_rows(room.k, room.inv_k, k, channels, num_rows, key_dim, 1.0f);
    sum_decays(room, args, row0, head, num_rows);
    size_t item = (first_chunk(spans, span_idx) + chunk) * args.num_value_heads + head;
    gptr<float> out = workspace + item * CHUNK_FLOATS;
    write_products(room, out + CHUNK_P, key_dim);
    int j = static_cast<int>(threadIdx.x);
    if (j < C) {
        float to_end = 0.0f;
        if (j < num_rows)
            to_end = qep_expf(room.W[(num_rows - 1) * SQUARE + j]);
        out[CHUNK_END_FACTOR + j] = to_end * room.inv_k[j];
    }
    __syncthreads();
    invert_diagonal(room);
    __syncthreads();
    join_blocks(room, 16);
    join_blocks(room, 32);
    write_chunk(room, out, num_rows);
}

} // namespace

extern "C" cudaError_t cuda_launch_delta_prepare(cudaStream_t stream,
                                                 const struct cuda_delta_args *args,
                                                 int32_t max_rows, float *workspace) {
    dim3 grid(static_cast<unsigned>((max_rows + C - 1) / C),
              static_cast<unsigned>(args->num_value_heads), static_cast<unsigned>(args->num_spans));
    size_t shared = (2 * C * ROW + 2 * C * SQUARE + 5 * C) * sizeof(float);
    return launch(delta_prepare_kernel, grid, dim3(THREADS), shared, stream, *args, workspace);
}
