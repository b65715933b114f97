// How the flat vector of ppo_fast/models.py (ActorCritic.shapes) lies in the packed layout of ppo_state.hpp, and the memory of both.
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

struct Networks {  // what the command line can configure of the models
    std::size_t obs_dim, act_dim, num_actions;
    std::vector<std::size_t> hidden_sizes;
    Activation activation;
    bool shared_trunk;
};

// One block of zeros, given out in parts of whole cache lines: measured by a first pass, placed by a second.
class Memory {
   public:
    void take(float*& part, std::size_t size) {
        part = memory_ ? memory_.get() + used_ : nullptr;
        used_ += padded(size);
    }

    template <typename Place>
    void fill(Place place) {
        place();
        size_ = used_;
        used_ = 0;
        memory_.reset(static_cast<float*>(::operator new(size_ * sizeof(float), kAlignment)));
        clear();
        place();
    }

    void clear() { std::fill_n(memory_.get(), size_, 0.0F); }

   private:
    static constexpr std::align_val_t kAlignment{64};

    struct Free {
        void operator()(float* block) const { ::operator delete(block, kAlignment); }
    };

    std::size_t used_ = 0, size_ = 0;
    std::unique_ptr<float, Free> memory_;
};

class Layout {
   public:
    explicit Layout(const Networks& networks) {
        const std::size_t head = networks.num_actions > 0 ? networks.num_actions : networks.act_dim;
        model.obs_dim = networks.obs_dim;
        model.act_dim = networks.act_dim;
        model.num_actions = networks.num_actions;
        model.head_dim = head;
        model.act_pad = padded(networks.act_dim);
        model.activation = networks.activation;
        model.num_nets = networks.shared_trunk ? 1 : 2;
        lay_out(0, networks.hidden_sizes, networks.shared_trunk ? head + 1 : head);
        if (!networks.shared_trunk) {
            lay_out(1, networks.hidden_sizes, 1);
        }
        model.nets[0].policy = true;
        model.nets[model.num_nets - 1].value = true;
        model.nets[0].value_column = networks.shared_trunk ? head : 0;
        for (std::size_t n = 0; n < model.num_nets; ++n) {
            model.nets[n].layers = layers_[n].data();
            for (const Layer& layer : layers_[n]) {
                num_params += (layer.in + 1) * layer.out;
            }
        }
        num_params += has_log_std() ? model.act_dim : 0;
    }
    Layout(const Layout&) = delete;
    Layout& operator=(const Layout&) = delete;

    bool has_log_std() const { return model.num_actions == 0; }

    void place_parameters(Memory& block) {
        block.take(model.params, model.packed_size);
        block.take(model.backward, backward_size_);
    }

    void place_workspace(Memory& block, const Net& net, Workspace& w, std::size_t rows) const {
        for (std::size_t l = 0; l < net.num_layers; ++l) {
            const bool silu = model.activation == Activation::silu && l + 1 < net.num_layers;
            block.take(w.output[l], rows * net.layers[l].out_pad);
            block.take(w.slope[l], silu ? rows * net.layers[l].out_pad : 0);
            block.take(w.delta[l], rows * net.layers[l].out_pad);
        }
        block.take(w.obs, rows * model.obs_dim);
        block.take(w.actions, rows * model.act_pad);
        for (float** column : {&w.log_probs, &w.returns, &w.values, &w.log_ratio, &w.ratio, &w.by_log_prob}) {
            block.take(*column, rows);
        }
        block.take(w.probs, rows * padded(model.num_actions));
        block.take(w.inv_std, model.act_pad);
        block.take(w.log_std_grad, model.act_pad);
    }

    void pack(const float* flat, float* packed) const {
        each_parameter([=](std::size_t from, std::size_t to) { packed[to] = flat[from]; });
    }

    void unpack(const float* packed, float* flat) const {
        each_parameter([=](std::size_t to, std::size_t from) { flat[to] = packed[from]; });
    }

    // Pieces of some 4096 floats.
    std::vector<Unit> units() const {
        std::vector<Unit> out;
        for (std::size_t n = 0; n < model.num_nets; ++n) {
            for (std::size_t l = 0; l < layers_[n].size(); ++l) {
                const Layer& layer = layers_[n][l];
                const std::size_t step = std::max<std::size_t>(4, 4096 / layer.out_pad / 4 * 4);
                for (std::size_t k0 = 0; k0 < layer.in; k0 += step) {
                    const std::size_t k1 = std::min(k0 + step, layer.in);
                    const std::size_t end = k1 == layer.in ? layer.bias + layer.out_pad : layer.weight + k1 * layer.out_pad;
                    const std::size_t offset = layer.weight + k0 * layer.out_pad;
                    out.push_back({offset, end - offset, l > 0 ? &layer : nullptr, k0, k1, {}});
                }
            }
            if (n == 0 && has_log_std()) {
                out.push_back({model.log_std, model.act_pad, nullptr, 0, 0, {}});
            }
        }
        return out;
    }

    Model model{};
    std::size_t num_params = 0;

   private:
    void lay_out(std::size_t net, const std::vector<std::size_t>& hidden_sizes, std::size_t out_dim) {
        std::vector<Layer>& layers = layers_[net];
        model.nets[net].begin = model.packed_size;
        std::size_t in = model.obs_dim, at = model.packed_size;
        for (std::size_t l = 0; l <= hidden_sizes.size(); ++l) {
            const std::size_t out = l < hidden_sizes.size() ? hidden_sizes[l] : out_dim;
            const Layer layer{in, out, padded(out), at, at + in * padded(out), backward_size_};
            at = layer.bias + layer.out_pad;
            backward_size_ += l > 0 ? layer.out_pad * padded(in) : 0;
            in = out;
            layers.push_back(layer);
        }
        if (net == 0 && has_log_std()) {
            model.log_std = at;
            at += model.act_pad;
        }
        model.nets[net].num_layers = layers.size();
        model.nets[net].end = model.packed_size = at;
    }

    // Columns [first, first + width) of a layer, in the order of the models: weight (width, in), bias (width,).
    template <typename Move>
    static void affine(const Layer& layer, std::size_t first, std::size_t width, std::size_t& flat, Move move) {
        for (std::size_t k0 = 0; k0 < layer.in; k0 += kPad) {  // in blocks, for the cache's sake
            const std::size_t k1 = std::min(k0 + kPad, layer.in);
            for (std::size_t c = 0; c < width; ++c) {
                for (std::size_t k = k0; k < k1; ++k) {
                    move(flat + c * layer.in + k, layer.weight + k * layer.out_pad + first + c);
                }
            }
        }
        flat += layer.in * width;
        for (std::size_t c = 0; c < width; ++c) {
            move(flat + c, layer.bias + first + c);
        }
        flat += width;
    }

    template <typename Move>
    void each_parameter(Move move) const {
        std::size_t flat = 0;
        const std::vector<Layer>& policy = layers_[0];
        const std::vector<Layer>& value = layers_[model.num_nets - 1];
        for (std::size_t l = 0; l + 1 < policy.size(); ++l) {
            affine(policy[l], 0, policy[l].out, flat, move);
        }
        affine(policy.back(), 0, model.head_dim, flat, move);
        for (std::size_t i = 0; has_log_std() && i < model.act_dim; ++i) {
            move(flat++, model.log_std + i);
        }
        for (std::size_t l = 0; model.num_nets == 2 && l + 1 < value.size(); ++l) {
            affine(value[l], 0, value[l].out, flat, move);
        }
        affine(value.back(), model.nets[model.num_nets - 1].value_column, 1, flat, move);
    }

    std::vector<Layer> layers_[2];
    std::size_t backward_size_ = 0;
};

}  // namespace ppo_fast
