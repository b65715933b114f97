// One pass from raw observations to the stored rows: normalise, clip, forward, sample, log-probability, value, and the action
// in the environment's units. A row's result depends on nothing but the row, the parameters and the noise.
//   x = clip((s - mean) inv_std, +-clip);  Gaussian: a = mu(x) + sigma noise;  categorical: see policy.hpp, noise is uniform
//   to the environment: low + (clip(a, +-1) + 1) half_range, in double, rounded to float (envs/base.py, ActionRescaler)
#pragma once

#include "mlp.hpp"
#include "policy.hpp"
#include "ppo_state.hpp"
#include "simd.hpp"

namespace ppo_fast {
namespace {

inline void normalise(const Acting& a, const float* obs, float* out) {
    const std::size_t dim = a.model.obs_dim;
    if (a.mean == nullptr) {
        std::memcpy(out, obs, dim * sizeof(float));
        return;
    }
    for (std::size_t d = 0; d < dim; ++d) {
        const float x = (obs[d] - a.mean[d]) * a.inv_std[d];
        out[d] = x < -a.clip_obs ? -a.clip_obs : x > a.clip_obs ? a.clip_obs : x;
    }
}

inline double to_env(const Acting& a, std::size_t component, float action) {
    if (!a.bounded[component]) {
        return static_cast<double>(action);
    }
    const auto x = static_cast<double>(action);
    const double unit = (x < -1.0 ? -1.0 : x > 1.0 ? 1.0 : x) + 1.0;
    const double scaled = unit * a.half_range[component];
    return static_cast<double>(static_cast<float>(scaled + a.action_low[component]));
}

// Returns log pi of the sampled action, which it writes.
inline float sample_gaussian(const Acting& a, const float* mean, float* z, const float* std, const double* noise,
                             float log_sum, float* action) {
    const Model& model = a.model;
    for (std::size_t i = 0; i < model.act_dim; ++i) {
        const float spread = std[i] * static_cast<float>(noise[i]);
        action[i] = mean[i] + spread;
        z[i] = action[i];
    }
    return gaussian_log_prob(model, a.work[0], mean, z, log_sum);
}

inline float sample_categorical(const Acting& a, const float* logits, float* probs, double u, float* action) {
    const Weights c = categorical_weights(a.model, logits, probs);
    const std::size_t chosen = categorical_sample(a.model, probs, c.total, u);
    *action = c.total == c.total ? static_cast<float>(chosen) : c.total;  // NaN where a logit is, so that nobody acts on it
    return (logits[chosen] - c.max) - c.log_total;
}

void act(Acting& a, const std::int64_t* t, const std::int32_t* env, std::size_t n, const double* noise,
         double* env_actions) {
    const Model& model = a.model;
    const Workspace& w = a.work[0];
    const Buffers& to = a.rollout;
    std::size_t row[kSlice];
    for (std::size_t i = 0; i < n; ++i) {
        row[i] = static_cast<std::size_t>(t[i]) * a.num_envs + static_cast<std::size_t>(env[i]);
        float* x = w.obs + i * model.obs_dim;
        normalise(a, to.obs + row[i] * model.obs_dim, x);
        std::memcpy(to.norm_obs + row[i] * model.obs_dim, x, model.obs_dim * sizeof(float));
    }
    for (std::size_t net = 0; net < model.num_nets; ++net) {
        const Net& part = model.nets[net];
        if (noise == nullptr && !part.value) {
            continue;
        }
        forward(model, part, a.work[net], n);
        if (part.value) {
            const std::size_t last = part.num_layers - 1, out_pad = part.layers[last].out_pad;
            for (std::size_t i = 0; i < n; ++i) {
                to.values[row[i]] = a.work[net].output[last][i * out_pad + part.value_column];
            }
        }
    }
    if (noise == nullptr) {
        return;
    }
    const Net& policy = model.nets[0];
    const std::size_t last = policy.num_layers - 1, out_pad = policy.layers[last].out_pad;
    const bool gaussian = model.num_actions == 0;
    const Sigma sigma = gaussian ? prepare_sigma(model, w) : Sigma{};
    float* std = w.log_std_grad;  // free in an actor
    for (std::size_t j = 0; gaussian && j < model.act_pad; j += kLanes) {
        store(std + j, exp(load(model.params + model.log_std + j)));
    }
    for (std::size_t i = 0; i < n; ++i) {
        const float* head = w.output[last] + i * out_pad;
        float* action = to.actions + row[i] * model.act_dim;
        const double* draw = noise + i * model.act_dim;
        to.log_probs[row[i]] = gaussian ? sample_gaussian(a, head, w.actions, std, draw, sigma.log_sum, action)
                                        : sample_categorical(a, head, w.probs, *draw, action);
        for (std::size_t j = 0; j < model.act_dim; ++j) {
            env_actions[i * model.act_dim + j] = to_env(a, j, action[j]);
        }
    }
}

}  // namespace
}  // namespace ppo_fast
