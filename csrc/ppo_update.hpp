// One PPO minibatch: gather, forward, loss, backward, clipping and Adam, equal to ppo_fast/learners/ppo_step.py
// (minibatch_step) up to rounding.
//   r = pi(a|s) / pi_old(a|s)
//   L = mean(max(-A r, -A clip(r, 1 +- eps))) + vf_coef mean(1/2 (V - R)^2) - ent_coef mean(H)
// Rows that do not count are left out when a minibatch is gathered, so nothing in them is read.
// Every thread of a team runs these functions and does its share of each phase; none of the shares shows in the numbers.
#pragma once

#include "adam.hpp"
#include "mlp.hpp"
#include "policy.hpp"
#include "ppo_loss.hpp"
#include "ppo_state.hpp"
#include "simd.hpp"

namespace ppo_fast {
namespace {

// Find the rows that count, and normalise their advantages over all of them.
inline void prepare(State& s, const Rows& rows, const std::int64_t* index, std::size_t n, std::size_t at,
                    std::size_t* count) {
    std::size_t found = 0;
    for (std::size_t i = 0; i < n; ++i) {
        if (rows.valid[index[i]] > 0.0F) {
            s.index[at + found] = index[i];
            s.advantages[at + found] = rows.advantages[index[i]];
            ++found;
        }
    }
    *count = found;
    if (s.hyper.norm_adv_minibatch && found > 0) {
        normalise_advantages(s.advantages + at, found);
    }
}

inline void gather(const Model& model, const Net& net, const Workspace& w, const Rows& rows, const std::int64_t* index,
                   std::size_t n) {
    for (std::size_t m = 0; m < n; ++m) {
        const auto row = static_cast<std::size_t>(index[m]);
        std::memcpy(w.obs + m * model.obs_dim, rows.norm_obs + row * model.obs_dim, model.obs_dim * sizeof(float));
        if (net.policy) {
            std::memcpy(w.actions + m * model.act_pad, rows.actions + row * model.act_dim, model.act_dim * sizeof(float));
            w.log_probs[m] = rows.log_probs[row];
        }
        if (net.value) {
            w.returns[m] = rows.returns[row];
            w.values[m] = rows.values[row];
        }
    }
}

// The gradient of one net over one lane of the minibatch's count rows that begin at s.index + at.
inline void lane_gradient(State& s, const Rows& rows, Task& task, std::size_t lanes, std::size_t at, std::size_t count) {
    const Model& model = s.model;
    const Net& net = model.nets[task.net];
    const Workspace& w = task.work;
    const Share slices = share((count + kSlice - 1) / kSlice, task.lane, lanes);
    if (slices.begin == slices.end) {
        std::memset(task.grad, 0, (net.end - net.begin) * sizeof(float));
        return;
    }
    const bool gaussian = net.policy && model.num_actions == 0;
    const Sigma sigma = gaussian ? prepare_sigma(model, w) : Sigma{};
    if (gaussian) {
        std::memset(w.log_std_grad, 0, model.act_pad * sizeof(float));
    }
    for (std::size_t slice = slices.begin; slice < slices.end; ++slice) {
        const std::size_t start = slice * kSlice;
        const std::size_t size = count - start < kSlice ? count - start : kSlice;
        gather(model, net, w, rows, s.index + at + start, size);
        forward(model, net, w, size);
        const LossSlice loss{s, net, w, s.advantages + at + start, size, 1.0F / static_cast<float>(count), task.stats};
        if (gaussian) {
            gaussian_loss(loss, sigma);
        } else if (net.policy) {
            categorical_loss(loss);
        }
        if (net.value) {
            value_loss(loss);
        }
        backward(model, net, w, task.grad, size, slice == slices.begin);
    }
    if (gaussian) {  // the padding of the gradient stays 0; of the entropy all is in the lane that has the first rows
        float* grad = task.grad + (model.log_std - net.begin);
        for (std::size_t i = 0; i < model.act_dim; ++i) {
            grad[i] = w.log_std_grad[i] - (slices.begin == 0 ? s.hyper.ent_coef : 0.0F);
        }
    }
}

inline void gradients(State& s, const Rows& rows, std::size_t lanes, std::size_t at, std::size_t count, const Me& me) {
    const Share mine = share(lanes * s.model.num_nets, me.thread, me.num_threads);
    for (std::size_t task = mine.begin; task < mine.end; ++task) {
        lane_gradient(s, rows, s.tasks[task], lanes, at, count);
    }
}

// Add up the lanes in order.
inline void reduce(State& s, std::size_t lanes, const Me& me) {
    const Share mine = my_units(s, lanes, me);
    for (std::size_t u = mine.begin; u < mine.end && lanes > 1; ++u) {
        const Unit& unit = s.units[u];
        const std::size_t which = unit.offset < s.model.nets[0].end ? 0 : 1;
        const std::size_t begin = unit.offset - s.model.nets[which].begin;
        for (std::size_t lane = 1; lane < lanes; ++lane) {
            const float* from = s.tasks[lane * s.model.num_nets + which].grad + begin;
            float* to = s.grad + unit.offset;
            for (std::size_t i = 0; i < unit.size; i += kLanes) {
                store(to + i, load(to + i) + load(from + i));
            }
        }
    }
}

void refresh(const Model& model) {
    for (std::size_t n = 0; n < model.num_nets; ++n) {
        for (std::size_t l = 1; l < model.nets[n].num_layers; ++l) {
            transpose(model, model.nets[n].layers[l], 0, model.nets[n].layers[l].in);
        }
    }
}

void gradient(State& s, const Rows& rows, const std::int64_t* index, std::size_t n, const Me& me) {
    if (me.thread == 0) {
        prepare(s, rows, index, n, 0, s.count);
    }
    meet(me);
    if (s.count[0] == 0) {
        if (me.thread == 0) {
            std::memset(s.grad, 0, s.model.packed_size * sizeof(float));
        }
        return;
    }
    const std::size_t lanes = lanes_of(n);
    gradients(s, rows, lanes, 0, s.count[0], me);
    meet(me);
    reduce(s, lanes, me);
}

double step(State& s, double learning_rate, const Me& me) {
    const std::int64_t adam_step = s.adam_steps + 1;
    measure(s, 0, adam_step, me);
    meet(me);
    const float norm = descend(s, learning_rate, 0, adam_step, me);
    meet(me);
    if (me.thread == 0) {
        s.adam_steps = adam_step;
    }
    return static_cast<double>(norm);
}

void epoch(State& s, const Rows& rows, const std::int64_t* order, std::size_t batch, std::size_t minibatch,
           double learning_rate, const Me& me) {
    const std::size_t num_minibatches = batch / minibatch, lanes = lanes_of(minibatch);
    for (std::size_t i = me.thread; i < num_minibatches; i += me.num_threads) {
        prepare(s, rows, order + i * minibatch, minibatch, i * minibatch, s.count + i);
    }
    meet(me);
    std::int64_t adam_step = s.adam_steps;
    double norms = 0.0;
    for (std::size_t i = 0; i < num_minibatches; ++i) {
        if (s.count[i] == 0) {
            continue;
        }
        ++adam_step;
        gradients(s, rows, lanes, i * minibatch, s.count[i], me);
        if (!apart(s, lanes, me)) {
            meet(me);
            reduce(s, lanes, me);
        }
        measure(s, lanes, adam_step, me);
        meet(me);
        norms += static_cast<double>(descend(s, learning_rate, lanes, adam_step, me));
        if (!apart(s, lanes, me)) {
            meet(me);
        }
    }
    meet(me);
    if (me.thread == 0) {
        s.tasks[0].stats[kGradNorm] += norms;
        s.tasks[0].stats[kSteps] += static_cast<double>(adam_step - s.adam_steps);
        s.adam_steps = adam_step;
    }
}

}  // namespace
}  // namespace ppo_fast
