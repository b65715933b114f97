// What the native learner and actor work on, as plain data: laid out by layout.hpp, ppo_learner.hpp and ppo_actor.hpp, computed on
// by the SIMD levels.
//
// Separate networks are two nets, a shared trunk is one net whose last layer holds the columns of both heads.
// Packed layout of parameters, gradient and Adam's moments alike, net after net: per layer the weights transposed,
// (in, out_pad), then the bias, (out_pad); at the end of the policy's net log sigma, (act_pad). Widths are padded to kPad floats;
// padding is 0 and stays 0.
// A minibatch is worked through in slices of kSlice rows, so that a slice stays in the cache.
// Axes: B rows of the batch, M rows of a minibatch, S rows of a slice, D observation, A action, H head, P parameters.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ppo_fast {

constexpr std::size_t kPad = 16;  // the widest vector, so that the layout is the same on every level

constexpr std::size_t kSlice = 128;

// Gradients are summed in lanes of rows that depend on the minibatch's size alone, and the lanes in order: so neither the number
// of threads nor which of them did what shows in a bit.
constexpr std::size_t kLaneRows = 256, kMaxLanes = 8;

constexpr std::size_t lanes_of(std::size_t rows) {
    return rows / kLaneRows < 1 ? 1 : rows / kLaneRows > kMaxLanes ? kMaxLanes : rows / kLaneRows;
}

constexpr std::size_t padded(std::size_t width) { return (width + kPad - 1) / kPad * kPad; }

enum class Activation { tanh, relu, elu, silu };

struct Layer {
    std::size_t in, out, out_pad;
    std::size_t weight, bias;  // where they begin in the packed layout
    std::size_t backward;      // where (out_pad, padded(in)), the weights as the models have them, begins in Model::backward
};

struct Net {
    Layer* layers;
    std::size_t num_layers;
    std::size_t begin, end;       // its part of the packed layout
    bool policy, value;           // which heads it has
    std::size_t value_column;     // of the last layer's output
};

struct Model {
    Net nets[2];
    std::size_t num_nets;
    std::size_t obs_dim, act_dim, num_actions, head_dim, act_pad;  // num_actions 0: Gaussian
    Activation activation;
    std::size_t packed_size, log_std;
    float *params, *backward;  // backward follows from params
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

// What one slice of rows needs on its way through one net.
struct Workspace {
    float *output[16], *slope[16], *delta[16];  // per layer: (S, out_pad); slope for SiLU only
    float *obs, *actions;                       // (S, D), (S, act_pad)
    float *log_probs, *returns, *values;        // (S,)
    float *log_ratio, *ratio, *by_log_prob;     // (S,)
    float* probs;                               // (S, head_pad), categorical only
    float *inv_std, *log_std_grad;              // (act_pad,)
};

constexpr std::size_t kMaxLayers = sizeof(Workspace::output) / sizeof(float*);

// Sums over valid rows, but kGradNorm and kSteps over minibatches: ppo_step.py, STATS.
enum Stat { kPolicyLoss, kValueLoss, kEntropy, kApproxKl, kClipFrac, kRows, kGradNorm, kSteps, kNumStats };

// The gradient of one net over one lane of rows.
struct Task {
    std::size_t net, lane;
    Workspace work;
    float* grad;              // its net's part of the packed layout
    double stats[kNumStats];  // summed over the minibatches of an epoch
};

// A piece of the packed layout that one thread clips and steps: rows [k0, k1) of a layer's weights, or with no layer a vector.
struct Unit {
    std::size_t offset, size;
    const Layer* layer;
    std::size_t k0, k1;
    double squares[2];  // of its gradient, by the parity of the step
};

struct State {
    Model model;
    Hyper hyper;
    float *grad, *exp_avg, *exp_avg_sq;  // packed
    std::int64_t adam_steps;
    Task* tasks;
    std::size_t num_tasks, num_lanes;
    Unit* units;
    std::size_t num_units;
    // the valid rows of every minibatch of an epoch, in order
    std::int64_t* index;   // (B,) where they are in the batch
    float* advantages;     // (B,) normalised, if they are to be
    std::size_t* count;    // (B / M,) how many of each minibatch
};

// The threads of one update; every one runs the same code (team.cpp).
class Team;
void barrier(Team& team);

struct Me {  // one of them
    Team* team;
    std::size_t thread, num_threads;
};

// A rollout's arrays, where the actor reads and writes; ppo_fast/batch.py, Rollout.
struct Buffers {
    float *obs, *norm_obs;                  // (T+1, N, D)
    float *actions, *log_probs;             // (T, N, A), (T, N)
    float *values, *rewards;                // (T+1, N), (T, N)
    bool *terminated, *truncated, *valid;   // (T, N)
};

struct Acting {
    Model model;
    Workspace work[2];
    const float *mean, *inv_std;                // (D,) of the normaliser; null: switched off
    float clip_obs;
    const double *action_low, *half_range;      // (A,)
    const bool* bounded;                        // (A,)
    Buffers rollout;
    std::size_t num_envs;
};

// One SIMD level.
struct Level {
    const char* name;
    // Make what follows from the parameters: to be called after they have been set from outside.
    void (*refresh)(const Model&);
    // Gradient over the valid ones of the n rows that index names, into state.grad; their number goes to state.count[0].
    void (*gradient)(State&, const Rows&, const std::int64_t* index, std::size_t n, const Me&);
    // Clip state.grad and make one Adam step; returns the norm before clipping.
    double (*step)(State&, double learning_rate, const Me&);
    // gradient and step for each minibatch of M rows of order, (B,); one without a valid row makes no step.
    void (*epoch)(State&, const Rows&, const std::int64_t* order, std::size_t batch, std::size_t minibatch,
                  double learning_rate, const Me&);
    // Act on rows t[i], env[i] of the rollout, i < n <= kSlice, whose raw observations are stored. noise: (n, A) standard normals
    // or uniforms. Writes norm_obs and values and, unless noise is null, actions, log_probs and env_actions (n, A).
    void (*act)(Acting&, const std::int64_t* t, const std::int32_t* env, std::size_t n, const double* noise,
                double* env_actions);
    // FLOP/s of one core that does nothing but multiply and add, in registers; takes some milliseconds.
    double (*peak)();
};

#if defined(PPO_FAST_X86)
extern const Level kLevelAvx512, kLevelAvx2;
#endif
extern const Level kLevelBaseline;

}  // namespace ppo_fast
