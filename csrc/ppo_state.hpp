// What the native learner works on, as plain data: laid out by ppo_learner.hpp, computed on by the SIMD levels.
//
// Packed layout of parameters, gradient and Adam's moments alike: per layer the weights transposed, (in, out_pad), then the
// bias, (out_pad); then log sigma, (act_pad). Widths are padded to kPad floats; padding is 0 and stays 0.
// A minibatch is worked through in slices of kSlice rows, so that a slice stays in the cache.
// Axes: B rows of the batch, M rows of a minibatch, S rows of a slice, D observation, A action, P parameters.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ppo_fast {

constexpr std::size_t kPad = 16;  // the widest vector, so that the layout is the same on every level

constexpr std::size_t kSlice = 128;

constexpr std::size_t padded(std::size_t width) { return (width + kPad - 1) / kPad * kPad; }

enum class Activation { tanh, relu, elu, silu };

struct Layer {
    std::size_t in, out, out_pad;
    std::size_t weight, bias;  // where they begin in the packed layout
    float* output;             // (S, out_pad) after the activation
    float* slope;              // (S, out_pad) derivative of the activation; SiLU only, the others' follows from the output
    float* delta;              // (S, out_pad) derivative of the loss by the affine output
    float* backward;           // (out_pad, padded(in)) the weights as the models have them; null in the first layer
};

struct Net {
    Layer* layers;
    std::size_t num_layers;
};

struct Hyper {  // ppo_fast/learners/ppo_step.py, LossConfig
    float clip_coef, ent_coef, vf_coef, max_grad_norm, adam_eps;
    bool clip_vloss, norm_adv_minibatch;
};

struct Rows {  // the staged batch; only rows with valid > 0 are read
    const float* norm_obs;    // (B, D)
    const float* actions;     // (B, A)
    const float* log_probs;   // (B,)
    const float* advantages;  // (B,)
    const float* returns;     // (B,)
    const float* values;      // (B,)
    const float* valid;       // (B,)
};

struct State {
    Net actor, critic;
    std::size_t obs_dim, act_dim, act_pad, packed_size, log_std;
    Activation activation;
    Hyper hyper;
    float *params, *grad, *exp_avg, *exp_avg_sq;  // packed
    std::int64_t adam_steps;
    // the valid rows of one minibatch, in order
    std::int64_t* index;  // (M,) where they are in the batch
    float* advantages;    // (M,)
    // one slice of them
    float *obs, *actions;                                // (S, D), (S, act_pad)
    float *log_probs, *returns, *values, *ratio, *slope;  // (S,)
    float *inv_std, *log_std_grad;                                    // (act_pad,)
};

// Sums over valid rows, but kGradNorm and kSteps over minibatches: ppo_step.py, STATS.
enum Stat { kPolicyLoss, kValueLoss, kEntropy, kApproxKl, kClipFrac, kRows, kGradNorm, kSteps, kNumStats };

// One SIMD level.
struct Level {
    const char* name;
    // Make what follows from the parameters: to be called after they have been set from outside.
    void (*refresh)(State&);
    // Gradient over the valid ones of the n rows that index names, into state.grad; adds to stats; returns their number.
    std::size_t (*gradient)(State&, const Rows&, const std::int64_t* index, std::size_t n, double* stats);
    // Clip state.grad and make one Adam step; returns the norm before clipping.
    double (*step)(State&, double learning_rate);
    // gradient() and step() for each minibatch of M rows of order, (B,); one without a valid row makes no step.
    void (*epoch)(State&, const Rows&, const std::int64_t* order, std::size_t batch, std::size_t minibatch,
                  double learning_rate, double* stats);
};

#if defined(PPO_FAST_X86)
extern const Level kLevelAvx512, kLevelAvx2;
#endif
extern const Level kLevelBaseline;

}  // namespace ppo_fast
