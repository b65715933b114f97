// The two distributions over actions, equal to ppo_fast/models.py up to rounding. The actor and the learner call the same
// functions row by row, so that under unchanged parameters the ratio of new to old probability is exactly 1.
//   Gaussian:     log pi = sum_i -1/2 z_i^2 - log sigma_i - 1/2 log 2 pi,   z = (a - mu) / sigma
//   categorical:  log pi = l_a - max l - log c,   w_k = exp(l_k - max l),   c = sum_k w_k
#pragma once

#include "ppo_state.hpp"
#include "simd.hpp"

namespace ppo_fast {
namespace {

constexpr double kLogSqrt2Pi = 0.91893853320467274178;

// What a Gaussian needs of log sigma, once per minibatch.
struct Sigma {
    float log_sum;
    double entropy;
};

inline Sigma prepare_sigma(const Model& model, const Workspace& w) {
    const float* log_std = model.params + model.log_std;
    double sum = 0.0;
    for (std::size_t i = 0; i < model.act_dim; ++i) {
        sum += static_cast<double>(log_std[i]);
    }
    for (std::size_t j = 0; j < model.act_pad; j += kLanes) {
        store(w.inv_std + j, exp(-load(log_std + j)));
    }
    for (std::size_t i = model.act_dim; i < model.act_pad; ++i) {
        w.inv_std[i] = 0.0F;  // so that z is 0 there, whatever stands beside the means
    }
    return {static_cast<float>(sum), sum + static_cast<double>(model.act_dim) * (kLogSqrt2Pi + 0.5)};
}

// Turns the action into z.
inline float gaussian_log_prob(const Model& model, const Workspace& w, const float* mean, float* action, float log_sum) {
    for (std::size_t j = 0; j < model.act_pad; j += kLanes) {
        store(action + j, (load(action + j) - load(mean + j)) * load(w.inv_std + j));
    }
    float squares = 0.0F;
    for (std::size_t i = 0; i < model.act_dim; ++i) {
        squares += action[i] * action[i];
    }
    const auto constant = static_cast<float>(kLogSqrt2Pi * static_cast<double>(model.act_dim));
    return -0.5F * squares - log_sum - constant;
}

struct Weights {  // of a categorical distribution, beside its w
    float max, total, log_total;
};

// w_k = exp(l_k - max l); the total is a running sum in the order of the actions.
inline Weights categorical_weights(const Model& model, const float* logits, float* w) {
    float max = logits[0];
    for (std::size_t k = 1; k < model.num_actions; ++k) {
        max = logits[k] > max ? logits[k] : max;
    }
    for (std::size_t j = 0; j < padded(model.num_actions); j += kLanes) {
        store(w + j, exp(load(logits + j) - splat(max)));
    }
    float total = 0.0F;
    for (std::size_t k = 0; k < model.num_actions; ++k) {
        total += w[k];
    }
    return {max, total, __builtin_logf(total)};
}

// The number of k < K - 1 whose running sum is at most u c.
inline std::size_t categorical_sample(const Model& model, const float* w, float total, double u) {
    const double threshold = u * static_cast<double>(total);
    float sum = 0.0F;
    std::size_t chosen = 0;
    for (std::size_t k = 0; k + 1 < model.num_actions; ++k) {
        sum += w[k];
        chosen += static_cast<double>(sum) <= threshold ? 1 : 0;
    }
    return chosen;
}

}  // namespace
}  // namespace ppo_fast
