// Clipping and Adam over the packed vectors, equal to ppo_fast/learners/ppo_step.py (adam_step) up to rounding, and how the
// threads of a team share the work.
//   g <- g min(1, max_grad_norm / (|g| + 1e-6));  m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2
//   theta <- theta - lr / (1 - b1^t) m / (sqrt(v / (1 - b2^t)) + eps)
#pragma once

#include "mlp.hpp"
#include "ppo_state.hpp"
#include "simd.hpp"

namespace ppo_fast {
namespace {

inline void meet(const Me& me) {
    if (me.num_threads > 1) {
        barrier(*me.team);
    }
}

struct Share {
    std::size_t begin, end;
};

inline Share share(std::size_t n, std::size_t part, std::size_t parts) { return {n * part / parts, n * (part + 1) / parts}; }

// Where every thread has networks of its own, it alone reads and steps them, and threads meet only to add up the norm.
inline bool apart(const State& s, std::size_t lanes, const Me& me) {
    return lanes == 1 && me.num_threads == s.model.num_nets;
}

inline Share my_units(const State& s, std::size_t lanes, const Me& me) {
    if (!apart(s, lanes, me)) {
        return share(s.num_units, me.thread, me.num_threads);
    }
    std::size_t first_of_critic = 0;
    while (first_of_critic < s.num_units && s.units[first_of_critic].offset < s.model.nets[0].end) {
        ++first_of_critic;
    }
    return me.thread == 0 ? Share{0, first_of_critic} : Share{first_of_critic, s.num_units};
}

// The squares of two successive minibatches have places of their own: one thread may be a minibatch ahead.
inline void measure(State& s, std::size_t lanes, std::int64_t adam_step, const Me& me) {
    const Share mine = my_units(s, lanes, me);
    for (std::size_t u = mine.begin; u < mine.end; ++u) {
        Unit& unit = s.units[u];
        constexpr int kSums = kFold / kLanes;
        V partial[kSums] = {};
        const float* grad = s.grad + unit.offset;
        std::size_t i = 0;
        for (; i + kFold <= unit.size; i += kFold) {
            for (int j = 0; j < kSums; ++j) {
                const V g = load(grad + i + j * kLanes);
                partial[j] = fma(g, g, partial[j]);
            }
        }
        for (int j = 0; i < unit.size; i += kLanes, ++j) {
            const V g = load(grad + i);
            partial[j] = fma(g, g, partial[j]);
        }
        float sums[kFold];
        std::memcpy(sums, partial, sizeof sums);
        double squares = static_cast<double>(fold(sums));
        if (squares > 0x1.fffffep127) {  // the squares do not fit in a float, though the gradient may
            squares = 0.0;
            for (i = 0; i < unit.size; ++i) {
                squares += static_cast<double>(grad[i]) * static_cast<double>(grad[i]);
            }
        }
        unit.squares[adam_step % 2] = squares;
    }
}

// Make step adam_step and return |g|, in every thread.
inline float descend(State& s, double learning_rate, std::size_t lanes, std::int64_t adam_step, const Me& me) {
    constexpr double beta1 = 0.9, beta2 = 0.999;  // ppo_step.py, ADAM_BETAS
    double squares = 0.0;
    for (std::size_t u = 0; u < s.num_units; ++u) {
        squares += s.units[u].squares[adam_step % 2];
    }
    const auto norm = static_cast<float>(__builtin_sqrt(squares));
    const float factor = s.hyper.max_grad_norm / (norm + 1e-6F);
    const V scale = splat(factor > 1.0F ? 1.0F : factor);

    const auto t = static_cast<double>(adam_step);
    const V step_size = splat(static_cast<float>(-learning_rate / (1.0 - __builtin_pow(beta1, t))));
    const V inv_sqrt_bias2 = splat(static_cast<float>(1.0 / __builtin_sqrt(1.0 - __builtin_pow(beta2, t))));
    const V decay1 = splat(static_cast<float>(beta1)), weight1 = splat(static_cast<float>(1.0 - beta1));
    const V decay2 = splat(static_cast<float>(beta2)), weight2 = splat(static_cast<float>(1.0 - beta2));
    const V eps = splat(s.hyper.adam_eps);
    const Share mine = my_units(s, lanes, me);
    for (std::size_t u = mine.begin; u < mine.end; ++u) {
        const Unit& unit = s.units[u];
        for (std::size_t i = unit.offset; i < unit.offset + unit.size; i += kLanes) {
            const V g = load(s.grad + i) * scale;
            const V m = fma(decay1, load(s.exp_avg + i), weight1 * g);
            const V v = fma(decay2, load(s.exp_avg_sq + i), weight2 * g * g);
            store(s.exp_avg + i, m);
            store(s.exp_avg_sq + i, v);
            const V change = divide(m, fma(sqrt(v), inv_sqrt_bias2, eps));
            store(s.model.params + i, fma(step_size, change, load(s.model.params + i)));
        }
        if (unit.layer != nullptr) {
            transpose(s.model, *unit.layer, unit.k0, unit.k1);
        }
    }
    return norm;
}

}  // namespace
}  // namespace ppo_fast
