/* The walk over the chunks of a span: a block per span, value head and 32 columns of the state,
 * which stays in the accumulators of its mma, fp32; a tf32 copy in shared memory is the operand of
 * the products with it. See delta_chunk.h. */
#include "kernels/cuda/delta_chunk_device.h"

namespace {

enum {
    WARPS = 8,
    THREADS = WARPS * WARP,
    C = DELTA_C,
    COLS = 32,
    COL_TILES = COLS / 8,
    KEYS = CHUNKED_MAX_KEY_DIM,
    /* Strides chosen so that the lanes (g, t) of the fragments meet no bank twice. */
    ROW = KEYS + 8,
    SQUARE = C + 4,
    NEWS = COLS + 8,
    STATE = COLS + 4
};

struct chunk_room {
    sptr<float> k, q;    /* [C][ROW]: rows as they came */
    sptr<float> T, P;    /* [C][SQUARE] */
    sptr<float> v;       /* [C][NEWS]: V, then V - e K S, tf32 */
    sptr<float> news;    /* [C][NEWS]: N, tf32 */
    sptr<float> S;       /* [KEYS][STATE], tf32 */
    sptr<float> factors; /* CHUNK_FLOATS - CHUNK_KEY_FACTOR floats as prepare left them */
};

/* Where a block works. */
struct chunk_place {
    int num_rows;            /* of the span */
    int key_dim, value_cols; /* valid columns of this slice */
    size_t channels;
    gptr<const float> q, k, v;  /* row 0 of the span */
    gptr<const float> prepared; /* of its first chunk */
    size_t prepared_stride;     /* floats between chunks */
};

__device__ __forceinline__ int lane_g() {
    return static_cast<int>(threadIdx.x) % WARP / 4;
}
__device__ __forceinline__ int lane_t() {
    return static_cast<int>(threadIdx.x) % 4;
}
__device__ __forceinline__ int warp_idx() {
    return static_cast<int>(threadIdx.x) / WARP;
}

/* Starts copying [C][cols] floats, row i from src + i * src_stride; rows from num_rows and columns
 * from valid_cols on are zero. cols and valid_cols are multiples of 4. */
__device__ __forceinline__ void copy_rows(sptr<float> dst, int dst_stride, gptr<const float> src,
                                          size_t src_stride, int cols, int num_rows,
                                          int valid_cols) {
    int quads = cols / 4;
    for (int i = static_cast<int>(threadIdx.x); i < C * quads; i += THREADS) {
        int r = i / quads, c = i % quads * 4;
        bool there = r < num_rows && c < valid_cols;
        size_t at = there ? static_cast<size_t>(r) * src_stride + c : 0;
        cp_async16(dst + r * dst_stride + c, src + at, there ? 16 : 0);
    }
}

__device__ __forceinline__ void copy_key_rows(sptr<float> dst, gptr<const float> src,
                                              const chunk_place &place, int chunk) {
    copy_rows(dst, ROW, src + static_cast<size_t>(chunk) * C * place.channels, place.channels,
              (place.key_dim + 15) / 16 * 16, place.num_rows - chunk * C, place.key_dim);
}

__device__ __forceinline__ void copy_values(const chunk_room &room, const chunk_place &place,
                                            int chunk) {
    copy_rows(room.v, NEWS, place.v + static_cast<size_t>(chunk) * C * place.channels,
              place.channels, COLS, place.num_rows - chunk * C, place.value_cols);
}

__device__ __forceinline__ void copy_square(sptr<float> dst, const chunk_place &place, int chunk,
                                            int which) {
    copy_rows(dst, SQUARE, place.prepared + chunk * place.prepared_stride + which, C, C, C, C);
}

__device__ __forceinline__ void copy_factors(const chunk_room &room, const chunk_place &place,
                                             int chunk) {
    int i = static_cast<int>(threadIdx.x) * 4;
    if (i < CHUNK_FLOATS - CHUNK_KEY_FACTOR)
        cp_async16(room.factors + i,
                   place.prepared + chunk * place.prepared_stride + CHUNK_KEY_FACTOR + i);
}

/* d = 16 rows of x (k or q) times S. The k index of a step of 8 is permuted: lane t takes 2t, 2t +
 * 1. */
__device__ __forceinline__ void times_state(float (&d)[COL_TILES][4], sptr<float> x,
                                            const chunk_room &room, int row0, int key_dim) {
    int g = lane_g(), t = lane_t();
#pragma unroll
    for (int n = 0; n < COL_TILES; n++)
        d[n][0] = d[n][1] = d[n][2] = d[n][3] = 0.0f;
#pragma unroll 2
    for (int kk = 0; kk < key_dim; kk += 8) {
        uint2 top = load8(x + (row0 + g) * ROW + kk + 2 * t);
        uint2 low = load8(x + (row0 + g + 8) * ROW + kk + 2 * t);
        uint32_t a[4] = {tf32_bits_of_row(top.x), tf32_bits_of_row(low.x), tf32_bits_of_row(top.y),
                         tf32_bits_of_row(low.y)};
#pragma unroll
        for (int n = 0; n < COL_TILES; n++) {
            uint32_t b[2] = {__float_as_uint(room.S[(kk + 2 * t) * STATE + 8 * n + g]),
                             __float_as_uint(room.S[(kk + 2 * t + 1) * STATE + 8 * n + g])};
            mma_tf32_1688(d[n], a, b);
        }
    }
}

/* v = V - e K S for 16 rows. */
__device__ __forceinline__ void subtract_known(const chunk_room &room,
                                               const float (&ks)[COL_TILES][4], int row0) {
    int g = lane_g(), t = lane_t();
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int row = row0 + g + 8 * half;
        float factor = room.factors[row];
#pragma unroll
        for (int n = 0; n < COL_TILES; n++) {
            int at = row * NEWS + 8 * n + 2 * t;
            float lo = room.v[at], hi = room.v[at + 1];
            room.v[at] = to_tf32(fmaf(-factor, ks[n][2 * half], lo));
            room.v[at + 1] = to_tf32(fmaf(-factor, ks[n][2 * half + 1], hi));
        }
    }
}

/* The A fragment (rows row0 .., columns kk ..) of a [C][SQUARE] matrix. */
__device__ __forceinline__ void square_fragment(uint32_t (&a)[4], sptr<float> x, int row0, int kk) {
#pragma unroll
    for (int i = 0; i < 4; i++)
        a[i] =
            __float_as_uint(x[(row0 + lane_g() + i % 2 * 8) * SQUARE + kk + lane_t() + i / 2 * 4]);
}

/* N = T v: a warp takes 16 rows and half the columns. T is lower triangular. */
__device__ __forceinline__ void solve_news(const chunk_room &room) {
    int g = lane_g(), t = lane_t(), row0 = warp_idx() % 4 * 16, tile0 = warp_idx() / 4 * 2;
    float d[2][4] = {{0.0f, 0.0f, 0.0f, 0.0f}, {0.0f, 0.0f, 0.0f, 0.0f}};
    for (int kk = 0; kk < row0 + 16; kk += 8) {
        uint32_t a[4];
        square_fragment(a, room.T, row0, kk);
#pragma unroll
        for (int n = 0; n < 2; n++) {
            int at = (kk + t) * NEWS + 8 * (tile0 + n) + g;
            uint32_t b[2] = {__float_as_uint(room.v[at]), __float_as_uint(room.v[at + 4 * NEWS])};
            mma_tf32_1688(d[n], a, b);
        }
    }
#pragma unroll
    for (int n = 0; n < 2; n++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            room.news[(row0 + g + i / 2 * 8) * NEWS + 8 * (tile0 + n) + 2 * t + i % 2] =
                to_tf32(d[n][i]);
}

/* S' = e_last S + K^T (D_last N) for the warp's 16 keys. */
__device__ __forceinline__ void update_state(float (&S)[COL_TILES][4], const chunk_room &room) {
    int g = lane_g(), t = lane_t(), key = warp_idx() * 16 + g;
    float whole = room.factors[CHUNK_WHOLE - CHUNK_KEY_FACTOR];
#pragma unroll
    for (int n = 0; n < COL_TILES; n++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            S[n][i] *= whole;
#pragma unroll 2
    for (int kk = 0; kk < C; kk += 8) {
        float first = room.factors[CHUNK_END_FACTOR - CHUNK_KEY_FACTOR + kk + t];
        float second = room.factors[CHUNK_END_FACTOR - CHUNK_KEY_FACTOR + kk + t + 4];
        uint32_t a[4];
#pragma unroll
        for (int i = 0; i < 4; i++)
            a[i] = tf32_bits_of_row(
                __float_as_uint(room.k[(kk + t + i / 2 * 4) * ROW + key + i % 2 * 8]));
#pragma unroll
        for (int n = 0; n < COL_TILES; n++) {
            int at = (kk + t) * NEWS + 8 * n + g;
            uint32_t b[2] = {tf32_bits(first * room.news[at]),
                             tf32_bits(second * room.news[at + 4 * NEWS])};
            mma_tf32_1688(S[n], a, b);
        }
    }
}

/* out = e Q S + P N for 16 rows; qs: Q S. */
__device__ __forceinline__ void write_out(float (&qs)[COL_TILES][4], const chunk_room &room,
                                          gptr<float> out, size_t out_stride, int row0,
                                          int num_rows, int value_cols) {
    int g = lane_g(), t = lane_t();
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float factor = room.factors[CHUNK_QUERY_FACTOR - CHUNK_KEY_FACTOR + row0 + g + 8 * half];
#pragma unroll
        for (int n = 0; n < COL_TILES; n++) {
            qs[n][2 * half] *= factor;
            qs[n][2 * half + 1] *= factor;
        }
    }
    for (int kk = 0; kk < row0 + 16; kk += 8) {
        uint32_t a[4];
        square_fragment(a, room.P, row0, kk);
#pragma unroll
        for (int n = 0; n < COL_TILES; n++) {
            int at = (kk + t) * NEWS + 8 * n + g;
            uint32_t b[2] = {__float_as_uint(room.news[at]),
                             __float_as_uint(room.news[at + 4 * NEWS])};
            mma_tf32_1688(qs[n], a, b);
        }
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int row = row0 + g + 8 * half;
#pragma unroll
        for (int n = 0; n < COL_TILES; n++) {
            int c = 8 * n + 2 * t;
            if (row < num_rows && c < value_cols)
                store8(out + static_cast<size_t>(row) * out_stride + c,
                       make_uint2(__float_as_uint(qs[n][2 * half]),
                                  __float_as_uint(qs[n][2 * half + 1])));
        }
    }
}

/* The warp's part of the state to the operand copy. */
__device__ __forceinline__ void share_state(const float (&S)[COL_TILES][4],
                                            const chunk_room &room) {
    int key = warp_idx() * 16 + lane_g(), t = lane_t();
#pragma unroll
    for (int n = 0; n < COL_TILES; n++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            room.S[(key + i / 2 * 8) * STATE + 8 * n + 2 * t + i % 2] = to_tf32(S[n][i]);
}

/* The state between global memory and the accumulators. */
template <bool STORE>
__device__ __forceinline__ void move_state(float (&S)[COL_TILES][4], gptr<float> state, int key_dim,
                                           int value_dim, int value_cols) {
    int key = warp_idx() * 16 + lane_g(), t = lane_t();
#pragma unroll
    for (int n = 0; n < COL_TILES; n++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int row = key + 8 * half, c = 8 * n + 2 * t;
            if (!STORE)
                S[n][2 * half] = S[n][2 * half + 1] = 0.0f;
            if (row >= key_dim || c >= value_cols)
                continue;
            gptr<float> at = state + row * value_dim + c;
            if (STORE) {
                store8(at, make_uint2(__float_as_uint(S[n][2 * half]),
                                      __float_as_uint(S[n][2 * half + 1])));
            } else {
                uint2 v = load8(at);
                S[n][2 * half] = __uint_as_float(v.x);
                S[n][2 * half + 1] = __uint_as_float(v.y);
            }
        }
}

__device__ __forceinline__ void walk_chunks(float (&S)[COL_TILES][4], const chunk_room &room,
                                            const chunk_place &place, gptr<float> out,
                                            size_t out_stride) {
    int num_chunks = (place.num_rows + C - 1) / C, row0 = warp_idx() % 4 * 16;
    bool is_query = warp_idx() >= 4; /* of the products with S: K by warps 0..3, Q by 4..7 */
    copy_key_rows(room.k, place.k, place, 0);
    copy_key_rows(room.q, place.q, place, 0);
    copy_square(room.T, place, 0, CHUNK_T);
    copy_square(room.P, place, 0, CHUNK_P);
    copy_values(room, place, 0);
    copy_factors(room, place, 0);
    for (int chunk = 0; chunk < num_chunks; chunk++) {
        bool more = chunk + 1 < num_chunks;
        float xs[COL_TILES][4];
        cp_async_commit();
        cp_async_wait<0>();
        share_state(S, room);
        __syncthreads();
        times_state(xs, is_query ? room.q : room.k, room, row0, place.key_dim);
        if (!is_query)
            subtract_known(room, xs, row0);
        __syncthreads(); /* v is there; q and S were read */
        if (more)
            copy_key_rows(room.q, place.q, place, chunk + 1);
        solve_news(room);
        __syncthreads(); /* news are there; T and v were read */
        if (more) {
            copy_square(room.T, place, chunk + 1, CHUNK_T);
            copy_values(room, place, chunk + 1);
        }
        if (warp_idx() * 16 < place.key_dim)
            update_state(S, room);
        __syncthreads(); /* k was read */
        if (more)
            copy_key_rows(room.k, place.k, place, chunk + 1);
        if (is_query)
            write_out(xs, room, out + static_cast<size_t>(chunk) * C * out_stride, out_stride, row0,
                      place.num_rows - chunk * C, place.value_cols);
        __syncthreads(); /* P, news and factors were read */
        if (more) {
            copy_square(room.P, place, chunk + 1, CHUNK_P);
            copy_factors(room, place, chunk + 1);
        }
    }
}

/* Grid: slices of 32 columns, value heads, spans. */
__global__ void __launch_bounds__(THREADS, 1)
    delta_chunk_kernel(cuda_delta_args args, gptr<const float> workspace) {
    shared_arena arena;
    chunk_room room;
    room.k = arena.take<float>(C * ROW);
    room.q = arena.take<float>(C * ROW);
    room.T = arena.take<float>(C * SQUARE);
    room.P = arena.take<float>(C * SQUARE);
    room.v = arena.take<float>(C * NEWS);
    room.news = arena.take<float>(C * NEWS);
    room.S = arena.take<float>(KEYS * STATE);
    room.factors = arena.take<float>(CHUNK_FLOATS - CHUNK_KEY_FACTOR);
    gptr<const qep_span> spans(args.dev_spans);
    gptr<const float> qkv(args.qkv);
    int span_idx = static_cast<int>(blockIdx.z), head = static_cast<int>(blockIdx.y);
    int heads = args.num_value_heads, col0 = static_cast<int>(blockIdx.x) * COLS;
    qep_span span = spans[span_idx];
    if (span.slot < 0)
        return;
    size_t key_dim = static_cast<size_t>(args.key_head_dim);
    size_t value_dim = static_cast<size_t>(args.value_head_dim);
    size_t row0 = static_cast<size_t>(span.row0);
    chunk_place place;
    place.num_rows = span.num_rows;
    place.key_dim = args.key_head_dim;
    place.value_cols = min(args.value_head_dim - col0, static_cast<int>(COLS));
    place.channels = delta_channels(args);
    place.q = qkv + row0 * place.channels + head / (heads / args.num_key_heads) * key_dim;
    place.k = place.q + args.num_key_heads * key_dim;
    place.v =
        qkv + row0 * place.channels + 2 * args.num_key_heads * key_dim + head * value_dim + col0;
    place.prepared = workspace + (first_chunk(spans, span_idx) * heads + head) * CHUNK_FLOATS;
    place.prepared_stride = static_cast<size_t>(heads) * CHUNK_FLOATS;
    gptr<float> state = gptr<float>(args.state) +
                        (static_cast<size_t>(span.slot) * heads + head) * key_dim * value_dim +
                        col0;
    gptr<float> out = gptr<float>(args.out) + (row0 * heads + head) * value_dim + col0;
    float S[COL_TILES][4];
    move_state<false>(S, state, args.key_head_dim, args.value_head_dim, place.value_cols);
    walk_chunks(S, room, place, out, heads * value_dim);
    move_state<true>(S, state, args.key_head_dim, args.value_head_dim, place.value_cols);
}

} // namespace

extern "C" cudaError_t cuda_launch_delta_chunks(cudaStream_t stream,
                                                const struct cuda_delta_args *args,
                                                const float *workspace) {
    dim3 grid(static_cast<unsigned>((args->value_head_dim + COLS - 1) / COLS),
              static_cast<unsigned>(args->num_value_heads), static_cast<unsigned>(args->num_spans));
    size_t shared = (2 * C * ROW + 2 * C * SQUARE + 2 * C * NEWS + KEYS * STATE + CHUNK_FLOATS -
                     CHUNK_KEY_FACTOR) *
                    sizeof(float);
    return launch(delta_chunk_kernel, grid, dim3(THREADS), shared, stream, *args, workspace);
}
