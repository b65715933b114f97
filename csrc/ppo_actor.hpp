// The native actor: takes the rows that come back from the simulator in whatever order, stores them at their place in the
// rollout, and answers those that have steps left. Nothing is allocated after construction.
//
// t(env) is how many actions of this rollout an environment has been given; a row that comes back is its transition t - 1 and
// its observation t. Noise is keyed by (seed, global environment index, step), so that no order of arrival shows in it.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "layout.hpp"
#include "ppo_state.hpp"
#include "rng.hpp"

namespace ppo_fast {

struct Scaling {  // per component of an action
    std::vector<double> low, half_range;
    std::vector<bool> bounded;
};

struct Arrived {  // n rows from the simulator
    const std::int32_t* env;
    const float* rewards;
    const bool *terminated, *truncated, *valid;
};

struct Answers {  // for at most N environments
    std::int32_t* env;
    double* actions;  // in the environment's units
};

class PpoActor {
   public:
    PpoActor(const Networks& networks, std::size_t num_envs, std::size_t num_steps, std::uint64_t seed,
             std::size_t first_env, bool normalize, float clip_obs, const Scaling& scaling, const Level& level)
        : level_(&level), layout_(networks), num_envs_(num_envs), num_steps_(num_steps), seed_(seed),
          first_env_(first_env), low_(scaling.low), half_range_(scaling.half_range),
          bounded_(new bool[scaling.bounded.size()]) {
        memory_.fill([this] { place(); });
        acting_.model = layout_.model;
        acting_.mean = normalize ? mean_ : nullptr;
        acting_.inv_std = inv_std_;
        acting_.clip_obs = clip_obs;
        acting_.action_low = low_.data();
        acting_.half_range = half_range_.data();
        std::copy(scaling.bounded.begin(), scaling.bounded.end(), bounded_.get());
        acting_.bounded = bounded_.get();
        acting_.num_envs = num_envs;
        steps_.resize(num_envs);
        in_flight_.resize(num_envs);
        for (std::vector<std::int64_t>* vector : {&t_, &noise_env_, &noise_step_}) {
            vector->resize(kSlice);
        }
        env_.resize(kSlice);
        noise_.resize(kSlice * networks.act_dim);
    }

    const Level& level() const { return *level_; }
    std::size_t num_params() const { return layout_.num_params; }
    std::size_t num_envs() const { return num_envs_; }
    std::size_t num_steps() const { return num_steps_; }
    std::size_t obs_dim() const { return layout_.model.obs_dim; }
    std::size_t act_dim() const { return layout_.model.act_dim; }
    std::size_t remaining() const { return remaining_; }    // rows of this rollout that have not come back
    std::int64_t failed_env() const { return failed_env_; }  // whose action is not finite, or -1

    void load(const float* flat, const float* mean, const float* inv_std) {
        memory_.clear();  // a NaN of an earlier rollout must not stay in the padding
        layout_.pack(flat, acting_.model.params);
        level_->refresh(acting_.model);
        std::copy_n(mean, obs_dim(), mean_);
        std::copy_n(inv_std, obs_dim(), inv_std_);
    }

    // Begin a rollout into these arrays, of which row 0 of obs is written; answers every environment.
    // Returns the number of answers; it stops at an action that is not finite.
    std::size_t begin(const Buffers& rollout, std::uint64_t first_step, const Answers& out) {
        acting_.rollout = rollout;
        first_step_ = first_step;
        remaining_ = num_envs_ * num_steps_;
        failed_env_ = -1;
        std::fill(steps_.begin(), steps_.end(), 0);
        std::fill(in_flight_.begin(), in_flight_.end(), 0);
        std::size_t answered = 0;
        for (std::size_t start = 0; start < num_envs_ && failed_env_ < 0; start += kSlice) {
            const std::size_t n = std::min(kSlice, num_envs_ - start);
            for (std::size_t i = 0; i < n; ++i) {
                env_[i] = static_cast<std::int32_t>(start + i);
            }
            answered = answer(n, out, answered);
        }
        return answered;
    }

    // Whether each of these environments is in flight, once; then they no longer are.
    bool claim(const std::int32_t* env, std::size_t n) {
        std::size_t claimed = 0;
        while (claimed < n && env[claimed] >= 0 && static_cast<std::size_t>(env[claimed]) < num_envs_ &&
               in_flight_[static_cast<std::size_t>(env[claimed])] != 0) {
            in_flight_[static_cast<std::size_t>(env[claimed++])] = 0;
        }
        for (std::size_t i = 0; claimed < n && i < claimed; ++i) {
            in_flight_[static_cast<std::size_t>(env[i])] = 1;
        }
        return claimed == n;
    }

    // Store n claimed rows, and answer those whose environment has steps left.
    template <typename Real>
    std::size_t receive(const Arrived& rows, const Real* obs, std::size_t n, const Answers& out) {
        const Buffers& to = acting_.rollout;
        const std::size_t dim = obs_dim();
        std::size_t answered = 0;
        finished_ = 0;
        for (std::size_t start = 0; start < n && failed_env_ < 0; start += kSlice) {
            const std::size_t end = std::min(start + kSlice, n);
            std::size_t alive = 0;
            for (std::size_t i = start; i < end; ++i) {
                const auto env = static_cast<std::size_t>(rows.env[i]);
                const auto t = static_cast<std::size_t>(steps_[env]);
                const std::size_t row = (t - 1) * num_envs_ + env;
                to.rewards[row] = rows.valid[i] ? rows.rewards[i] : 0.0F;
                to.terminated[row] = rows.terminated[i];
                to.truncated[row] = rows.truncated[i];
                to.valid[row] = rows.valid[i];
                float* raw = to.obs + (row + num_envs_) * dim;
                for (std::size_t d = 0; d < dim; ++d) {
                    raw[d] = static_cast<float>(obs[i * dim + d]);
                }
                if (t < num_steps_) {
                    env_[alive++] = rows.env[i];
                } else {
                    finish(rows.env[i]);
                }
            }
            remaining_ -= end - start;
            answered = answer(alive, out, answered);
        }
        settle();
        return answered;
    }

   private:
    // Act for the n environments in env_, and append the answers; stops before the first action that is not finite.
    std::size_t answer(std::size_t n, const Answers& out, std::size_t answered) {
        const std::size_t dim = act_dim();
        for (std::size_t i = 0; i < n; ++i) {
            const auto env = static_cast<std::size_t>(env_[i]);
            t_[i] = steps_[env];
            noise_env_[i] = static_cast<std::int64_t>(first_env_ + env);
            noise_step_[i] = static_cast<std::int64_t>(first_step_) + t_[i];
        }
        if (layout_.has_log_std()) {
            normals(noise_env_.data(), noise_step_.data(), n, dim, seed_, noise_.data());
        } else {
            uniforms(noise_env_.data(), noise_step_.data(), n, dim, seed_, noise_.data());
        }
        double* actions = out.actions + answered * dim;
        level_->act(acting_, t_.data(), env_.data(), n, noise_.data(), actions);
        for (std::size_t i = 0; i < n; ++i) {
            const float* sampled = acting_.rollout.actions +
                                   (static_cast<std::size_t>(t_[i]) * num_envs_ + static_cast<std::size_t>(env_[i])) * dim;
            for (std::size_t j = 0; j < dim; ++j) {
                if (!std::isfinite(sampled[j])) {
                    failed_env_ = env_[i];
                    return answered;
                }
            }
            out.env[answered++] = env_[i];
            in_flight_[static_cast<std::size_t>(env_[i])] = 1;
            ++steps_[static_cast<std::size_t>(env_[i])];
        }
        return answered;
    }

    // The value of a rollout's last observation closes its last transition.
    void finish(std::int32_t env) {
        last_[finished_] = env;
        last_t_[finished_] = static_cast<std::int64_t>(num_steps_);
        if (++finished_ == kSlice) {
            settle();
        }
    }

    void settle() {
        if (finished_ > 0) {
            level_->act(acting_, last_t_, last_, finished_, nullptr, nullptr);
            finished_ = 0;
        }
    }

    void place() {
        layout_.place_parameters(memory_);
        for (std::size_t n = 0; n < layout_.model.num_nets; ++n) {
            layout_.place_workspace(memory_, layout_.model.nets[n], acting_.work[n], kSlice);
        }
        acting_.work[1].obs = acting_.work[0].obs;  // both networks see the same rows
        memory_.take(mean_, layout_.model.obs_dim);
        memory_.take(inv_std_, layout_.model.obs_dim);
    }

    const Level* level_;
    Layout layout_;
    std::size_t num_envs_, num_steps_;
    std::uint64_t seed_, first_step_ = 0;
    std::size_t first_env_, remaining_ = 0, finished_ = 0;
    std::int64_t failed_env_ = -1;
    std::vector<double> low_, half_range_;
    std::unique_ptr<bool[]> bounded_;
    Acting acting_{};
    float *mean_ = nullptr, *inv_std_ = nullptr;
    std::vector<std::int64_t> steps_, t_, noise_env_, noise_step_;
    std::vector<std::uint8_t> in_flight_;
    std::vector<std::int32_t> env_;
    std::vector<double> noise_;
    std::int32_t last_[kSlice];
    std::int64_t last_t_[kSlice];
    Memory memory_;
};

}  // namespace ppo_fast
