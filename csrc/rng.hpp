// Philox4x32-10 and standard normals from it, bit-equal to ppo_fast/reference/rng.py (philox4x32, normals).
//   (w0..w3) = philox(key = seed, counter = (block, step low, env, NOISE | step high))
//   u = ((w1:w0 >> 12) + 1/2) / 2^52, likewise w3:w2;   normal = inverse normal CDF (u)
//   log x = e ln 2 + 2 atanh((m - 1) / (m + 1)), x = m 2^e
// Only integers, + - * /, sqrt and exponent bits: no libm call, and no fused multiply-add (-ffp-contract=off).
// Source: Salmon et al., SC 2011; Wichura, AS241 (PPND16), Applied Statistics 37 (1988) 477-484.
#pragma once

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace ppo_fast {

// The top byte of a counter's last word says what the draw is for, so that no two purposes can meet.
constexpr std::uint32_t kNoise = 1U << 24;
constexpr std::uint32_t kPermutation = 2U << 24;

constexpr std::uint32_t low_word(std::uint64_t x) { return static_cast<std::uint32_t>(x); }
constexpr std::uint32_t high_word(std::uint64_t x) { return static_cast<std::uint32_t>(x >> 32); }

using Block = std::array<std::uint32_t, 4>;

inline Block philox4x32(Block c, std::uint64_t seed) {
    std::uint32_t k0 = low_word(seed);
    std::uint32_t k1 = high_word(seed);
    for (int round = 0; round < 10; ++round) {
        const std::uint64_t product0 = std::uint64_t{0xD2511F53U} * c[0];
        const std::uint64_t product1 = std::uint64_t{0xCD9E8D57U} * c[2];
        c = {high_word(product1) ^ c[1] ^ k0, low_word(product1), high_word(product0) ^ c[3] ^ k1, low_word(product0)};
        k0 += 0x9E3779B9U;
        k1 += 0xBB67AE85U;
    }
    return c;
}

template <std::size_t Terms>
inline double polynomial(const double (&coefficients)[Terms], double x) {  // lowest power first; Horner's rule
    double result = coefficients[Terms - 1];
    for (std::size_t k = Terms - 1; k-- > 0;) {
        result = result * x + coefficients[k];
    }
    return result;
}

inline double log_of_normal(double x) {  // x: a normal (not subnormal) positive double
    constexpr double kAtanh[] = {1.0 / 1,  1.0 / 3,  1.0 / 5,  1.0 / 7,  1.0 / 9, 1.0 / 11,
                                 1.0 / 13, 1.0 / 15, 1.0 / 17, 1.0 / 19, 1.0 / 21};
    std::uint64_t bits = 0;
    std::memcpy(&bits, &x, sizeof bits);
    int e = static_cast<int>(bits >> 52) - 1022;
    bits = (bits & 0x000FFFFFFFFFFFFFU) | 0x3FE0000000000000U;  // the same digits in [1/2, 1)
    double m = 0.0;
    std::memcpy(&m, &bits, sizeof m);
    if (m < 0.7071067811865476) {
        m = 2.0 * m;
        e -= 1;
    }
    const double s = (m - 1.0) / (m + 1.0);
    return e * 0.6931471805599453 + 2.0 * s * polynomial(kAtanh, s * s);
}

constexpr double kCentre = 0.425;  // |u - 1/2| up to which the centre's rational function holds

inline double centre_of_normal_cdf(double q) {
    constexpr double kCentreNum[] = {3.3871328727963666080e0, 1.3314166789178437745e2, 1.9715909503065514427e3,
                                     1.3731693765509461125e4, 4.5921953931549871457e4, 6.7265770927008700853e4,
                                     3.3430575583588128105e4, 2.5090809287301226727e3};
    constexpr double kCentreDen[] = {1.0,
                                     4.2313330701600911252e1,
                                     6.8718700749205790830e2,
                                     5.3941960214247511077e3,
                                     2.1213794301586595867e4,
                                     3.9307895800092710610e4,
                                     2.8729085735721942674e4,
                                     5.2264952788528545610e3};
    const double s = 0.180625 - q * q;
    return q * polynomial(kCentreNum, s) / polynomial(kCentreDen, s);
}

inline double tail_of_normal_cdf(double u) {
    constexpr double kTailNum[] = {1.42343711074968357734e0,  4.63033784615654529590e0,  5.76949722146069140550e0,
                                   3.64784832476320460504e0,  1.27045825245236838258e0,  2.41780725177450611770e-1,
                                   2.27238449892691845833e-2, 7.74545014278341407640e-4};
    constexpr double kTailDen[] = {1.0,
                                   2.05319162663775882187e0,
                                   1.67638483018380384940e0,
                                   6.89767334985100004550e-1,
                                   1.48103976427480074590e-1,
                                   1.51986665636164571966e-2,
                                   5.47593808499534494600e-4,
                                   1.05075007164441684324e-9};
    constexpr double kFarNum[] = {6.65790464350110377720e0,  5.46378491116411436990e0,  1.78482653991729133580e0,
                                  2.96560571828504891230e-1, 2.65321895265761230930e-2, 1.24266094738807843860e-3,
                                  2.71155556874348757815e-5, 2.01033439929228813265e-7};
    constexpr double kFarDen[] = {1.0,
                                  5.99832206555887937690e-1,
                                  1.36929880922735805310e-1,
                                  1.48753612908506148525e-2,
                                  7.86869131145613259100e-4,
                                  1.84631831751005468180e-5,
                                  1.42151175831644588870e-7,
                                  2.04426310338993978564e-15};
    const bool below = u < 0.5;
    const double r = std::sqrt(-log_of_normal(below ? u : 1.0 - u));
    const double tail = r <= 5.0 ? polynomial(kTailNum, r - 1.6) / polynomial(kTailDen, r - 1.6)
                                 : polynomial(kFarNum, r - 5.0) / polynomial(kFarDen, r - 5.0);
    return below ? -tail : tail;
}

// Replace n uniforms by normals. The centre, six in seven of them, is a loop without branches, which compilers vectorise.
inline void inverse_normal_cdf(double* u, std::size_t n) {
    constexpr std::size_t kBlock = 64;
    for (std::size_t start = 0; start < n; start += kBlock) {
        const std::size_t size = n - start < kBlock ? n - start : kBlock;
        double* x = u + start;
        double normal[kBlock];
        for (std::size_t i = 0; i < size; ++i) {
            normal[i] = centre_of_normal_cdf(x[i] - 0.5);
        }
        for (std::size_t i = 0; i < size; ++i) {
            x[i] = std::fabs(x[i] - 0.5) <= kCentre ? normal[i] : tail_of_normal_cdf(x[i]);
        }
    }
}

inline double uniform_of(std::uint32_t low, std::uint32_t high) {
    const std::uint64_t bits = std::uint64_t{high} << 32 | low;
    // 52 bits, so that k + 1/2 is exact and u stays below 1.
    return (static_cast<double>(bits >> 12) + 0.5) * 0x1p-52;
}

// out[row * dim + k]: the k-th uniform of (env_ids[row], steps[row]).
inline void uniforms(const std::int64_t* env_ids, const std::int64_t* steps, std::size_t rows, std::size_t dim,
                     std::uint64_t seed, double* out) {
    for (std::size_t row = 0; row < rows; ++row, out += dim) {
        const auto env = static_cast<std::uint32_t>(env_ids[row]);
        const auto step = static_cast<std::uint64_t>(steps[row]);
        for (std::size_t k = 0; k < dim; k += 2) {
            const auto block = static_cast<std::uint32_t>(k / 2);
            const Block w = philox4x32({block, low_word(step), env, kNoise | high_word(step)}, seed);
            out[k] = uniform_of(w[0], w[1]);
            if (k + 1 < dim) {
                out[k + 1] = uniform_of(w[2], w[3]);
            }
        }
    }
}

// out[row * dim + k]: the k-th normal of (env_ids[row], steps[row]).
inline void normals(const std::int64_t* env_ids, const std::int64_t* steps, std::size_t rows, std::size_t dim,
                    std::uint64_t seed, double* out) {
    uniforms(env_ids, steps, rows, dim, seed, out);
    inverse_normal_cdf(out, rows * dim);
}

}  // namespace ppo_fast
