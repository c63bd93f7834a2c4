/* The words of cu.h that no other test uses; reports as a user sees them. */
#include "test_emu.h"

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <sys/wait.h>
#include <unistd.h>

namespace {

template <class T> __device__ __forceinline__ T doubled(T v) {
    return v + v;
}

template <int N>
__global__ void __launch_bounds__(64) words(gptr<float> __restrict__ out, gptr<const float> in) {
    shared_arena arena;
    sptr<float> tile = arena.take<float>(N);
    sptr<const float> same = tile;
    sptr<uint16_t> pairs = arena.take<uint16_t>(8);
    prefetch_l2(in);
    uint4 all = load16_stream(in);
    uint2 half = load8(in + 2);
    tile[0] = __uint_as_float(all.x) + __ldg(in + 1);
    store8(tile + 2, half);
    store4(tile + 1, all.w);
    store16(pairs, make_uint4(1, 2, 3, 0x00050004u));
    float sum = 0;
#pragma unroll
    for (int i = 0; i < 4; i++)
        sum += doubled<float>(same[i]);
    out[0] = sum;
    out[1] = static_cast<float>(pairs[6] * 10 + pairs[7]);
    out[1] -= 1.0f;
    out[2] = max(min(in[0], in[1]), 0.5f) * fmaf(in[1], 2.0f, 1.0f);
    float4 four = {1, 2, 3, 4};
    store16(out + 4, make_uint4(__float_as_uint(four.x), __float_as_uint(four.y), 0, 0));
    out[3] = pairs + 2 < pairs + 3 && pairs != nullptr ? rsqrtf(4.0f) : 0.0f;
}

__global__ void faulty(gptr<int> out) {
    out[99] = 1;
}

/* What a child prints and how it ends when it runs the faulty kernel. */
std::string faulty_child(const char *variable, int *status) {
    int ends[2];
    CHECK(pipe(ends) == 0);
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        dup2(ends[1], 2);
        close(ends[0]);
        setenv(variable, "1", 1);
        emu_quiet(0);
        int *p;
        cudaMalloc(&p, 64);
        _exit(RUN(faulty, 1, 1, 0, nullptr, p) == cudaErrorLaunchFailure ? 7 : 8);
    }
    close(ends[1]);
    std::string text;
    char piece[256];
    for (ssize_t n; (n = read(ends[0], piece, sizeof piece)) > 0;)
        text.append(piece, static_cast<size_t>(n));
    close(ends[0]);
    waitpid(child, status, 0);
    return text;
}

bool contains(const std::string &text, const char *part) {
    return text.find(part) != std::string::npos;
}

} // namespace

TEST(words_of_kernels) {
    test::buffer<float> in(std::vector<float>{1, 2, 3, 4}), out(8);
    CLEAN([&] {
        CHECK(RUN(words<4>, 1, 1, 32, nullptr, out.get(), in.get()) == cudaSuccess);
        std::vector<float> v = out.host();
        CHECK(v[0] == 2 * (3.0f + 4 + 3 + 4) && v[1] == 44.0f && v[2] == 5.0f && v[3] == 0.5f);
        CHECK(v[4] == 1.0f && v[5] == 2.0f);
    });
}

TEST(reports_say_where) {
    int status = 0;
    std::string text = faulty_child("QEP_EMU_NOTHING", &status);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 7);
    for (const char *part : {"kernel faulty", "test_words.cpp:",
                             "block (0, 0, 0), thread (0, 0, 0)", "+ 396 of 64 bytes", "seed"})
        CHECK(contains(text, part));
    text = faulty_child("QEP_EMU_ABORT", &status);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
    CHECK(contains(text, "out of bounds"));
}
