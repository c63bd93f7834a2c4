#include "cuda_emu/ptx.h"
#include "cuda_emu/internal.h"

namespace emu {
namespace {

struct matrix_rows {
    uint16_t row[8]; /* the one this lane addressed */
    bool trans;
    uint32_t *r;
};

const matrix_rows &rows_of(const warp &w, uint32_t lane) {
    return *static_cast<const matrix_rows *>(w.lanes[lane]->op.payload);
}

/* Element (row, col) of matrix i: that row came from lane 8 i + row. */
uint32_t element(const warp &w, uint32_t i, uint32_t row, uint32_t col) {
    return rows_of(w, 8 * i + row).row[col];
}

void complete_ldmatrix(warp &w, uint32_t) {
    for (uint32_t lane = 0; lane < warp_size; lane++) {
        const matrix_rows &mine = rows_of(w, lane);
        uint32_t g = lane / 4, t = 2 * (lane % 4);
        for (uint32_t i = 0; i < 4; i++)
            mine.r[i] = mine.trans ? element(w, i, t, g) | element(w, i, t + 1, g) << 16
                                   : element(w, i, g, t) | element(w, i, g, t + 1) << 16;
    }
}

struct fragments {
    float (*d)[4];
    const uint32_t (*a)[4];
    const uint32_t (*b)[2];
};

const fragments &fragments_of(const warp &w, uint32_t lane) {
    return *static_cast<const fragments *>(w.lanes[lane]->op.payload);
}

/* A row of b or d, in vectors that every x86-64 has. */
typedef double two __attribute__((vector_size(16)));
struct eight {
    two v[4];
    void set(uint32_t i, double x) {
        v[i / 2][i % 2] = x;
    }
};

template <int K> eight row_times(const double (&a)[K], const eight (&b)[K]) {
    two s0 = {}, s1 = {}, s2 = {}, s3 = {}; /* an array would live in memory */
    for (uint32_t k = 0; k < K; k++) {
        two x = {a[k], a[k]};
        s0 += x * b[k].v[0];
        s1 += x * b[k].v[1];
        s2 += x * b[k].v[2];
        s3 += x * b[k].v[3];
    }
    return {{s0, s1, s2, s3}};
}

/* Rounded to f32; any NaN is the hardware's. */
float result(double v) {
    return std::isnan(v) ? __uint_as_float(0x7fffffffu) : static_cast<float>(v);
}

/* d += a b; products are exact in double, the sum is rounded to f32 once. (The hardware's order
 * and rounding of the sum are its own.) */
template <int K> void multiply(const warp &w, const double (&a)[16][K], const eight (&b)[K]) {
    for (uint32_t row = 0; row < 16; row++) {
        eight sum = row_times(a[row], b);
        for (uint32_t i = 0; i < 4; i++) {
            float *d = *fragments_of(w, row % 8 * 4 + i).d + row / 8 * 2;
            d[0] = result(static_cast<double>(d[0]) + sum.v[i][0]);
            d[1] = result(static_cast<double>(d[1]) + sum.v[i][1]);
        }
    }
}

double bf16_lo(uint32_t v) {
    return static_cast<double>(bf16x2_lo(v));
}

double bf16_hi(uint32_t v) {
    return static_cast<double>(bf16x2_hi(v));
}

void complete_mma_bf16(warp &w, uint32_t) {
    double a[16][16];
    eight b[16];
    for (uint32_t lane = 0; lane < warp_size; lane++) {
        const fragments &f = fragments_of(w, lane);
        uint32_t g = lane / 4, t = 2 * (lane % 4);
        for (uint32_t i = 0; i < 4; i++) {
            a[g + i % 2 * 8][t + i / 2 * 8] = bf16_lo((*f.a)[i]);
            a[g + i % 2 * 8][t + i / 2 * 8 + 1] = bf16_hi((*f.a)[i]);
        }
        for (uint32_t i = 0; i < 2; i++) {
            b[t + 8 * i].set(g, bf16_lo((*f.b)[i]));
            b[t + 8 * i + 1].set(g, bf16_hi((*f.b)[i]));
        }
    }
    multiply(w, a, b);
}

double tf32(uint32_t v) {
    return static_cast<double>(__uint_as_float(v & 0xffffe000u));
}

void complete_mma_tf32(warp &w, uint32_t) {
    double a[16][8];
    eight b[8];
    for (uint32_t lane = 0; lane < warp_size; lane++) {
        const fragments &f = fragments_of(w, lane);
        uint32_t g = lane / 4, t = lane % 4;
        for (uint32_t i = 0; i < 4; i++)
            a[g + i % 2 * 8][t + i / 2 * 4] = tf32((*f.a)[i]);
        for (uint32_t i = 0; i < 2; i++)
            b[t + 4 * i].set(g, tf32((*f.b)[i]));
    }
    multiply(w, a, b);
}

} // namespace

void ldmatrix(uint32_t (&r)[4], allocation &row, intptr_t off, bool trans, site at) {
    matrix_rows mine = {{}, trans, r};
    uint4 v = read<uint4>(row, off);
    memcpy(mine.row, &v, sizeof v);
    collective(trans ? "ldmatrix_x4_trans" : "ldmatrix_x4", full_mask, true, at, &mine,
               complete_ldmatrix);
}

void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], site at) {
    fragments mine = {&d, &a, &b};
    collective("mma_bf16_16816", full_mask, true, at, &mine, complete_mma_bf16);
}

void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], site at) {
    fragments mine = {&d, &a, &b};
    collective("mma_tf32_1688", full_mask, true, at, &mine, complete_mma_tf32);
}

} // namespace emu
