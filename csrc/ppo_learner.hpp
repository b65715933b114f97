// The native learner: owns the memory that a SIMD level computes on, and translates between the flat vector of
// ppo_fast/models.py (ActorCritic.shapes) and the packed layout. All memory is allocated at construction.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "ppo_state.hpp"

namespace ppo_fast {

// The levels that this processor runs, best first.
inline std::vector<const Level*> levels() {
    std::vector<const Level*> out;
#if defined(PPO_FAST_X86)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("fma")) {
        out.push_back(&kLevelAvx512);
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        out.push_back(&kLevelAvx2);
    }
#endif
    out.push_back(&kLevelBaseline);
    return out;
}

// The level that `asked` names; if empty the one that PPO_FAST_SIMD names; if that is unset or empty the best.
inline const Level& choose_level(const std::string& asked) {
    const char* variable = std::getenv("PPO_FAST_SIMD");
    const std::string name = asked.empty() && variable != nullptr ? variable : asked;
    const std::vector<const Level*> all = levels();
    if (name.empty()) {
        return *all.front();
    }
    std::string known;
    for (const Level* level : all) {
        if (name == level->name) {
            return *level;
        }
        known += std::string(known.empty() ? "" : ", ") + level->name;
    }
    throw std::invalid_argument((asked.empty() ? "PPO_FAST_SIMD" : "simd") + std::string(" must be one of ") + known +
                                " (what this processor runs), got '" + name + "'");
}

class PpoLearner {
   public:
    PpoLearner(std::size_t obs_dim, std::size_t act_dim, const std::vector<std::size_t>& hidden_sizes,
               Activation activation, std::size_t max_rows, const Hyper& hyper, const Level& level)
        : level_(&level), max_rows_(max_rows) {
        state_.obs_dim = obs_dim;
        state_.act_dim = act_dim;
        state_.act_pad = padded(act_dim);
        state_.activation = activation;
        state_.hyper = hyper;
        std::size_t packed = 0;
        lay_out(actor_, hidden_sizes, act_dim, packed);
        state_.log_std = packed;
        packed += state_.act_pad;
        num_params_ += act_dim;
        lay_out(critic_, hidden_sizes, 1, packed);
        state_.actor = {actor_.data(), actor_.size()};
        state_.critic = {critic_.data(), critic_.size()};
        state_.packed_size = (packed + kFoldPad - 1) / kFoldPad * kFoldPad;
        allocate();
    }

    const Level& level() const { return *level_; }
    std::size_t num_params() const { return num_params_; }
    std::size_t max_rows() const { return max_rows_; }
    std::size_t obs_dim() const { return state_.obs_dim; }
    std::size_t act_dim() const { return state_.act_dim; }
    std::int64_t adam_steps() const { return state_.adam_steps; }

    void load(const float* flat, const float* exp_avg, const float* exp_avg_sq, std::int64_t adam_steps) {
        std::fill_n(memory_.get(), size_, 0.0F);  // a NaN of an earlier update must not stay in the padding
        pack(flat, state_.params);
        pack(exp_avg, state_.exp_avg);
        pack(exp_avg_sq, state_.exp_avg_sq);
        state_.adam_steps = adam_steps;
        level_->refresh(state_);
    }

    void save(float* flat, float* exp_avg, float* exp_avg_sq) const {
        unpack(state_.params, flat);
        unpack(state_.exp_avg, exp_avg);
        unpack(state_.exp_avg_sq, exp_avg_sq);
    }

    std::size_t gradient(const Rows& rows, const std::int64_t* index, std::size_t n, float* out, double* stats) {
        const std::size_t count = level_->gradient(state_, rows, index, n, stats);
        unpack(state_.grad, out);
        return count;
    }

    double step(const float* gradient, double learning_rate) {
        pack(gradient, state_.grad);
        return level_->step(state_, learning_rate);
    }

    void epoch(const Rows& rows, const std::int64_t* order, std::size_t batch, std::size_t minibatch, double learning_rate,
               double* stats) {
        level_->epoch(state_, rows, order, batch, minibatch, learning_rate, stats);
    }

   private:
    static constexpr std::size_t kFoldPad = 64;  // kFold of simd.hpp

    void lay_out(std::vector<Layer>& net, const std::vector<std::size_t>& hidden_sizes, std::size_t out_dim,
                 std::size_t& packed) {
        std::size_t in = state_.obs_dim;
        for (std::size_t l = 0; l <= hidden_sizes.size(); ++l) {
            Layer layer{};
            layer.in = in;
            layer.out = l < hidden_sizes.size() ? hidden_sizes[l] : out_dim;
            layer.out_pad = padded(layer.out);
            layer.weight = packed;
            layer.bias = packed + layer.in * layer.out_pad;
            packed = layer.bias + layer.out_pad;
            num_params_ += (layer.in + 1) * layer.out;
            in = layer.out;
            net.push_back(layer);
        }
    }

    // Give every buffer its part of one block of zeros; called first to count, then to place.
    std::size_t place(float* block) {
        const std::size_t slice = std::min(max_rows_, kSlice);
        std::size_t used = 0;
        const auto take = [&](float*& buffer, std::size_t size) {
            buffer = block == nullptr ? nullptr : block + used;
            used += padded(size);
        };
        for (float** vector : {&state_.params, &state_.grad, &state_.exp_avg, &state_.exp_avg_sq}) {
            take(*vector, state_.packed_size);
        }
        for (std::vector<Layer>* net : {&actor_, &critic_}) {
            for (std::size_t l = 0; l < net->size(); ++l) {
                Layer& layer = (*net)[l];
                const bool silu = state_.activation == Activation::silu && l + 1 < net->size();
                take(layer.output, slice * layer.out_pad);
                take(layer.slope, silu ? slice * layer.out_pad : 0);
                take(layer.delta, slice * layer.out_pad);
                take(layer.backward, l > 0 ? layer.out_pad * padded(layer.in) : 0);
            }
        }
        take(state_.advantages, max_rows_);
        take(state_.obs, slice * state_.obs_dim);
        take(state_.actions, slice * state_.act_pad);
        for (float** column : {&state_.log_probs, &state_.returns, &state_.values, &state_.ratio, &state_.slope}) {
            take(*column, slice);
        }
        take(state_.inv_std, state_.act_pad);
        take(state_.log_std_grad, state_.act_pad);
        return used;
    }

    void allocate() {
        size_ = place(nullptr);
        constexpr std::align_val_t alignment{64};
        memory_.reset(static_cast<float*>(::operator new(size_ * sizeof(float), alignment)));
        std::fill_n(memory_.get(), size_, 0.0F);
        place(memory_.get());
        index_.resize(max_rows_);
        state_.index = index_.data();
    }

    template <typename Move>
    void each_parameter(Move move) const {
        std::size_t flat = 0;
        const auto affine = [&](const std::vector<Layer>& net) {
            for (const Layer& layer : net) {
                for (std::size_t k0 = 0; k0 < layer.in; k0 += kPad) {  // in blocks, for the cache's sake
                    const std::size_t k1 = std::min(k0 + kPad, layer.in);
                    for (std::size_t c = 0; c < layer.out; ++c) {
                        for (std::size_t k = k0; k < k1; ++k) {
                            move(flat + c * layer.in + k, layer.weight + k * layer.out_pad + c);
                        }
                    }
                }
                flat += layer.in * layer.out;
                for (std::size_t c = 0; c < layer.out; ++c) {
                    move(flat + c, layer.bias + c);
                }
                flat += layer.out;
            }
        };
        affine(actor_);
        for (std::size_t i = 0; i < state_.act_dim; ++i) {
            move(flat + i, state_.log_std + i);
        }
        flat += state_.act_dim;
        affine(critic_);
    }

    void pack(const float* flat, float* packed) const {
        each_parameter([=](std::size_t from, std::size_t to) { packed[to] = flat[from]; });
    }

    void unpack(const float* packed, float* flat) const {
        each_parameter([=](std::size_t to, std::size_t from) { flat[to] = packed[from]; });
    }

    struct Free {
        void operator()(float* block) const { ::operator delete(block, std::align_val_t{64}); }
    };

    const Level* level_;
    std::size_t max_rows_;
    std::size_t num_params_ = 0;
    State state_{};
    std::vector<Layer> actor_, critic_;
    std::vector<std::int64_t> index_;
    std::size_t size_ = 0;
    std::unique_ptr<float, Free> memory_;
};

}  // namespace ppo_fast
