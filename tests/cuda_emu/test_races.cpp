/* Races: every kernel here is right with defect 0 and lacks one thing with another. */
#include "test_emu.h"

namespace {

constexpr unsigned int all = 0xffffffffu;

enum { none, no_barrier, no_second_barrier, warp_barrier_only };

/* Each round every thread reads its neighbour's value, then writes its own anew. */
__global__ void rotate(gptr<int> out, int defect) {
    shared_arena arena;
    sptr<int> ring = arena.take<int>(static_cast<int>(blockDim.x));
    unsigned int i = threadIdx.x, next = (i + 1) % blockDim.x;
    int v = static_cast<int>(i);
    for (int round = 0; round < 3; round++) {
        ring[i] = v;
        if (defect == warp_barrier_only)
            __syncwarp();
        else if (defect != no_barrier)
            __syncthreads();
        v = ring[next];
        if (defect != no_second_barrier)
            __syncthreads();
    }
    out[blockIdx.x * blockDim.x + i] = v;
}

} // namespace

TEST(barriers_between_writes_and_reads_of_shared_memory) {
    test::buffer<int> out(4 * 64);
    auto with = [&](int defect) {
        return [&out, defect] { RUN(rotate, 4, 64, 256, nullptr, out.get(), defect); };
    };
    CLEAN(with(none));
    CHECK(out.host()[63] == 2);
    REPORTED("shared memory", with(no_barrier)); /* uninitialised, or a race */
    REPORTED("race", with(no_second_barrier));   /* a write after a read */
    REPORTED("shared memory", with(warp_barrier_only));
}

namespace {

/* The same within a warp, where __syncwarp is enough and a shuffle is not. */
__global__ void rotate_warp(gptr<int> out, int defect) {
    shared_arena arena;
    sptr<int> ring = arena.take<int>(static_cast<int>(blockDim.x));
    unsigned int i = threadIdx.x, next = i / 32 * 32 + (i + 1) % 32;
    int v = static_cast<int>(i);
    for (int round = 0; round < 3; round++) {
        ring[i] = v;
        if (defect == no_barrier)
            v = __shfl_xor_sync(all, v, 1);
        else
            __syncwarp();
        v = ring[next];
        if (defect != no_second_barrier)
            __syncwarp();
    }
    out[i] = v;
}

/* Barriers of half warps; the defect: the other half's value is read. */
__global__ void half_warps(gptr<int> out, int defect) {
    shared_arena arena;
    sptr<int> v = arena.take<int>(32);
    unsigned int i = threadIdx.x, half = i / 16, mask = half ? 0xffff0000u : 0x0000ffffu;
    v[i] = static_cast<int>(i);
    __syncwarp();
    v[i] = static_cast<int>(100 + i);
    __syncwarp(mask);
    int got = v[defect ? 31 - i : i ^ 1];
    __syncwarp(mask);
    __syncwarp(all);
    out[i] = got;
}

/* Orders pass on: 0 - 1 by one barrier, 1 - 2 by another. */
__global__ void chain_of_barriers(gptr<int> out, int defect) {
    shared_arena arena;
    sptr<int> v = arena.take<int>(1);
    if (threadIdx.x == 0)
        v[0] = 5;
    if (threadIdx.x < 2)
        __syncwarp(3u);
    if ((threadIdx.x == 1 || threadIdx.x == 2) && !defect)
        __syncwarp(6u);
    if (threadIdx.x == 2)
        out[0] = v[0];
}

} // namespace

TEST(barriers_of_warps) {
    test::buffer<int> out(64);
    auto with = [&](int defect) {
        return [&out, defect] { RUN(rotate_warp, 1, 64, 256, nullptr, out.get(), defect); };
    };
    CLEAN(with(none));
    REPORTED("shared memory", with(no_barrier));
    REPORTED("race", with(no_second_barrier));
    CLEAN([&] { RUN(half_warps, 1, 32, 128, nullptr, out.get(), 0); });
    REPORTED("race", [&] { RUN(half_warps, 1, 32, 128, nullptr, out.get(), 1); });
    CLEAN([&] { RUN(chain_of_barriers, 1, 32, 16, nullptr, out.get(), 0); });
    REPORTED("shared memory", [&] { RUN(chain_of_barriers, 1, 32, 16, nullptr, out.get(), 1); });
}

namespace {

/* Neighbouring bytes and halves of one word are different places. */
__global__ void neighbours(gptr<uint16_t> out, gptr<uint8_t> bytes, int defect) {
    shared_arena arena;
    sptr<uint16_t> halves = arena.take<uint16_t>(64);
    unsigned int i = threadIdx.x;
    halves[i] = static_cast<uint16_t>(i);
    bytes[i] = static_cast<uint8_t>(i);
    __syncthreads();
    uint32_t pair = i < 32 ? load4(halves + 2 * i) : 0;
    if (defect == no_barrier && i == 0)
        halves[9] = 1;
    __syncthreads();
    if (i < 16)
        store4(halves + 2 * i, pair + 0x00010001u);
    if (defect == no_second_barrier && i == 20)
        halves[31] = 3;
    __syncthreads();
    out[i] = halves[i];
}

} // namespace

TEST(parts_of_a_word) {
    test::buffer<uint16_t> out(64);
    test::buffer<uint8_t> bytes(64);
    auto with = [&](int defect) {
        return
            [&, defect] { RUN(neighbours, 1, 64, 128, nullptr, out.get(), bytes.get(), defect); };
    };
    CLEAN(with(none));
    CHECK(out.host()[31] == 32 && out.host()[32] == 32 && bytes.host()[63] == 63);
    REPORTED("race", with(no_barrier));
    REPORTED("race", with(no_second_barrier));
}

namespace {

enum { rogue_word = 1, rogue_half, rogue_chunk, late_read };

/* The same bytes as 16, as 4 and as 2, in turn. */
__global__ void widths(gptr<uint32_t> global, gptr<uint32_t> out, int use_shared, int defect) {
    shared_arena arena;
    sptr<uint32_t> shared = arena.take<uint32_t>(4 * 64);
    unsigned int i = threadIdx.x, other = i ^ 37;
    auto run = [&](auto words) {
        store16(words + 4 * i, make_uint4(i, i, i, i));
        if (defect == rogue_word && i == 5)
            words[4 * other + 2] = 1;
        __syncthreads();
        uint32_t sum = words[4 * other] + words[4 * i + 1];
        if (defect != late_read)
            __syncthreads();
        words[4 * other + 1] = sum;
        if (defect == rogue_half && i == 9)
            words[4 * i + 1] += 1u;
        __syncthreads();
        uint4 four = load16(words + 4 * i);
        if (defect == rogue_chunk && i == 3)
            store16(words + 4 * other, four);
        out[i] = four.x + four.y + four.z + four.w;
    };
    if (use_shared)
        run(shared);
    else
        run(global);
}

} // namespace

TEST(accesses_of_different_widths) {
    test::buffer<uint32_t> global(4 * 64), out(64);
    for (int use_shared = 0; use_shared < 2; use_shared++) {
        auto with = [&](int defect) {
            return [&, defect] {
                RUN(widths, 1, 64, 1024, nullptr, global.get(), out.get(), use_shared, defect);
            };
        };
        CLEAN(with(none));
        CHECK(out.host()[1] == 3 * 1 + 1 + (1 ^ 37));
        for (int defect : {rogue_word, rogue_half, rogue_chunk})
            REPORTED("race", with(defect));
        REPORTED("race", with(late_read));
    }
}

/* The counter that dates accesses starts again before it runs out. */
TEST(the_end_of_time) {
    test::buffer<int> out(4 * 64);
    auto with = [&](int defect) {
        return [&out, defect] {
            emu::m.tick = UINT32_MAX / 2 + 1;
            RUN(rotate, 4, 64, 256, nullptr, out.get(), defect);
            CHECK(emu::m.tick < 1000);
        };
    };
    CLEAN(with(none));
    REPORTED("race", with(no_second_barrier));
}

namespace {

/* Global memory within a block needs the same barriers. */
__global__ void through_global(gptr<int> scratch, gptr<int> out, int defect) {
    unsigned int i = blockIdx.x * blockDim.x + threadIdx.x;
    unsigned int across = blockIdx.x * blockDim.x + (blockDim.x - 1 - threadIdx.x);
    scratch[i] = static_cast<int>(i);
    if (defect != no_barrier)
        __syncthreads();
    out[i] = scratch[across];
}

/* The defect: blocks overlap by one element. */
__global__ void own_parts(gptr<int> out, int step) {
    out[blockIdx.x * static_cast<unsigned int>(step) + threadIdx.x] = 1;
}

} // namespace

TEST(global_memory_of_a_block_and_between_blocks) {
    test::buffer<int> scratch(256), out(256);
    CLEAN([&] { RUN(through_global, 4, 64, 0, nullptr, scratch.get(), out.get(), none); });
    CHECK(out.host()[0] == 63);
    REPORTED("race", [&] {
        cudaMemset(scratch.get(), 0, 1024);
        RUN(through_global, 4, 64, 0, nullptr, scratch.get(), out.get(), no_barrier);
    });
    CLEAN([&] { RUN(own_parts, 4, 64, 0, nullptr, out.get(), 64); });
    REPORTED("race", [&] { RUN(own_parts, 4, 64, 0, nullptr, out.get(), 63); });
}

namespace {

enum { no_fence = 1, no_barrier_before_fence, no_barrier_after, plain_count, fence_of_one };

/* The last block to finish adds up what all blocks left. */
__global__ void last_block(gptr<int> parts, gptr<int> count, gptr<int> out, int defect) {
    shared_arena arena;
    sptr<int> last = arena.take<int>(1);
    unsigned int n = blockDim.x;
    parts[blockIdx.x * n + threadIdx.x] = static_cast<int>(blockIdx.x);
    if (defect != no_fence && defect != fence_of_one)
        __threadfence();
    if (defect != no_barrier_before_fence)
        __syncthreads();
    if (threadIdx.x == 0) {
        if (defect == fence_of_one) /* this is right: a fence covers what a barrier put before it */
            __threadfence();
        int before = 0;
        if (defect == plain_count)
            before = count[0]++;
        else
            before = atomicAdd(count + 0, 1);
        last[0] = before == static_cast<int>(gridDim.x) - 1;
    }
    if (defect != no_barrier_after)
        __syncthreads();
    if (!last[0])
        return;
    int sum = 0;
    for (unsigned int b = 0; b < gridDim.x; b++)
        sum += parts[b * n + threadIdx.x];
    out[threadIdx.x] = sum;
    if (threadIdx.x == 0)
        count[0] = 0; /* for the next launch */
}

} // namespace

TEST(the_last_block) {
    test::buffer<int> parts(20 * 64), count(std::vector<int>{0}), out(64);
    auto with = [&](int defect) {
        return [&, defect] {
            cudaMemset(count.get(), 0, 4);
            RUN(last_block, 20, 64, 16, nullptr, parts.get(), count.get(), out.get(), defect);
        };
    };
    CLEAN(with(none));
    CHECK(out.host()[63] == 190);
    CHECK(count.host()[0] == 0);
    CLEAN(with(fence_of_one));
    REPORTED("race", with(no_fence));
    REPORTED("race", with(no_barrier_before_fence));
    REPORTED("shared memory", with(no_barrier_after));
    REPORTED("race", with(plain_count));
}

namespace {

/* Fences hand on what was handed on to them: block 0 to 1 to 2, through two flags. */
__global__ void hand_on(gptr<int> data, gptr<int> flags, gptr<int> out, int defect) {
    if (blockIdx.x == 0) {
        data[0] = 7;
        __threadfence();
        atomicExch(flags + 0, 1);
    } else if (blockIdx.x == 1) {
        while (!atomicAdd(flags + 0, 0))
            continue;
        if (!defect)
            __threadfence();
        atomicExch(flags + 1, 1);
    } else {
        while (!atomicAdd(flags + 1, 0))
            continue;
        out[0] = data[0];
    }
}

} // namespace

TEST(fences_pass_on) {
    test::buffer<int> data(std::vector<int>{0}), flags(2), out(1);
    auto with = [&](int defect) {
        return [&, defect] {
            cudaMemset(flags.get(), 0, 8);
            RUN(hand_on, 3, 1, 0, nullptr, data.get(), flags.get(), out.get(), defect);
        };
    };
    CLEAN(with(0));
    CHECK(out.host()[0] == 7);
    REPORTED("race", with(1));
}

namespace {

__global__ void waits_for_ever(gptr<int> flag) {
    while (!atomicAdd(flag + 0, 0))
        continue;
}

__global__ void atomics(gptr<int> ints, gptr<float> floats, gptr<uint64_t> wide) {
    shared_arena arena;
    sptr<int> s = arena.take<int>(2);
    int i = static_cast<int>(threadIdx.x);
    if (i == 0)
        s[0] = s[1] = 0;
    __syncthreads();
    atomicAdd(s + 0, i);
    atomicMax(s + 1, i);
    atomicAdd(ints + 0, 1);
    atomicMax(ints + 1, i);
    atomicMin(ints + 2, -i);
    atomicCAS(ints + 3, 0, i + 1);
    atomicExch(&ints[4], i);
    atomicOr(ints + 5, 1 << (i % 4));
    atomicAdd(floats + 0, 0.5f);
    atomicAdd(wide + 0, uint64_t{1} << 33);
    __syncthreads();
    if (i == 0) {
        ints[6] = s[0];
        ints[7] = s[1];
    }
}

__global__ void plain_beside_atomic(gptr<int> v, int defect) {
    if (threadIdx.x == 1 && defect)
        v[0] = 3;
    if (threadIdx.x != 1)
        atomicAdd(v + 0, 1);
}

} // namespace

TEST(atomics_of_every_kind) {
    CLEAN([] {
        test::buffer<int> ints(std::vector<int>(8, 0));
        test::buffer<float> floats(std::vector<float>(1, 0.0f));
        test::buffer<uint64_t> wide(std::vector<uint64_t>(1, 0));
        RUN(atomics, 1, 64, 16, nullptr, ints.get(), floats.get(), wide.get());
        std::vector<int> v = ints.host();
        CHECK(v[0] == 64 && v[1] == 63 && v[2] == -63 && v[5] == 15 && v[6] == 2016 && v[7] == 63);
        CHECK(v[3] >= 1 && v[3] <= 64 && v[4] >= 0 && v[4] < 64);
        CHECK(floats.host()[0] == 32.0f && wide.host()[0] == uint64_t{64} << 33);
    });
    test::buffer<int> v(std::vector<int>{0});
    CLEAN([&] { RUN(plain_beside_atomic, 1, 64, 0, nullptr, v.get(), 0); });
    REPORTED("race", [&] { RUN(plain_beside_atomic, 1, 64, 0, nullptr, v.get(), 1); });
}

TEST(waiting_for_ever) {
    test::buffer<int> flag(std::vector<int>{0});
    test::reported(
        "for ever", [&] { RUN(waits_for_ever, 1, 32, 0, nullptr, flag.get()); }, __FILE__, __LINE__,
        1);
}
