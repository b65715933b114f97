// The loss of one slice of rows: from the heads' outputs to the derivatives of the loss by them, and the sums for the metrics.
// Equal to ppo_fast/learners/ppo_step.py (ppo_loss) up to rounding.
#pragma once

#include "policy.hpp"
#include "ppo_state.hpp"
#include "simd.hpp"

namespace ppo_fast {
namespace {

constexpr float kAdvEps = 1e-8F;

struct LossSlice {
    const State& s;
    const Net& net;
    const Workspace& w;
    const float* advantages;
    std::size_t rows;
    float inv_count;  // 1 / rows of the minibatch
    double* stats;

    const Layer& head() const { return net.layers[net.num_layers - 1]; }
    float* output() const { return w.output[net.num_layers - 1]; }
    float* delta() const { return w.delta[net.num_layers - 1]; }
};

inline void normalise_advantages(float* advantages, std::size_t rows) {
    const auto count = static_cast<double>(rows);
    double sum = 0.0, squares = 0.0;
    for (std::size_t m = 0; m < rows; ++m) {
        sum += static_cast<double>(advantages[m]);
    }
    const double mean = sum / count;
    for (std::size_t m = 0; m < rows; ++m) {
        const double centred = static_cast<double>(advantages[m]) - mean;
        squares += centred * centred;
    }
    const double scale = 1.0 / (__builtin_sqrt(squares / count) + static_cast<double>(kAdvEps));
    for (std::size_t m = 0; m < rows; ++m) {
        advantages[m] = static_cast<float>((static_cast<double>(advantages[m]) - mean) * scale);
    }
}

// From log r to r, to the derivative of the surrogate by log pi, w.by_log_prob, and to the metrics that follow from r.
inline void surrogate(const LossSlice& x) {
    const Hyper& hp = x.s.hyper;
    const Workspace& w = x.w;
    for (std::size_t m = 0; m < x.rows; m += kLanes) {  // the buffers are padded to kPad rows
        store(w.ratio + m, exp(load(w.log_ratio + m)));
    }
    const float low = 1.0F - hp.clip_coef, high = 1.0F + hp.clip_coef;
    double policy_loss = 0.0, kl = 0.0, clipped_rows = 0.0;
    for (std::size_t m = 0; m < x.rows; ++m) {
        const float r = w.ratio[m], advantage = x.advantages[m];
        const float plain = -advantage * r, clipped = -advantage * (r < low ? low : r > high ? high : r);
        const bool cut = plain < clipped;  // false with NaN, which then reaches the gradient and the loss
        policy_loss += static_cast<double>(cut ? clipped : plain);
        kl += static_cast<double>(r - 1.0F - w.log_ratio[m]);
        clipped_rows += __builtin_fabsf(r - 1.0F) > hp.clip_coef ? 1.0 : 0.0;
        w.by_log_prob[m] = cut ? 0.0F : plain * x.inv_count;  // -A r / count
    }
    x.stats[kPolicyLoss] += policy_loss;
    x.stats[kApproxKl] += kl;
    x.stats[kClipFrac] += clipped_rows;
    x.stats[kRows] += static_cast<double>(x.rows);
}

inline void gaussian_loss(const LossSlice& x, const Sigma& sigma) {
    const Model& model = x.s.model;
    const Workspace& w = x.w;
    const std::size_t out_pad = x.head().out_pad;
    for (std::size_t m = 0; m < x.rows; ++m) {
        const float log_prob =
            gaussian_log_prob(model, w, x.output() + m * out_pad, w.actions + m * model.act_pad, sigma.log_sum);
        w.log_ratio[m] = log_prob - w.log_probs[m];
    }
    surrogate(x);
    x.stats[kEntropy] += sigma.entropy * static_cast<double>(x.rows);
    for (std::size_t m = 0; m < x.rows; ++m) {
        const V slope = splat(w.by_log_prob[m]);
        const float* z = w.actions + m * model.act_pad;
        for (std::size_t j = 0; j < model.act_pad; j += kLanes) {
            const V scaled = slope * load(z + j);
            store(x.delta() + m * out_pad + j, scaled * load(w.inv_std + j));
            store(w.log_std_grad + j, load(w.log_std_grad + j) + fma(scaled, load(z + j), -slope));
        }
    }
}

inline void categorical_loss(const LossSlice& x) {
    const Model& model = x.s.model;
    const Workspace& w = x.w;
    const std::size_t out_pad = x.head().out_pad, pad = padded(model.num_actions);
    for (std::size_t m = 0; m < x.rows; ++m) {
        float* logits = x.output() + m * out_pad;
        float* probs = w.probs + m * pad;
        const Weights c = categorical_weights(model, logits, probs);
        const auto action = static_cast<std::size_t>(w.actions[m * model.act_pad]);
        w.log_ratio[m] = ((logits[action] - c.max) - c.log_total) - w.log_probs[m];
        double entropy = 0.0;
        for (std::size_t k = 0; k < model.num_actions; ++k) {
            probs[k] /= c.total;
            logits[k] = (logits[k] - c.max) - c.log_total;  // log p
            entropy -= static_cast<double>(probs[k]) * static_cast<double>(logits[k]);
        }
        x.stats[kEntropy] += entropy;
        const float weight = x.s.hyper.ent_coef * x.inv_count;
        for (std::size_t k = 0; k < model.num_actions; ++k) {  // -ent_coef dH/dl_k / count
            x.delta()[m * out_pad + k] = weight * probs[k] * (logits[k] + static_cast<float>(entropy));
        }
    }
    surrogate(x);
    for (std::size_t m = 0; m < x.rows; ++m) {
        float* delta = x.delta() + m * out_pad;
        const auto action = static_cast<std::size_t>(w.actions[m * model.act_pad]);
        for (std::size_t k = 0; k < model.num_actions; ++k) {
            delta[k] += w.by_log_prob[m] * ((k == action ? 1.0F : 0.0F) - w.probs[m * pad + k]);
        }
    }
}

// The derivative of 1/2 max((V - R)^2, (V_old + clip(V - V_old, +-eps) - R)^2) by V; *loss is its value.
inline float value_slope(const Hyper& hp, float value, float old_value, float target, float* loss) {
    const float error = value - target;
    if (!hp.clip_vloss) {
        *loss = 0.5F * error * error;
        return error;
    }
    const float moved = value - old_value;
    const float clipped = moved < -hp.clip_coef ? -hp.clip_coef : moved > hp.clip_coef ? hp.clip_coef : moved;
    const float near_error = old_value + clipped - target;
    const float near_slope = clipped == moved ? near_error : 0.0F;
    const float far = error * error, near = near_error * near_error;
    *loss = 0.5F * (far >= near ? far : near);  // NaN in V_old makes near NaN alone
    return far > near ? error : near > far ? near_slope : 0.5F * (error + near_slope);  // at a tie as torch.maximum
}

inline void value_loss(const LossSlice& x) {
    const Hyper& hp = x.s.hyper;
    const std::size_t out_pad = x.head().out_pad, column = x.net.value_column;
    double total = 0.0;
    for (std::size_t m = 0; m < x.rows; ++m) {
        float loss;
        const float value = x.output()[m * out_pad + column];
        const float slope = value_slope(hp, value, x.w.values[m], x.w.returns[m], &loss);
        total += static_cast<double>(loss);
        x.delta()[m * out_pad + column] = hp.vf_coef * x.inv_count * slope;  // the padding beside it is 0 from the start
    }
    x.stats[kValueLoss] += total;
}

}  // namespace
}  // namespace ppo_fast
