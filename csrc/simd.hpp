// Vectors of float of the width of one SIMD level, and exp, tanh and the logistic function on them.
//
// Every operation works lane by lane and fma() is fused by request, never by the compiler's choice (-ffp-contract=off), so
// that a result does not depend on the width: AVX-512, AVX2 and NEON give equal bits. The baseline of x86-64 has no fused
// multiply-add and differs by rounding. Reductions go over kFold virtual lanes, whatever the width.
//
// This header is compiled once per level with that level's flags. All of it has internal linkage, and nothing inline of the
// standard library may be used here: the linker would keep one copy for all levels, perhaps the one that only AVX-512 runs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace ppo_fast {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
constexpr int kTileRows = 6, kTileVectors = 4;  // accumulators of a tile: 24 of 32 registers
#elif defined(__AVX2__)
constexpr int kLanes = 8;
constexpr int kTileRows = 6, kTileVectors = 2;  // 12 of 16
#elif defined(__aarch64__)
constexpr int kLanes = 4;
constexpr int kTileRows = 6, kTileVectors = 4;  // 24 of 32
#else
constexpr int kLanes = 4;
constexpr int kTileRows = 4, kTileVectors = 2;  // 8 of 16; two more hold the products
#endif
constexpr int kFold = 64;  // virtual lanes of a reduction, a multiple of every kLanes

using V = float __attribute__((vector_size(4 * kLanes)));
using I = std::int32_t __attribute__((vector_size(4 * kLanes)));

inline V load(const float* from) {
    V out;
    std::memcpy(&out, from, sizeof out);
    return out;
}

inline void store(float* to, V value) { std::memcpy(to, &value, sizeof value); }

inline V splat(float value) {
#if defined(__AVX512F__)
    return _mm512_set1_ps(value);
#elif defined(__AVX2__)
    return _mm256_set1_ps(value);
#else
    return V{value, value, value, value};
#endif
}

inline V fma(V a, V b, V c) {
#if defined(__AVX512F__)
    return _mm512_fmadd_ps(a, b, c);
#elif defined(__AVX2__)
    return _mm256_fmadd_ps(a, b, c);
#elif defined(__aarch64__)
    return vfmaq_f32(c, a, b);
#else
    return a * b + c;
#endif
}

inline V sqrt(V a) {
#if defined(__AVX512F__)
    return _mm512_maskz_sqrt_ps(0xFFFF, a);  // GCC 12 warns of an uninitialised value in _mm512_sqrt_ps
#elif defined(__AVX2__)
    return _mm256_sqrt_ps(a);
#elif defined(__aarch64__)
    return vsqrtq_f32(a);
#else
    for (int i = 0; i < kLanes; ++i) {
        a[i] = __builtin_sqrtf(a[i]);
    }
    return a;
#endif
}

// a / b for 2^-126 <= b < 2^126, nearly always rounded correctly: a third of the time of the hardware's divider. From a guess by
// the exponent bits (12 % off at most) three Newton steps square the error each time; the last line corrects the quotient.
inline V divide(V a, V b) {
#if defined(__AVX2__) || defined(__aarch64__)
    const V one = splat(1.0F);
    V r = (V)(0x7EF311C7 - (I)b);
    r = fma(r, fma(-b, r, one), r);
    r = fma(r, fma(-b, r, one), r);
    r = fma(r, fma(-b, r, one), r);
    const V q = a * r;
    return fma(r, fma(-b, q, a), q);
#else
    return a / b;
#endif
}

inline V abs(V a) { return (V)((I)a & 0x7fffffff); }

inline V with_sign_of(V magnitude, V sign) { return (V)((I)magnitude | ((I)sign & INT32_MIN)); }

// e^x = half_power * 2 * (1 + tail), where x = n ln2 + r, |r| <= ln2 / 2, half_power = 2^(n-1), tail = e^r - 1. x must lie in
// [-86, 89]. tail = r + r^2 p(r), p the minimax polynomial of degree 4: relative error 1.4e-8 before rounding.
struct ExpParts {
    V half_power, tail;
};

inline ExpParts exp_parts(V x) {
    const V magic = splat(12582912.0F);  // 1.5 * 2^23: adding it rounds to an integer, found in the low bits
    const V shifted = fma(x, splat(1.44269504F), magic);
    const V n = shifted - magic;
    V r = fma(n, splat(-0.693359375F), x);  // ln2 in two parts, the first short, so that n times it is exact
    r = fma(n, splat(2.12194440e-4F), r);
    V p = splat(1.3882496859878302e-3F);
    p = fma(p, r, splat(8.36664717644453e-3F));
    p = fma(p, r, splat(4.166720435023308e-2F));
    p = fma(p, r, splat(0.16666541993618011F));
    p = fma(p, r, splat(0.4999999701976776F));
    const I exponent = (I)shifted - 0x4B400000 + 126;
    return {(V)(exponent << 23), fma(p * r, r, r)};
}

// NaN passes through all of these: a comparison with NaN is false.
inline V clamp(V x, float low, float high) {
    x = x < splat(low) ? splat(low) : x;
    return x > splat(high) ? splat(high) : x;
}

// e^x to 1 ulp; below -86 it stays at e^-86 = 4.5e-38, above 88.72 it is infinite.
inline V exp(V x) {
    const ExpParts e = exp_parts(clamp(x, -86.0F, 89.0F));
    return fma(e.half_power, e.tail, e.half_power) * splat(2.0F);
}

// e^x - 1 for x <= 0 or small, to 1.6 ulp.
inline V expm1(V x) {
    const ExpParts e = exp_parts(x);
    const V power = e.half_power * splat(2.0F);
    return fma(power, e.tail, power - splat(1.0F));
}

// tanh |x| = (e^2|x| - 1) / (e^2|x| + 1), to 2.5 ulp; 1 to the last bit from 9.02 on.
inline V tanh(V x) {
    const V a = clamp(abs(x), 0.0F, 9.02F);
    const V e = expm1(a + a);
    return with_sign_of(e / (e + splat(2.0F)), x);
}

// The transpose of a 4 x 4 block; rows of a and b begin every a_row and b_row floats.
inline void transpose4(const float* a, std::size_t a_row, float* b, std::size_t b_row) {
    using Q = float __attribute__((vector_size(16)));
#if defined(__clang__)
#define PPO_FAST_SHUFFLE(x, y, i, j, k, l) __builtin_shufflevector(x, y, i, j, k, l)
#else
    using QI = std::int32_t __attribute__((vector_size(16)));
#define PPO_FAST_SHUFFLE(x, y, i, j, k, l) __builtin_shuffle(x, y, QI{i, j, k, l})
#endif
    Q in[4];
    for (std::size_t i = 0; i < 4; ++i) {
        std::memcpy(&in[i], a + i * a_row, sizeof(Q));
    }
    const Q low01 = PPO_FAST_SHUFFLE(in[0], in[1], 0, 4, 1, 5), high01 = PPO_FAST_SHUFFLE(in[0], in[1], 2, 6, 3, 7);
    const Q low23 = PPO_FAST_SHUFFLE(in[2], in[3], 0, 4, 1, 5), high23 = PPO_FAST_SHUFFLE(in[2], in[3], 2, 6, 3, 7);
    const Q out[4] = {PPO_FAST_SHUFFLE(low01, low23, 0, 1, 4, 5), PPO_FAST_SHUFFLE(low01, low23, 2, 3, 6, 7),
                      PPO_FAST_SHUFFLE(high01, high23, 0, 1, 4, 5), PPO_FAST_SHUFFLE(high01, high23, 2, 3, 6, 7)};
#undef PPO_FAST_SHUFFLE
    for (std::size_t i = 0; i < 4; ++i) {
        std::memcpy(b + i * b_row, &out[i], sizeof(Q));
    }
}

// Sum of kFold partial sums in a fixed order.
inline float fold(const float* lanes) {
    float sums[kFold];
    std::memcpy(sums, lanes, sizeof sums);
    for (int width = kFold / 2; width > 0; width /= 2) {
        for (int i = 0; i < width; ++i) {
            sums[i] += sums[i + width];
        }
    }
    return sums[0];
}

}  // namespace
}  // namespace ppo_fast
