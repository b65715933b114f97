// Generalised advantage estimation in float32, bit-equal to ppo_fast/reference/advantage.py (gae).
//   delta_t = (r_t + gamma V(s_{t+1})) - V(s_t),  or r_t - V(s_t) where terminated_t
//   A_t = delta_t + gamma lambda A_{t+1},         or delta_t where done_t;     A_T = 0
//   R_t = A_t + V(s_t)
// All arrays are (T, N), row-major. gamma and gamma * lambda come rounded to float32.
// Source: Schulman et al., arXiv:1506.02438, section 3; time limits: Pardo et al., arXiv:1712.00378.
#pragma once

#include <cstddef>

namespace ppo_fast {

inline void gae(const float* rewards, const float* values, const float* next_values, const bool* terminated,
                const bool* done, std::size_t num_steps, std::size_t num_envs, float gamma, float gamma_lambda,
                float* __restrict advantages, float* __restrict returns) {
    for (std::size_t t = num_steps; t-- > 0;) {
        const bool last = t + 1 == num_steps;
        for (std::size_t i = t * num_envs; i < (t + 1) * num_envs; ++i) {
            const float advantage_tp1 = last ? 0.0F : advantages[i + num_envs];
            // Both sides are computed and one is selected, so that the loop vectorises; a sum is never masked by * 0.
            const float cut = rewards[i] - values[i];
            const float bootstrapped = (rewards[i] + gamma * next_values[i]) - values[i];
            const float delta = terminated[i] ? cut : bootstrapped;
            const float summed = delta + gamma_lambda * advantage_tp1;
            const float advantage = done[i] ? delta : summed;
            advantages[i] = advantage;
            returns[i] = advantage + values[i];
        }
    }
}

}  // namespace ppo_fast
