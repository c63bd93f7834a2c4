/* CUDA's qualifiers, vector types and intrinsics for g++. */
#ifndef QEP_CUDA_EMU_WORDS_H
#define QEP_CUDA_EMU_WORDS_H

#include <cmath>
#include <cstdint>
#include <cstring>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define __restrict__ /* gptr is no pointer */

struct dim3 {
    unsigned int x, y, z;
    constexpr dim3(unsigned int x_ = 1, unsigned int y_ = 1, unsigned int z_ = 1)
        : x(x_), y(y_), z(z_) {
    }
};

struct uint3 {
    unsigned int x, y, z;
};

#define EMU_VECTORS(base, name)                                                                    \
    struct alignas(2 * sizeof(base)) name##2 {                                                     \
        base x, y;                                                                                 \
    };                                                                                             \
    struct alignas(4 * sizeof(base) > 16 ? 16 : 4 * sizeof(base)) name##4 {                        \
        base x, y, z, w;                                                                           \
    };                                                                                             \
    static inline name##2 make_##name##2(base x, base y) {                                         \
        return {x, y};                                                                             \
    }                                                                                              \
    static inline name##4 make_##name##4(base x, base y, base z, base w) {                         \
        return {x, y, z, w};                                                                       \
    }
EMU_VECTORS(int, int)
EMU_VECTORS(unsigned int, uint)
EMU_VECTORS(float, float)
EMU_VECTORS(double, double)
EMU_VECTORS(signed char, char)
EMU_VECTORS(unsigned char, uchar)
EMU_VECTORS(short, short)
EMU_VECTORS(unsigned short, ushort)
#undef EMU_VECTORS

static inline uint3 make_uint3(unsigned int x, unsigned int y, unsigned int z) {
    return {x, y, z};
}

namespace emu {
template <class To, class From> static inline To bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "same size");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}
} // namespace emu

static inline uint32_t __float_as_uint(float v) {
    return emu::bits<uint32_t>(v);
}
static inline int __float_as_int(float v) {
    return emu::bits<int>(v);
}
static inline float __uint_as_float(uint32_t v) {
    return emu::bits<float>(v);
}
static inline float __int_as_float(int v) {
    return emu::bits<float>(v);
}
static inline long long __double_as_longlong(double v) {
    return emu::bits<long long>(v);
}
static inline double __longlong_as_double(long long v) {
    return emu::bits<double>(v);
}

/* Conversions saturate, NaN becomes 0. */
namespace emu {
static inline int to_int(double v) {
    return std::isnan(v)        ? 0
           : v >= 2147483647.0  ? INT32_MAX
           : v <= -2147483648.0 ? INT32_MIN
                                : static_cast<int>(v);
}
static inline unsigned int to_uint(double v) {
    return std::isnan(v) || v <= 0 ? 0u
           : v >= 4294967295.0     ? UINT32_MAX
                                   : static_cast<unsigned int>(v);
}
} // namespace emu

static inline int __float2int_rn(float v) {
    return emu::to_int(std::nearbyint(static_cast<double>(v)));
}
static inline int __float2int_rz(float v) {
    return emu::to_int(std::trunc(static_cast<double>(v)));
}
static inline int __float2int_rd(float v) {
    return emu::to_int(std::floor(static_cast<double>(v)));
}
static inline int __float2int_ru(float v) {
    return emu::to_int(std::ceil(static_cast<double>(v)));
}
static inline unsigned int __float2uint_rn(float v) {
    return emu::to_uint(std::nearbyint(static_cast<double>(v)));
}
static inline float __int2float_rn(int v) {
    return static_cast<float>(v);
}
static inline float __uint2float_rn(unsigned int v) {
    return static_cast<float>(v);
}
static inline float __double2float_rn(double v) {
    return static_cast<float>(v);
}

static inline float __fadd_rn(float a, float b) {
    return a + b;
}
static inline float __fsub_rn(float a, float b) {
    return a - b;
}
static inline float __fmul_rn(float a, float b) {
    return a * b;
}
static inline float __fdiv_rn(float a, float b) {
    return a / b;
}
static inline float __fmaf_rn(float a, float b, float c) {
    return std::fmaf(a, b, c);
}
static inline float __fsqrt_rn(float v) {
    return std::sqrt(v);
}
static inline float __frcp_rn(float v) {
    return 1.0f / v;
}
static inline float __frsqrt_rn(float v) {
    return static_cast<float>(1.0 / std::sqrt(static_cast<double>(v)));
}
static inline float __fdividef(float a, float b) {
    return a / b;
}
static inline float rsqrtf(float v) {
    return static_cast<float>(1.0 / std::sqrt(static_cast<double>(v)));
}
/* Macros: glibc has functions of these names. */
#define __expf expf
#define __logf logf
#define __log2f log2f
#define __powf powf
#define __sinf sinf
#define __cosf cosf
static inline float __saturatef(float v) {
    return v > 0.0f ? (v < 1.0f ? v : 1.0f) : 0.0f;
}

static inline int __popc(unsigned int v) {
    return __builtin_popcount(v);
}
static inline int __popcll(unsigned long long v) {
    return __builtin_popcountll(v);
}
static inline int __clz(int v) {
    return v ? __builtin_clz(static_cast<unsigned int>(v)) : 32;
}
static inline int __clzll(long long v) {
    return v ? __builtin_clzll(static_cast<unsigned long long>(v)) : 64;
}
static inline int __ffs(int v) {
    return __builtin_ffs(v);
}
static inline int __ffsll(long long v) {
    return __builtin_ffsll(v);
}
static inline unsigned int __brev(unsigned int v) {
    unsigned int r = 0;
    for (int i = 0; i < 32; i++)
        r |= (v >> i & 1u) << (31 - i);
    return r;
}
static inline unsigned int __umulhi(unsigned int a, unsigned int b) {
    return static_cast<unsigned int>(static_cast<uint64_t>(a) * b >> 32);
}
static inline int __mulhi(int a, int b) {
    return static_cast<int>(static_cast<int64_t>(a) * b >> 32);
}
static inline unsigned int __funnelshift_r(unsigned int lo, unsigned int hi, unsigned int shift) {
    return static_cast<unsigned int>((static_cast<uint64_t>(hi) << 32 | lo) >> (shift & 31u));
}
static inline unsigned int __funnelshift_l(unsigned int lo, unsigned int hi, unsigned int shift) {
    return static_cast<unsigned int>((static_cast<uint64_t>(hi) << 32 | lo) << (shift & 31u) >> 32);
}
/* The selector's high bit of a nibble (sign replication) included. */
static inline unsigned int __byte_perm(unsigned int a, unsigned int b, unsigned int selector) {
    uint64_t both = static_cast<uint64_t>(b) << 32 | a;
    unsigned int r = 0;
    for (int i = 0; i < 4; i++) {
        unsigned int s = selector >> (4 * i) & 15u;
        unsigned int byte = static_cast<unsigned int>(both >> (8 * (s & 7u))) & 255u;
        r |= (s & 8u ? (byte & 128u ? 255u : 0u) : byte) << (8 * i);
    }
    return r;
}
/* c + the dot product of four signed bytes, wrapping. */
static inline int __dp4a(int a, int b, int c) {
    uint32_t sum = static_cast<uint32_t>(c);
    for (int i = 0; i < 4; i++) {
        int x = static_cast<int8_t>(static_cast<uint32_t>(a) >> (8 * i));
        int y = static_cast<int8_t>(static_cast<uint32_t>(b) >> (8 * i));
        sum += static_cast<uint32_t>(x * y);
    }
    return static_cast<int>(sum);
}
static inline unsigned int __dp4a(unsigned int a, unsigned int b, unsigned int c) {
    for (int i = 0; i < 4; i++)
        c += (a >> (8 * i) & 255u) * (b >> (8 * i) & 255u);
    return c;
}

#define EMU_MIN_MAX(type)                                                                          \
    static inline type min(type a, type b) {                                                       \
        return b < a ? b : a;                                                                      \
    }                                                                                              \
    static inline type max(type a, type b) {                                                       \
        return a < b ? b : a;                                                                      \
    }
EMU_MIN_MAX(int)
EMU_MIN_MAX(unsigned int)
EMU_MIN_MAX(long)
EMU_MIN_MAX(unsigned long)
EMU_MIN_MAX(long long)
EMU_MIN_MAX(unsigned long long)
#undef EMU_MIN_MAX
/* As on the device, a number wins over NaN. */
static inline float min(float a, float b) {
    return std::fmin(a, b);
}
static inline float max(float a, float b) {
    return std::fmax(a, b);
}
static inline double min(double a, double b) {
    return std::fmin(a, b);
}
static inline double max(double a, double b) {
    return std::fmax(a, b);
}

/* bf16 as bit patterns; rounding to nearest even, any NaN becomes 0x7fff. */
static inline uint16_t to_bf16(float v) {
    if (std::isnan(v))
        return 0x7fff;
    uint32_t u = __float_as_uint(v);
    return static_cast<uint16_t>((u + 0x7fffu + (u >> 16 & 1u)) >> 16);
}
static inline float from_bf16(uint16_t v) {
    return __uint_as_float(static_cast<uint32_t>(v) << 16);
}
static inline float bf16x2_lo(uint32_t v) {
    return __uint_as_float(v << 16);
}
static inline float bf16x2_hi(uint32_t v) {
    return __uint_as_float(v & 0xffff0000u);
}
static inline uint32_t pack_bf16x2(float lo, float hi) {
    return to_bf16(lo) | static_cast<uint32_t>(to_bf16(hi)) << 16;
}
static inline uint32_t add_bf16x2(uint32_t a, uint32_t b) {
    return pack_bf16x2(bf16x2_lo(a) + bf16x2_lo(b), bf16x2_hi(a) + bf16x2_hi(b));
}
static inline uint32_t sub_bf16x2(uint32_t a, uint32_t b) {
    return pack_bf16x2(bf16x2_lo(a) - bf16x2_lo(b), bf16x2_hi(a) - bf16x2_hi(b));
}

#endif
