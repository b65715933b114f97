// One PPO minibatch: gather, forward, loss, backward, clipping and Adam, equal to ppo_fast/learners/ppo_step.py
// (ppo_loss, adam_step) up to rounding.
//   r = pi(a|s) / pi_old(a|s)
//   L = mean(max(-A r, -A clip(r, 1 +- eps))) + vf_coef mean(1/2 (V - R)^2) - ent_coef H
// Rows that do not count are left out when the minibatch is gathered, so nothing in them is read.
#pragma once

#include "mlp.hpp"
#include "ppo_state.hpp"
#include "simd.hpp"

namespace ppo_fast {
namespace {

constexpr double kLogSqrt2Pi = 0.91893853320467274178;
constexpr float kAdvEps = 1e-8F;

// Find the rows that count; their advantages are needed at once, to be normalised over all of them.
inline std::size_t select_valid(State& s, const Rows& rows, const std::int64_t* index, std::size_t n) {
    std::size_t count = 0;
    for (std::size_t i = 0; i < n; ++i) {
        if (rows.valid[index[i]] > 0.0F) {
            s.index[count] = index[i];
            s.advantages[count] = rows.advantages[index[i]];
            ++count;
        }
    }
    return count;
}

inline void gather_slice(State& s, const Rows& rows, const std::int64_t* index, std::size_t n) {
    for (std::size_t m = 0; m < n; ++m) {
        const auto row = static_cast<std::size_t>(index[m]);
        std::memcpy(s.obs + m * s.obs_dim, rows.norm_obs + row * s.obs_dim, s.obs_dim * sizeof(float));
        std::memcpy(s.actions + m * s.act_pad, rows.actions + row * s.act_dim, s.act_dim * sizeof(float));
        s.log_probs[m] = rows.log_probs[row];
        s.returns[m] = rows.returns[row];
        s.values[m] = rows.values[row];
    }
}

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

// s.actions becomes z = (a - mu) / sigma; s.ratio becomes log r, then r.
inline void ratios(State& s, const float* mean, std::size_t rows, float* log_ratio, float log_std_sum) {
    const auto constant = static_cast<float>(kLogSqrt2Pi * static_cast<double>(s.act_dim));
    for (std::size_t m = 0; m < rows; ++m) {
        float* z = s.actions + m * s.act_pad;
        for (std::size_t j = 0; j < s.act_pad; j += kLanes) {
            store(z + j, (load(z + j) - load(mean + m * s.act_pad + j)) * load(s.inv_std + j));
        }
        float squares = 0.0F;
        for (std::size_t i = 0; i < s.act_dim; ++i) {
            squares += z[i] * z[i];
        }
        log_ratio[m] = (-0.5F * squares - log_std_sum - constant) - s.log_probs[m];
    }
    for (std::size_t m = 0; m < rows; m += kLanes) {  // the buffers are padded to kPad rows
        store(s.ratio + m, exp(load(log_ratio + m)));
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
    *loss = 0.5F * (near > far ? near : far);
    return far > near ? error : near > far ? near_slope : 0.5F * (error + near_slope);  // at a tie as torch.maximum
}

struct Totals {
    double policy_loss, value_loss, kl, clipped_rows;
};

// From means and values of one slice to the deltas of both heads and the sum for the gradient of log sigma.
inline void slice_loss(State& s, const float* advantages, std::size_t rows, float inv_count, float log_std_sum,
                       Totals& totals) {
    const Hyper& hp = s.hyper;
    const Layer& mean = s.actor.layers[s.actor.num_layers - 1];
    const Layer& value = s.critic.layers[s.critic.num_layers - 1];
    float* log_ratio = s.slope;  // free until the loop below
    ratios(s, mean.output, rows, log_ratio, log_std_sum);

    const float low = 1.0F - hp.clip_coef, high = 1.0F + hp.clip_coef;
    for (std::size_t m = 0; m < rows; ++m) {
        const float r = s.ratio[m], advantage = advantages[m];
        const float plain = -advantage * r, clipped = -advantage * (r < low ? low : r > high ? high : r);
        const bool cut = plain < clipped;  // false with NaN, which then reaches the gradient and the loss
        totals.policy_loss += static_cast<double>(cut ? clipped : plain);
        totals.kl += static_cast<double>(r - 1.0F - log_ratio[m]);
        totals.clipped_rows += __builtin_fabsf(r - 1.0F) > hp.clip_coef ? 1.0 : 0.0;
        s.slope[m] = cut ? 0.0F : plain * inv_count;  // of the loss by log pi: -A r / count

        float loss;
        const float by_value = value_slope(hp, value.output[m * value.out_pad], s.values[m], s.returns[m], &loss);
        totals.value_loss += static_cast<double>(loss);
        value.delta[m * value.out_pad] = hp.vf_coef * inv_count * by_value;  // the padding beside it is 0 from the start
    }
    for (std::size_t m = 0; m < rows; ++m) {
        const V slope = splat(s.slope[m]);
        const float* z = s.actions + m * s.act_pad;
        for (std::size_t j = 0; j < s.act_pad; j += kLanes) {
            const V scaled = slope * load(z + j);
            store(mean.delta + m * mean.out_pad + j, scaled * load(s.inv_std + j));
            store(s.log_std_grad + j, load(s.log_std_grad + j) + fma(scaled, load(z + j), -slope));
        }
    }
}

void refresh(State& s) {
    transpose(s, s.actor);
    transpose(s, s.critic);
}

std::size_t gradient(State& s, const Rows& rows, const std::int64_t* index, std::size_t n, double* stats) {
    const std::size_t count = select_valid(s, rows, index, n);
    if (count == 0) {
        std::memset(s.grad, 0, s.packed_size * sizeof(float));
        return 0;
    }
    if (s.hyper.norm_adv_minibatch) {
        normalise_advantages(s.advantages, count);
    }
    const float* log_std = s.params + s.log_std;
    double log_std_sum = 0.0;
    for (std::size_t i = 0; i < s.act_dim; ++i) {
        log_std_sum += static_cast<double>(log_std[i]);
    }
    for (std::size_t j = 0; j < s.act_pad; j += kLanes) {
        store(s.inv_std + j, exp(-load(log_std + j)));
        store(s.log_std_grad + j, V{});
    }
    Totals totals{};
    for (std::size_t start = 0; start < count; start += kSlice) {
        const std::size_t size = count - start < kSlice ? count - start : kSlice;
        gather_slice(s, rows, s.index + start, size);
        forward(s, s.actor, size);
        forward(s, s.critic, size);
        slice_loss(s, s.advantages + start, size, 1.0F / static_cast<float>(count), static_cast<float>(log_std_sum), totals);
        backward(s, s.actor, size, start == 0);
        backward(s, s.critic, size, start == 0);
    }
    for (std::size_t i = 0; i < s.act_dim; ++i) {  // the padding of the gradient stays 0
        s.grad[s.log_std + i] = s.log_std_grad[i] - s.hyper.ent_coef;
    }
    const double entropy = log_std_sum + static_cast<double>(s.act_dim) * (kLogSqrt2Pi + 0.5);
    stats[kPolicyLoss] += totals.policy_loss;
    stats[kValueLoss] += totals.value_loss;
    stats[kEntropy] += entropy * static_cast<double>(count);
    stats[kApproxKl] += totals.kl;
    stats[kClipFrac] += totals.clipped_rows;
    stats[kRows] += static_cast<double>(count);
    return count;
}

// g <- g min(1, max_grad_norm / (|g| + 1e-6));  m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2
// theta <- theta - lr / (1 - b1^t) m / (sqrt(v / (1 - b2^t)) + eps)
double step(State& s, double learning_rate) {
    constexpr double beta1 = 0.9, beta2 = 0.999;  // ppo_step.py, ADAM_BETAS
    const std::size_t n = s.packed_size;          // a multiple of kFold
    V partial[kFold / kLanes] = {};
    for (std::size_t i = 0; i < n; i += kFold) {
        for (int j = 0; j < kFold / kLanes; ++j) {
            const V g = load(s.grad + i + static_cast<std::size_t>(j * kLanes));
            partial[j] = fma(g, g, partial[j]);
        }
    }
    float lanes[kFold];
    std::memcpy(lanes, partial, sizeof lanes);
    const float norm = __builtin_sqrtf(fold(lanes));
    const float factor = s.hyper.max_grad_norm / (norm + 1e-6F);
    const V scale = splat(factor > 1.0F ? 1.0F : factor);

    const auto t = static_cast<double>(++s.adam_steps);
    const V step_size = splat(static_cast<float>(-learning_rate / (1.0 - __builtin_pow(beta1, t))));
    const V inv_sqrt_bias2 = splat(static_cast<float>(1.0 / __builtin_sqrt(1.0 - __builtin_pow(beta2, t))));
    const V decay1 = splat(static_cast<float>(beta1)), weight1 = splat(static_cast<float>(1.0 - beta1));
    const V decay2 = splat(static_cast<float>(beta2)), weight2 = splat(static_cast<float>(1.0 - beta2));
    const V eps = splat(s.hyper.adam_eps);
    for (std::size_t i = 0; i < n; i += kLanes) {
        const V g = load(s.grad + i) * scale;
        const V m = fma(decay1, load(s.exp_avg + i), weight1 * g);
        const V v = fma(decay2, load(s.exp_avg_sq + i), weight2 * g * g);
        store(s.exp_avg + i, m);
        store(s.exp_avg_sq + i, v);
        store(s.params + i, fma(step_size, divide(m, fma(sqrt(v), inv_sqrt_bias2, eps)), load(s.params + i)));
    }
    refresh(s);
    return static_cast<double>(norm);
}

void epoch(State& s, const Rows& rows, const std::int64_t* order, std::size_t batch, std::size_t minibatch,
           double learning_rate, double* stats) {
    for (std::size_t start = 0; start < batch; start += minibatch) {
        if (gradient(s, rows, order + start, minibatch, stats) > 0) {
            stats[kGradNorm] += step(s, learning_rate);
            stats[kSteps] += 1.0;
        }
    }
}

}  // namespace
}  // namespace ppo_fast
