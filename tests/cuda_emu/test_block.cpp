/* Barriers, warp operations, votes, scheduling. */
#include "test_emu.h"

#include <numeric>

namespace {

enum defect { none, dropped_sync, early_exit, skipped_lane, wrong_mask };

/* Sums a block's threads' values: shuffles within warps, shared memory between them. */
__global__ void block_sum(gptr<int> out, gptr<const int> in, int defect) {
    shared_arena arena;
    sptr<int> part = arena.take<int>(32);
    int at = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
    int v = in[at];
    for (int d = 16; d; d /= 2)
        v += __shfl_xor_sync(0xffffffffu, v, d);
    if (threadIdx.x % 32 == 0)
        part[threadIdx.x / 32] = v;
    if (defect != dropped_sync)
        __syncthreads();
    if (threadIdx.x == 0) {
        int sum = 0;
        for (unsigned int w = 0; w < blockDim.x / 32; w++)
            sum += part[w];
        out[blockIdx.x] = sum;
    }
}

std::vector<int> ascending(size_t n) {
    std::vector<int> v(n);
    std::iota(v.begin(), v.end(), 0);
    return v;
}

} // namespace

TEST(sums_of_blocks) {
    test::buffer<int> in(ascending(128 * 30)), out(30);
    CLEAN([&] {
        CHECK(RUN(block_sum, 30, 128, 128, nullptr, out.get(), in.get(), none) == cudaSuccess);
        std::vector<int> sums = out.host();
        for (int b = 0; b < 30; b++)
            CHECK(sums[static_cast<size_t>(b)] == 128 * 128 * b + 127 * 64);
    });
    REPORTED("shared memory", [&] {
        CHECK(RUN(block_sum, 30, 128, 128, nullptr, out.get(), in.get(), dropped_sync) ==
              cudaErrorLaunchFailure);
        CHECK(cudaGetLastError() == cudaErrorLaunchFailure);
    });
}

namespace {

__global__ void shapes(gptr<int> out) {
    unsigned int b = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    unsigned int t = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    out[b * blockDim.x * blockDim.y * blockDim.z + t] = static_cast<int>(b * 1000 + t);
}

} // namespace

TEST(grids_and_blocks_of_three_dimensions) {
    const dim3 grid(3, 2, 4), block(5, 3, 2);
    test::buffer<int> out(24 * 30);
    CLEAN([&] {
        RUN(shapes, grid, block, 0, nullptr, out.get());
        std::vector<int> v = out.host();
        for (size_t i = 0; i < v.size(); i++)
            CHECK(v[i] == static_cast<int>(i / 30 * 1000 + i % 30));
    });
}

TEST(launches_of_a_bad_shape) {
    test::buffer<int> out(1);
    CHECK(launch(shapes, 0, 32, 0, nullptr, out.get()) == cudaErrorInvalidConfiguration);
    CHECK(launch(shapes, 1, 1025, 0, nullptr, out.get()) == cudaErrorInvalidConfiguration);
    CHECK(launch(shapes, 1, 32, 228 * 1024, nullptr, out.get()) == cudaErrorInvalidValue);
    CHECK(cudaGetLastError() == cudaErrorInvalidValue);
    CHECK(cudaGetLastError() == cudaSuccess);
}

namespace {

__global__ void shuffles(gptr<int> out) {
    int lane = static_cast<int>(threadIdx.x);
    const unsigned int all = 0xffffffffu;
    out[lane] = __shfl_sync(all, lane, 5);
    out[32 + lane] = __shfl_sync(all, lane, 3, 8);
    out[64 + lane] = __shfl_up_sync(all, lane, 1);
    out[96 + lane] = __shfl_down_sync(all, lane, 2, 16);
    out[128 + lane] = __shfl_xor_sync(all, lane, 3);
    double half = __shfl_xor_sync(all, lane + 0.5, 1);
    out[160 + lane] = static_cast<int>(2 * half);
    uint64_t wide = __shfl_down_sync(all, static_cast<uint64_t>(lane) << 40, 1);
    out[192 + lane] = static_cast<int>(wide >> 40);
    float real = __shfl_sync(all, static_cast<float>(lane), 31 - lane);
    out[224 + lane] = static_cast<int>(real);
}

void check_shuffles(const std::vector<int> &v) {
    for (int lane = 0; lane < 32; lane++) {
        auto got = [&](int i) { return v[static_cast<size_t>(32 * i + lane)]; };
        CHECK(got(0) == 5);
        CHECK(got(1) == lane / 8 * 8 + 3);
        CHECK(got(2) == (lane ? lane - 1 : 0));
        CHECK(got(3) == (lane % 16 < 14 ? lane + 2 : lane));
        CHECK(got(4) == (lane ^ 3));
        CHECK(got(5) == 2 * (lane ^ 1) + 1);
        CHECK(got(6) == (lane < 31 ? lane + 1 : lane));
        CHECK(got(7) == 31 - lane);
    }
}

__global__ void votes(gptr<int> out) {
    int lane = static_cast<int>(threadIdx.x) % 32;
    const unsigned int all = 0xffffffffu;
    unsigned int odd = __ballot_sync(all, lane % 2);
    int any = __any_sync(all, lane == 7), none_of = __any_sync(all, lane > 31);
    int every = __all_sync(all, lane < 32), not_every = __all_sync(all, lane);
    /* Halves of a warp that go different ways. */
    unsigned int half =
        lane < 16 ? __ballot_sync(0xffffu, lane < 3) : __ballot_sync(0xffff0000u, lane > 29);
    int sum = __reduce_add_sync(all, lane), top = __reduce_max_sync(all, -lane);
    bool ok = odd == 0xaaaaaaaau && any && !none_of && every && !not_every && sum == 496 &&
              top == 0 && half == (lane < 16 ? 7u : 0xc0000000u);
    int good = __syncthreads_count(ok), all_good = __syncthreads_and(ok);
    int some_bad = __syncthreads_or(!ok);
    if (threadIdx.x == 0)
        out[0] = good == 64 && all_good && !some_bad;
}

} // namespace

TEST(shuffles_of_every_kind) {
    test::buffer<int> out(256);
    CLEAN([&] {
        RUN(shuffles, 1, 32, 0, nullptr, out.get());
        check_shuffles(out.host());
    });
}

TEST(votes_and_reductions) {
    test::buffer<int> out(1);
    CLEAN([&] {
        RUN(votes, 1, 64, 0, nullptr, out.get());
        CHECK(out.host()[0] == 1);
    });
}

namespace {

__global__ void diverging(gptr<int> out, int defect) {
    int lane = static_cast<int>(threadIdx.x) % 32;
    if (defect == early_exit && lane == 9)
        return;
    unsigned int mask = defect == wrong_mask && lane == 3 ? 0x0000fff7u : 0xffffffffu;
    int v = lane;
    if (!(defect == skipped_lane && lane == 4))
        v = __shfl_xor_sync(mask, v, 1);
    __syncthreads();
    out[threadIdx.x] = v;
}

__global__ void reads_absent_lane(gptr<int> out, int from) {
    int v = 0;
    if (threadIdx.x < 16)
        v = __shfl_sync(0xffffu, 1, from);
    out[threadIdx.x] = v;
}

__global__ void votes_meet_shuffles(gptr<int> out, int defect) {
    int v;
    if (defect && threadIdx.x == 2)
        v = __any_sync(0xffffffffu, 1);
    else
        v = __shfl_sync(0xffffffffu, 1, 0);
    out[threadIdx.x] = v;
}

__global__ void barrier_in_branch(gptr<int> out, int defect) {
    if (defect == skipped_lane && threadIdx.x == 40) {
        __syncwarp(1u << 8);
        out[40] = __shfl_sync(0x300u, 1, 9); /* lane 9 never comes */
    }
    if (defect == early_exit && threadIdx.x >= 32)
        return; /* exited threads count as arrived */
    if (defect == wrong_mask && threadIdx.x == 5)
        __syncthreads();
    else
        __syncthreads();
    out[threadIdx.x] = 1;
}

} // namespace

TEST(divergent_warps) {
    test::buffer<int> out(64);
    auto with = [&](int defect) {
        return [&out, defect] { RUN(diverging, 1, 64, 0, nullptr, out.get(), defect); };
    };
    CLEAN(with(none));
    REPORTED("divergent", with(early_exit));
    REPORTED("divergent", with(skipped_lane));
    REPORTED("leaves out the caller", with(wrong_mask));
    CLEAN([&] { RUN(reads_absent_lane, 1, 32, 0, nullptr, out.get(), 15); });
    REPORTED("takes no part", [&] { RUN(reads_absent_lane, 1, 32, 0, nullptr, out.get(), 16); });
    CLEAN([&] { RUN(votes_meet_shuffles, 1, 32, 0, nullptr, out.get(), 0); });
    REPORTED("divergent", [&] { RUN(votes_meet_shuffles, 1, 32, 0, nullptr, out.get(), 1); });
}

TEST(divergent_barriers) {
    test::buffer<int> out(64);
    auto with = [&](int defect) {
        return [&out, defect] { RUN(barrier_in_branch, 1, 64, 0, nullptr, out.get(), defect); };
    };
    CLEAN(with(none));
    CLEAN(with(early_exit));
    REPORTED("deadlock", with(skipped_lane));
    REPORTED("divergent __syncthreads", with(wrong_mask));
}

namespace {

__global__ void count_up(gptr<int> total, gptr<int> order) {
    int at = atomicAdd(total + 0, 1);
    if (threadIdx.x == 0)
        order[blockIdx.x] = at;
}

} // namespace

/* Blocks and threads run in another order under another seed, and in the same one under the same.
 */
TEST(order_follows_the_seed) {
    auto run = [](uint64_t seed) {
        emu_set_seed(seed);
        test::buffer<int> total(std::vector<int>{0}), order(40);
        RUN(count_up, 40, 32, 0, nullptr, total.get(), order.get());
        CHECK(total.host()[0] == 40 * 32);
        return order.host();
    };
    std::vector<int> first = run(1), again = run(1), other = run(2);
    CHECK(first == again);
    CHECK(first != other);
}
