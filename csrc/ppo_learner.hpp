// The native learner: owns the memory that a SIMD level computes on, and the threads that do it. All memory is allocated at
// construction, or by the first update.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "layout.hpp"
#include "ppo_state.hpp"
#include "shuffle.hpp"
#include "team.hpp"

namespace ppo_fast {

class PpoLearner {
   public:
    // max_batch: rows of an epoch; max_rows: rows of a minibatch.
    PpoLearner(const Networks& networks, std::size_t max_batch, std::size_t max_rows, const Hyper& hyper,
               std::size_t threads, const Level& level)
        : level_(&level), layout_(networks), max_batch_(max_batch), max_rows_(max_rows) {
        state_.hyper = hyper;
        state_.num_lanes = lanes_of(max_rows);
        state_.num_tasks = state_.num_lanes * layout_.model.num_nets;
        tasks_.resize(state_.num_tasks);
        memory_.fill([this] { place(); });
        state_.model = layout_.model;
        state_.tasks = tasks_.data();
        units_ = layout_.units();
        state_.units = units_.data();
        state_.num_units = units_.size();
        index_.resize(max_batch);
        state_.index = index_.data();
        counts_.resize(max_batch);
        state_.count = counts_.data();
        team_.reset(new Team(std::max<std::size_t>(1, std::min(threads, state_.num_tasks))));
    }

    const Level& level() const { return *level_; }
    std::size_t num_params() const { return layout_.num_params; }
    std::size_t max_batch() const { return max_batch_; }
    std::size_t max_rows() const { return max_rows_; }
    std::size_t obs_dim() const { return layout_.model.obs_dim; }
    std::size_t act_dim() const { return layout_.model.act_dim; }
    std::size_t threads() const { return team_->size(); }
    std::int64_t adam_steps() const { return state_.adam_steps; }

    void load(const float* flat, const float* exp_avg, const float* exp_avg_sq, std::int64_t adam_steps) {
        memory_.clear();  // a NaN of an earlier update must not stay in the padding
        layout_.pack(flat, state_.model.params);
        layout_.pack(exp_avg, state_.exp_avg);
        layout_.pack(exp_avg_sq, state_.exp_avg_sq);
        state_.adam_steps = adam_steps;
        level_->refresh(state_.model);
    }

    void save(float* flat, float* exp_avg, float* exp_avg_sq) const {
        layout_.unpack(state_.model.params, flat);
        layout_.unpack(state_.exp_avg, exp_avg);
        layout_.unpack(state_.exp_avg_sq, exp_avg_sq);
    }

    // Writes the gradient (P,), adds to stats, returns the number of valid rows.
    std::size_t gradient(const Rows& rows, const std::int64_t* index, std::size_t n, float* out, double* stats) {
        team_->run([&](const Me& me) { level_->gradient(state_, rows, index, n, me); });
        take_stats(stats);
        layout_.unpack(state_.grad, out);
        return state_.count[0];
    }

    double step(const float* gradient, double learning_rate) {
        layout_.pack(gradient, state_.grad);
        double norm = 0.0;
        team_->run([&](const Me& me) {
            const double found = level_->step(state_, learning_rate, me);
            if (me.thread == 0) {
                norm = found;
            }
        });
        return norm;
    }

    // Up to `epochs` passes over the batch, pass e in the order permutation(batch, seed, first_stream + e); a mean KL over the
    // valid rows of a pass above target_kl ends the update after it. Row e of stats gets the sums of pass e; returns their number.
    std::size_t update(const Rows& rows, std::size_t batch, std::size_t minibatch, std::size_t epochs, std::uint64_t seed,
                       std::uint64_t first_stream, double learning_rate, double target_kl, double* stats) {
        orders_.resize(batch * epochs);
        std::size_t made = 0;
        bool stop = false;
        team_->run([&](const Me& me) {
            for (std::size_t e = me.thread; e < epochs; e += me.num_threads) {
                permutation(orders_.data() + e * batch, batch, seed, first_stream + e);
            }
            meet(me);
            for (std::size_t e = 0; e < epochs && !stop; ++e) {
                level_->epoch(state_, rows, orders_.data() + e * batch, batch, minibatch, learning_rate, me);
                if (me.thread == 0) {
                    double* sums = stats + e * kNumStats;
                    take_stats(sums);
                    stop = sums[kApproxKl] > target_kl * std::max(sums[kRows], 1.0);
                    made = e + 1;
                }
                meet(me);
            }
        });
        return made;
    }

   private:
    static void meet(const Me& me) {
        if (me.num_threads > 1) {
            barrier(*me.team);
        }
    }

    // In order, so that the sums are the same with any number of threads.
    void take_stats(double* stats) {
        for (Task& task : tasks_) {
            for (std::size_t i = 0; i < kNumStats; ++i) {
                stats[i] += task.stats[i];
                task.stats[i] = 0.0;
            }
        }
    }

    void place() {
        layout_.place_parameters(memory_);
        for (float** vector : {&state_.grad, &state_.exp_avg, &state_.exp_avg_sq}) {
            memory_.take(*vector, layout_.model.packed_size);
        }
        memory_.take(state_.advantages, max_batch_);
        for (std::size_t i = 0; i < tasks_.size(); ++i) {
            Task& task = tasks_[i];
            task.net = i % layout_.model.num_nets;
            task.lane = i / layout_.model.num_nets;
            const Net& net = layout_.model.nets[task.net];
            layout_.place_workspace(memory_, net, task.work, std::min(max_rows_, kSlice));
            if (task.lane > 0) {
                memory_.take(task.grad, net.end - net.begin);
            } else if (state_.grad != nullptr) {  // the sum of all lanes begins there
                task.grad = state_.grad + net.begin;
            }
        }
    }

    const Level* level_;
    Layout layout_;
    std::size_t max_batch_, max_rows_;
    State state_{};
    std::vector<Task> tasks_;
    std::vector<Unit> units_;
    std::vector<std::int64_t> index_, orders_;
    std::vector<std::size_t> counts_;
    Memory memory_;
    std::unique_ptr<Team, Dismiss> team_;
};

}  // namespace ppo_fast
