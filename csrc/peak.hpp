// What one core could do at most: fused multiply-adds on registers alone, at the vector width of a SIMD level. Benchmarks compare
// the learner's arithmetic with it.
#pragma once

#include <time.h>

#include "simd.hpp"

namespace ppo_fast {
namespace {

constexpr int kRounds = 20000, kStretches = 12;
constexpr int kChains = kTileVectors == 4 ? 6 : 3;  // times 4: enough to hide the latency, and they fit 32 or 16 registers

// x <- x / 2 + 1 in every chain. All go to 2, so that no number is slow to compute with; they begin apart, or the compiler would
// take two for one.
inline V run_chains() {
    V chain[kChains][4];
    for (int i = 0; i < kChains; ++i) {
        for (int j = 0; j < 4; ++j) {
            chain[i][j] = splat(static_cast<float>(4 * i + j));
        }
    }
    const V half = splat(0.5F), one = splat(1.0F);
    for (int r = 0; r < kRounds; ++r) {
        for (int i = 0; i < kChains; ++i) {
            for (int j = 0; j < 4; ++j) {
                chain[i][j] = fma(chain[i][j], half, one);
            }
        }
    }
    V sum = V{};
    for (int i = 0; i < kChains; ++i) {
        for (int j = 0; j < 4; ++j) {
            sum += chain[i][j];
        }
    }
    return sum;
}

inline double seconds_now() {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

// FLOP/s, two for a multiply-add: the best of some stretches, each too short to be interrupted often.
double peak() {
    double best = 0.0;
    for (int s = 0; s < kStretches; ++s) {
        const double start = seconds_now();
        const V sum = run_chains();
        volatile float keep = sum[0];  // or the compiler would leave it all out
        static_cast<void>(keep);
        const double flops = 2.0 * kLanes * 4 * kChains * kRounds / (seconds_now() - start);
        best = flops > best ? flops : best;
    }
    return best;
}

}  // namespace
}  // namespace ppo_fast
