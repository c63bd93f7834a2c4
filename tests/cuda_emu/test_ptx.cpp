/* cp.async, ldmatrix, mma and the bf16 words. */
#include "test_emu.h"

#include <cmath>
#include <random>

namespace {

enum { none, no_wait, no_commit, no_barrier, wait_too_few, written_over, source_changed };

/* Two stages: while one tile is summed, the next is on its way. */
__global__ void pipeline(gptr<int> out, gptr<int> in, int tiles, int defect) {
    shared_arena arena;
    const int n = static_cast<int>(blockDim.x), i = static_cast<int>(threadIdx.x);
    sptr<int> stage = arena.take<int>(2 * 4 * n);
    int sum = 0;
    cp_async16(stage + 4 * i, in + 4 * i);
    cp_async_commit();
    for (int tile = 0; tile < tiles; tile++) {
        int next = tile + 1;
        if (next < tiles)
            cp_async16(stage + 4 * (next % 2 * n + i), in + 4 * (next * n + i));
        if (defect != no_commit)
            cp_async_commit();
        if (defect == wait_too_few)
            cp_async_wait<2>();
        else if (defect != no_wait)
            cp_async_wait<1>();
        if (defect != no_barrier)
            __syncthreads();
        if (defect == written_over && tile == 0 && i == 0)
            stage[4 * (n + i)] = 1;
        if (defect == source_changed && tile == 0 && i == 0)
            in[4 * (n + i)] += 1;
        for (int k = 0; k < 4; k++)
            sum += stage[tile % 2 * 4 * n + 4 * (n - 1 - i) + k];
        __syncthreads();
    }
    out[i] = sum;
}

__global__ void partial_copies(gptr<unsigned char> out, gptr<const unsigned char> in, int bytes) {
    shared_arena arena;
    sptr<unsigned char> to = arena.take<unsigned char>(16);
    cp_async16(to, in, bytes);
    cp_async_commit();
    cp_async_wait<0>();
    store16(out, load16(to));
}

} // namespace

TEST(copies_under_way) {
    const int n = 64, tiles = 5;
    test::buffer<int> in(std::vector<int>(n * 4 * tiles, 1)), out(n);
    auto with = [&](int defect) {
        return [&, defect] {
            RUN(pipeline, 1, n, 2 * 16 * n, nullptr, out.get(), in.get(), tiles, defect);
        };
    };
    CLEAN(with(none));
    CHECK(out.host()[3] == 4 * tiles);
    REPORTED("not waited for", with(no_wait));
    REPORTED("not waited for", with(no_commit));
    REPORTED("not waited for", with(wait_too_few));
    REPORTED("not waited for", with(written_over));
    REPORTED("shared memory", with(no_barrier));
    REPORTED("changed before the wait", with(source_changed));
}

TEST(copies_of_fewer_bytes) {
    std::vector<unsigned char> bytes(32);
    for (size_t i = 0; i < 32; i++)
        bytes[i] = static_cast<unsigned char>(i + 1);
    test::buffer<unsigned char> in(bytes), out(16), small(std::vector<unsigned char>(10, 9));
    for (int n : {16, 12, 7, 0})
        test::clean(
            [&] {
                RUN(partial_copies, 1, 1, 16, nullptr, out.get(), in.get(), n);
                std::vector<unsigned char> got = out.host();
                for (int i = 0; i < 16; i++)
                    CHECK(got[static_cast<size_t>(i)] == (i < n ? i + 1 : 0));
            },
            __FILE__, __LINE__, 2);
    CLEAN([&] { RUN(partial_copies, 1, 1, 16, nullptr, out.get(), small.get(), 10); });
    REPORTED("out of bounds",
             [&] { RUN(partial_copies, 1, 1, 16, nullptr, out.get(), small.get(), 16); });
    REPORTED("misaligned",
             [&] { RUN(partial_copies, 1, 1, 16, nullptr, out.get(), in.get() + 4, 16); });
    CLEAN([&] { RUN(partial_copies, 1, 1, 16, nullptr, out.get(), nullptr, 0); });
}

namespace {

/* Element (row, col) of matrix m holds 64 m + 8 row + col. */
__global__ void load_matrices(gptr<uint32_t> out, int trans, int defect) {
    shared_arena arena;
    sptr<uint16_t> tiles = arena.take<uint16_t>(256);
    unsigned int lane = threadIdx.x;
    for (unsigned int i = lane; i < 256; i += 32)
        tiles[i] = static_cast<uint16_t>(i);
    if (defect != no_barrier)
        __syncwarp();
    uint32_t r[4];
    unsigned int at = 8 * lane + (defect == wait_too_few ? 4 : 0);
    if (defect == no_wait && lane == 6)
        return;
    if (trans)
        ldmatrix_x4_trans(r, tiles + at);
    else
        ldmatrix_x4(r, tiles + at);
    for (unsigned int i = 0; i < 4; i++)
        out[4 * lane + i] = r[i];
}

} // namespace

TEST(matrices_from_shared_memory) {
    test::buffer<uint32_t> out(128);
    for (int trans = 0; trans < 2; trans++) {
        CLEAN([&] { RUN(load_matrices, 1, 32, 512, nullptr, out.get(), trans, none); });
        std::vector<uint32_t> got = out.host();
        for (uint32_t lane = 0; lane < 32; lane++)
            for (uint32_t i = 0; i < 4; i++) {
                uint32_t g = lane / 4, t = 2 * (lane % 4), base = 64 * i;
                uint32_t first = trans ? 8 * t + g : 8 * g + t;
                uint32_t second = trans ? 8 * (t + 1) + g : 8 * g + t + 1;
                CHECK(got[4 * lane + i] == ((base + first) | (base + second) << 16));
            }
    }
    auto with = [&](int defect) {
        return [&, defect] { RUN(load_matrices, 1, 32, 512, nullptr, out.get(), 0, defect); };
    };
    REPORTED("shared memory", with(no_barrier));
    REPORTED("misaligned", with(wait_too_few));
    REPORTED("divergent", with(no_wait));
}

namespace {

/* d = c + a b with fragments gathered from plain matrices as the ISA lays them out. */
__global__ void multiply_bf16(gptr<float> d, gptr<const uint16_t> a, gptr<const uint16_t> b) {
    unsigned int lane = threadIdx.x, g = lane / 4, t = lane % 4;
    uint32_t fa[4], fb[2];
    float fd[4];
    for (unsigned int i = 0; i < 4; i++) {
        unsigned int row = g + (i % 2) * 8, col = 2 * t + (i / 2) * 8;
        fa[i] = a[16 * row + col] | static_cast<uint32_t>(a[16 * row + col + 1]) << 16;
        fd[i] = d[8 * (g + (i / 2) * 8) + 2 * t + i % 2];
    }
    for (unsigned int i = 0; i < 2; i++) {
        unsigned int k = 2 * t + 8 * i;
        fb[i] = b[8 * k + g] | static_cast<uint32_t>(b[8 * (k + 1) + g]) << 16;
    }
    mma_bf16_16816(fd, fa, fb);
    for (unsigned int i = 0; i < 4; i++)
        d[8 * (g + (i / 2) * 8) + 2 * t + i % 2] = fd[i];
}

__global__ void multiply_tf32(gptr<float> d, gptr<const float> a, gptr<const float> b) {
    unsigned int lane = threadIdx.x, g = lane / 4, t = lane % 4;
    uint32_t fa[4], fb[2];
    float fd[4];
    for (unsigned int i = 0; i < 4; i++) {
        fa[i] = __float_as_uint(a[8 * (g + (i % 2) * 8) + t + (i / 2) * 4]);
        fd[i] = d[8 * (g + (i / 2) * 8) + 2 * t + i % 2];
    }
    for (unsigned int i = 0; i < 2; i++)
        fb[i] = __float_as_uint(b[8 * (t + 4 * i) + g]);
    mma_tf32_1688(fd, fa, fb);
    for (unsigned int i = 0; i < 4; i++)
        d[8 * (g + (i / 2) * 8) + 2 * t + i % 2] = fd[i];
}

__global__ void half_a_warp_multiplies(gptr<float> out) {
    uint32_t a[4] = {}, b[2] = {};
    float d[4] = {};
    if (threadIdx.x < 16)
        mma_bf16_16816(d, a, b);
    else
        mma_bf16_16816(d, a, b);
    out[threadIdx.x] = d[0];
}

__global__ void all_multiply(gptr<float> out) {
    uint32_t a[4] = {}, b[2] = {};
    float d[4] = {};
    mma_bf16_16816(d, a, b);
    out[threadIdx.x] = d[0];
}

std::vector<float> random_floats(size_t n, unsigned int seed) {
    std::mt19937 rng(seed);
    std::uniform_real_distribution<float> uniform(-1.0f, 1.0f);
    std::vector<float> v(n);
    for (float &x : v)
        x = uniform(rng);
    return v;
}

template <class A, class F>
void check_product(const std::vector<float> &d, const std::vector<float> &c,
                   const std::vector<A> &a, const std::vector<A> &b, size_t depth, F value) {
    for (size_t row = 0; row < 16; row++)
        for (size_t n = 0; n < 8; n++) {
            double sum = static_cast<double>(c[8 * row + n]);
            for (size_t k = 0; k < depth; k++)
                sum += value(a[depth * row + k]) * value(b[8 * k + n]);
            CHECK(std::fabs(static_cast<double>(d[8 * row + n]) - sum) < 1e-5);
        }
}

} // namespace

TEST(products_of_bf16_matrices) {
    std::vector<float> c = random_floats(128, 1);
    std::vector<uint16_t> a, b;
    for (float v : random_floats(256, 2))
        a.push_back(to_bf16(v));
    for (float v : random_floats(128, 3))
        b.push_back(to_bf16(v));
    test::buffer<uint16_t> da(a), db(b);
    CLEAN([&] {
        test::buffer<float> d(c);
        RUN(multiply_bf16, 1, 32, 0, nullptr, d.get(), da.get(), db.get());
        check_product(d.host(), c, a, b, 16,
                      [](uint16_t v) { return static_cast<double>(from_bf16(v)); });
    });
    test::buffer<float> out(64);
    REPORTED("divergent", [&] { RUN(half_a_warp_multiplies, 1, 32, 0, nullptr, out.get()); });
    CLEAN([&] { RUN(all_multiply, 1, 64, 0, nullptr, out.get()); });
    REPORTED("fewer than 32", [&] { RUN(all_multiply, 1, 48, 0, nullptr, out.get()); });
}

TEST(products_of_tf32_matrices) {
    std::vector<float> c = random_floats(128, 4), a = random_floats(128, 5),
                       b = random_floats(64, 6);
    test::buffer<float> da(a), db(b);
    CLEAN([&] {
        test::buffer<float> d(c);
        RUN(multiply_tf32, 1, 32, 0, nullptr, d.get(), da.get(), db.get());
        check_product(d.host(), c, a, b, 8, [](float v) {
            return static_cast<double>(__uint_as_float(__float_as_uint(v) & 0xffffe000u));
        });
    });
}

TEST(nan_of_products) {
    std::vector<float> c(128), a(128, 1.0f), b(64, 1.0f);
    a[8 * 3 + 5] = -NAN; /* row 3 */
    c[8 * 7 + 2] = NAN;
    test::buffer<float> da(a), db(b);
    CLEAN([&] {
        test::buffer<float> d(c);
        RUN(multiply_tf32, 1, 32, 0, nullptr, d.get(), da.get(), db.get());
        std::vector<float> got = d.host();
        for (size_t i = 0; i < 128; i++)
            CHECK(i / 8 == 3 || i == 8 * 7 + 2 ? __float_as_uint(got[i]) == 0x7fffffffu
                                               : got[i] == 8.0f);
    });
}

TEST(bf16_words) {
    CHECK(to_bf16(1.0f) == 0x3f80 && from_bf16(0xc000) == -2.0f);
    CHECK(to_bf16(__uint_as_float(0x3f808000u)) == 0x3f80); /* ties to even */
    CHECK(to_bf16(__uint_as_float(0x3f818000u)) == 0x3f82);
    CHECK(to_bf16(__uint_as_float(0x3f808001u)) == 0x3f81);
    CHECK(to_bf16(3.4e38f) == 0x7f80 && to_bf16(NAN) == 0x7fff && to_bf16(-INFINITY) == 0xff80);
    uint32_t v = pack_bf16x2(1.5f, -3.0f);
    CHECK(bf16x2_lo(v) == 1.5f && bf16x2_hi(v) == -3.0f);
    CHECK(add_bf16x2(v, v) == pack_bf16x2(3.0f, -6.0f));
    CHECK(sub_bf16x2(v, pack_bf16x2(1.0f, 1.0f)) == pack_bf16x2(0.5f, -4.0f));
}

TEST(integer_words) {
    CHECK(__float2int_rn(2.5f) == 2 && __float2int_rn(3.5f) == 4 && __float2int_rn(-2.5f) == -2);
    CHECK(__float2int_rn(1e20f) == INT32_MAX && __float2int_rn(NAN) == 0);
    CHECK(__float2int_rz(-2.7f) == -2 && __float2int_rd(-2.2f) == -3 && __float2int_ru(2.2f) == 3);
    CHECK(__popc(0xf0f0u) == 8 && __clz(1) == 31 && __clz(0) == 32 && __ffs(8) == 4 && !__ffs(0));
    CHECK(__brev(1u) == 0x80000000u && __umulhi(0x80000000u, 4u) == 2u);
    CHECK(__byte_perm(0x33221100u, 0x77665544u, 0x7410) == 0x77441100u);
    CHECK(__byte_perm(0x00008000u, 0u, 0x9999) == 0xffffffffu);
    CHECK(__funnelshift_r(0x11223344u, 0xaabbccddu, 8) == 0xdd112233u);
    CHECK(__funnelshift_l(0x11223344u, 0xaabbccddu, 8) == 0xbbccdd11u);
    CHECK(__dp4a(0x01ff02fe, 0x01010101, 10) == 10 + 1 - 1 + 2 - 2);
    CHECK(__dp4a(0x01ff02feu, 0x01010101u, 10u) == 10u + 1 + 255 + 2 + 254);
}
