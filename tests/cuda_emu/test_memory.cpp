/* Bounds, alignment, initialised bytes, pools, pinned memory, pointers. */
#include "test_emu.h"

namespace {

__global__ void read_at(gptr<float> out, gptr<const float> in, int at) {
    out[0] = in[at];
}
__global__ void write_at(gptr<float> out, int at) {
    out[at] = 1.0f;
}
__global__ void load_at(gptr<float> out, gptr<const float> in, int at) {
    uint4 v = load16(in + at);
    out[0] = __uint_as_float(v.x);
}

} // namespace

TEST(global_bounds) {
    test::buffer<float> in(std::vector<float>(10, 2.0f)), out(std::vector<float>(8, 0.0f));
    CLEAN([&] {
        RUN(read_at, 1, 1, 0, nullptr, out.get(), in.get(), 9);
        CHECK(out.host()[0] == 2.0f);
        RUN(write_at, 1, 1, 0, nullptr, out.get(), 7);
        RUN(load_at, 1, 1, 0, nullptr, out.get(), in.get(), 4);
    });
    for (int at : {-1, 10, 64, 1 << 20})
        REPORTED("out of bounds", [&] { RUN(read_at, 1, 1, 0, nullptr, out.get(), in.get(), at); });
    REPORTED("out of bounds", [&] { RUN(write_at, 1, 1, 0, nullptr, out.get(), 8); });
    REPORTED("out of bounds", [&] { RUN(load_at, 1, 1, 0, nullptr, out.get(), in.get(), 8); });
    REPORTED("misaligned", [&] { RUN(load_at, 1, 1, 0, nullptr, out.get(), in.get(), 3); });
}

/* An offset that leads into another allocation is still out of bounds. */
TEST(neighbouring_allocations) {
    test::buffer<float> out(8), a(std::vector<float>(8, 1.0f)), b(std::vector<float>(8, 1.0f));
    ptrdiff_t apart = b.get() - a.get();
    REPORTED("out of bounds",
             [&] { RUN(read_at, 1, 1, 0, nullptr, out.get(), a.get(), static_cast<int>(apart)); });
}

TEST(pointers_to_nothing) {
    test::buffer<float> out(8);
    float on_host = 1.0f;
    REPORTED("no device memory", [&] { RUN(read_at, 1, 1, 0, nullptr, out.get(), &on_host, 0); });
    REPORTED("no device memory", [&] { RUN(read_at, 1, 1, 0, nullptr, out.get(), nullptr, 0); });
    float *freed;
    cudaMalloc(&freed, 64);
    cudaMemset(freed, 0, 64);
    CLEAN([&] { RUN(read_at, 1, 1, 0, nullptr, out.get(), freed, 0); });
    cudaFree(freed);
    REPORTED("freed", [&] { RUN(read_at, 1, 1, 0, nullptr, out.get(), freed, 0); });
    REPORTED("no live allocation", [&] { cudaFree(out.get() + 1); });
}

TEST(uninitialised_global_memory) {
    test::buffer<float> out(8);
    auto read_back = [&](float *from) {
        return [&out, from] { RUN(read_at, 1, 1, 0, nullptr, out.get(), from, 3); };
    };
    test::buffer<float> fresh(8), set(8), copied(8), written(8);
    REPORTED("uninitialised", read_back(fresh.get()));
    cudaMemset(set.get(), 0, 32);
    CLEAN(read_back(set.get()));
    cudaMemcpy(copied.get(), set.get(), 12, cudaMemcpyDeviceToDevice);
    REPORTED("uninitialised", read_back(copied.get()));
    cudaMemcpy(copied.get(), set.get(), 16, cudaMemcpyDeviceToDevice);
    CLEAN(read_back(copied.get()));
    cudaMemcpy(set.get(), fresh.get(), 32, cudaMemcpyDeviceToDevice);
    REPORTED("uninitialised", read_back(set.get()));
    CLEAN([&] { RUN(write_at, 1, 1, 0, nullptr, written.get(), 3); });
    CLEAN(read_back(written.get()));
}

TEST(memory_of_a_pool) {
    test::buffer<float> out(8);
    test::buffer<unsigned char> slab(4096);
    auto at = [&](size_t off) { return reinterpret_cast<float *>(slab.get() + off); };
    auto read = [&](float *from, int i) {
        return [&out, from, i] { RUN(read_at, 1, 1, 0, nullptr, out.get(), from, i); };
    };
    cudaMemset(slab.get(), 0, 4096);
    CLEAN(read(at(256), 0));
    emu_protect(slab.get(), 4096);
    REPORTED("not handed out", read(at(256), 0));
    emu_unprotect(at(256), 256);
    emu_unprotect(at(512), 256);
    REPORTED("uninitialised", read(at(256), 0));
    cudaMemset(at(256), 0, 512 / 2);
    cudaMemset(at(512), 0, 512 / 2);
    CLEAN(read(at(256), 63));
    REPORTED("out of bounds", read(at(256), 64));
    emu_poison(at(512), 16);
    REPORTED("uninitialised", read(at(512), 3));
    CLEAN(read(at(512), 4));
    emu_protect(at(256), 256);
    REPORTED("not handed out", read(at(256), 0));
    CLEAN(read(at(512), 4));
}

namespace {

enum shared_defect { none, past_end, into_next, unwritten, too_much };

__global__ void shared_arrays(gptr<int> out, int defect) {
    shared_arena arena;
    sptr<int> a = arena.take<int>(6);
    sptr<uint16_t> b = arena.take<uint16_t>(defect == too_much ? 80 : 8);
    int i = static_cast<int>(threadIdx.x);
    if (i < 6 && !(defect == unwritten && i == 5))
        a[i] = i;
    if (i < 8)
        b[i] = static_cast<uint16_t>(10 * i);
    __syncthreads();
    int last = defect == past_end ? 6 : defect == into_next ? 8 : 5;
    if (i == 0)
        out[0] = a[last] + b[7];
}

} // namespace

TEST(shared_bounds_and_initialised_bytes) {
    test::buffer<int> out(1);
    auto with = [&](int defect) {
        return [&out, defect] { RUN(shared_arrays, 4, 32, 48, nullptr, out.get(), defect); };
    };
    REPORTED("race", with(none)); /* all four blocks write the one result */
    auto one = [&](int defect) {
        return [&out, defect] { RUN(shared_arrays, 1, 32, 48, nullptr, out.get(), defect); };
    };
    CLEAN(one(none));
    CHECK(out.host()[0] == 75);
    REPORTED("out of bounds", one(past_end));
    REPORTED("out of bounds", one(into_next));
    REPORTED("uninitialised", one(unwritten));
    REPORTED("takes 160 bytes", one(too_much));
}

namespace {

struct item {
    int32_t a, b, c;
    float d;
    int64_t e;
};

__global__ void pointer_words(gptr<int> out, gptr<const item> items, gptr<float *const> table,
                              gptr<const void> raw) {
    item i = items[1];
    gptr<float> row = table[1];
    gptr<const uint16_t> halves = static_cast<gptr<const uint16_t>>(items);
    gptr<const unsigned char> bytes = static_cast<gptr<const unsigned char>>(raw);
    row[0] = row[1] + 1.0f;
    row[1] += 2.0f;
    gptr<float> end = row + 4, at = row;
    int steps = 0;
    for (; at != end; ++at)
        steps++;
    float copied = row[2] = row[1];
    bool ok = i.a == 5 && i.e == 9 && (items + 1)->d == 8.0f && steps == 4 && end - row == 4 &&
              copied == 4.0f && halves[12] == 5 && bytes[24] == 5 && row && row != nullptr &&
              gptr<float>() == nullptr && !gptr<float>(nullptr) && *row == 3.0f && row < end;
    out[0] = ok;
}

} // namespace

TEST(pointers_are_like_pointers) {
    CLEAN([] {
        test::buffer<item> items(std::vector<item>{{1, 2, 3, 4.0f, 5}, {5, 6, 7, 8.0f, 9}});
        test::buffer<float> row(std::vector<float>{1, 2, 3, 4});
        test::buffer<float *> table(std::vector<float *>{nullptr, row.get()});
        test::buffer<int> out(1);
        CHECK(RUN(pointer_words, 1, 1, 0, nullptr, out.get(), items.get(), table.get(),
                  items.get()) == cudaSuccess);
        CHECK(out.host()[0] == 1);
    });
}

TEST(pinned_memory_is_seen_by_kernels) {
    float *pinned;
    cudaMallocHost(&pinned, 64);
    CLEAN([&] {
        pinned[3] = 7.0f;
        RUN(read_at, 1, 1, 0, nullptr, pinned, pinned, 3);
        CHECK(pinned[0] == 7.0f);
    });
    REPORTED("out of bounds", [&] { RUN(write_at, 1, 1, 0, nullptr, pinned, 16); });
    cudaFreeHost(pinned);
}

TEST(device_memory_ends) {
    size_t free_bytes, total;
    CHECK(cudaMemGetInfo(&free_bytes, &total) == cudaSuccess);
    CHECK(free_bytes == total);
    void *half, *more;
    CHECK(cudaMalloc(&half, total / 2) == cudaSuccess);
    CHECK(cudaMalloc(&more, total / 2 + 512) == cudaErrorMemoryAllocation);
    CHECK(cudaGetLastError() == cudaErrorMemoryAllocation);
    cudaMemGetInfo(&free_bytes, &total);
    CHECK(free_bytes == total - total / 2);
    CHECK(cudaFree(half) == cudaSuccess);
}

TEST(host_views) {
    test::buffer<int> a(4);
    REPORTED("uninitialised", [&] { CHECK(!emu_host_view(a.get(), 16, false)); });
    REPORTED("out of bounds", [&] { CHECK(!emu_host_view(a.get(), 20, true)); });
    int *view = static_cast<int *>(emu_host_view(a.get(), 16, true));
    view[2] = 7;
    CHECK(a.host()[2] == 7);
    CHECK(emu_host_view(view, 4, false) == view);
}
