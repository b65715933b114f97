// ppo_fast._core.PpoLearner and Networks: unpacks arrays into pointers and sizes and releases the GIL.
//
// Private: ppo_fast/learners/native.py checks what it passes, with messages. Here dtype and layout are enforced by
// noconvert(), and sizes once more, because a wrong one would write beyond a buffer.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "bind.hpp"
#include "ppo_learner.hpp"

namespace ppo_fast {
namespace {

Activation activation(const std::string& name) {
    if (name == "tanh") return Activation::tanh;
    if (name == "relu") return Activation::relu;
    if (name == "elu") return Activation::elu;
    if (name == "silu") return Activation::silu;
    throw std::invalid_argument("activation must be one of tanh, relu, elu, silu, got '" + name + "'");
}

Networks networks(std::size_t obs_dim, std::size_t act_dim, std::size_t num_actions,
                  const std::vector<std::size_t>& hidden_sizes, const std::string& act, bool shared_trunk) {
    require(obs_dim > 0 && act_dim > 0 && !hidden_sizes.empty() && hidden_sizes.size() < kMaxLayers,
            "sizes must be at least 1, and hidden layers 1 to 15");
    for (const std::size_t width : hidden_sizes) {
        require(width > 0, "sizes must be at least 1");
    }
    require(num_actions == 0 || act_dim == 1, "a categorical action has one column");
    return {obs_dim, act_dim, num_actions, hidden_sizes, activation(act), shared_trunk};
}

std::unique_ptr<PpoLearner> make(const Networks& networks, std::size_t max_batch, std::size_t max_rows, float clip_coef,
                                 bool clip_vloss, bool norm_adv_minibatch, float ent_coef, float vf_coef,
                                 float max_grad_norm, float adam_eps, std::size_t threads, const std::string& simd) {
    require(max_rows > 0 && max_batch >= max_rows && threads > 0, "sizes must be at least 1");
    const Hyper hyper{clip_coef, ent_coef, vf_coef, max_grad_norm, adam_eps, clip_vloss, norm_adv_minibatch};
    return std::make_unique<PpoLearner>(networks, max_batch, max_rows, hyper, threads, choose_level(simd));
}

Rows unpack_rows(const PpoLearner& learner, const Array<float>& norm_obs, const Array<float>& actions,
                 const Array<float>& log_probs, const Array<float>& advantages, const Array<float>& returns,
                 const Array<float>& values, const Array<float>& valid) {
    const std::size_t batch = size(valid);
    require(size(norm_obs) == batch * learner.obs_dim() && size(actions) == batch * learner.act_dim() &&
                size(log_probs) == batch && size(advantages) == batch && size(returns) == batch && size(values) == batch,
            "the columns of the batch differ in length");
    return {norm_obs.data(), actions.data(), log_probs.data(), advantages.data(), returns.data(), values.data(), valid.data()};
}

const std::int64_t* unpack_index(const Array<std::int64_t>& index, std::size_t batch) {
    const std::int64_t* at = index.data();
    for (std::size_t i = 0; i < size(index); ++i) {
        require(at[i] >= 0 && static_cast<std::size_t>(at[i]) < batch, "an index is out of range");
    }
    return at;
}

void load(PpoLearner& self, const Array<float>& flat, const Array<float>& exp_avg, const Array<float>& exp_avg_sq,
          std::int64_t adam_steps) {
    const std::size_t n = self.num_params();
    require(size(flat) == n && size(exp_avg) == n && size(exp_avg_sq) == n, "parameters and moments must have length P");
    self.load(flat.data(), exp_avg.data(), exp_avg_sq.data(), adam_steps);
}

void save(const PpoLearner& self, Array<float>& flat, Array<float>& exp_avg, Array<float>& exp_avg_sq) {
    const std::size_t n = self.num_params();
    require(size(flat) == n && size(exp_avg) == n && size(exp_avg_sq) == n, "parameters and moments must have length P");
    self.save(flat.mutable_data(), exp_avg.mutable_data(), exp_avg_sq.mutable_data());
}

std::size_t gradient(PpoLearner& self, const Array<std::int64_t>& index, const Array<float>& norm_obs,
                     const Array<float>& actions, const Array<float>& log_probs, const Array<float>& advantages,
                     const Array<float>& returns, const Array<float>& values, const Array<float>& valid, Array<float>& out,
                     Array<double>& stats) {
    const Rows rows = unpack_rows(self, norm_obs, actions, log_probs, advantages, returns, values, valid);
    require(size(index) <= self.max_rows() && size(out) == self.num_params() && size(stats) == kNumStats,
            "index, out or stats has the wrong length");
    const std::int64_t* at = unpack_index(index, size(valid));
    float* to = out.mutable_data();
    double* sums = stats.mutable_data();
    const std::size_t n = size(index);
    const py::gil_scoped_release no_gil;
    return self.gradient(rows, at, n, to, sums);
}

double step(PpoLearner& self, const Array<float>& grad, double learning_rate) {
    require(size(grad) == self.num_params(), "the gradient must have length P");
    const float* from = grad.data();
    const py::gil_scoped_release no_gil;
    return self.step(from, learning_rate);
}

std::size_t update(PpoLearner& self, const Array<float>& norm_obs, const Array<float>& actions,
                   const Array<float>& log_probs, const Array<float>& advantages, const Array<float>& returns,
                   const Array<float>& values, const Array<float>& valid, std::size_t minibatch, std::uint64_t seed,
                   std::uint64_t first_stream, double learning_rate, double target_kl, Array<double>& stats) {
    const Rows rows = unpack_rows(self, norm_obs, actions, log_probs, advantages, returns, values, valid);
    const std::size_t batch = size(valid), epochs = size(stats) / kNumStats;
    require(minibatch > 0 && minibatch <= self.max_rows() && batch % minibatch == 0 && batch <= self.max_batch(),
            "the batch or minibatch has the wrong length");
    require(size(stats) == epochs * kNumStats, "stats must have shape (epochs, STATS)");
    double* sums = stats.mutable_data();
    const py::gil_scoped_release no_gil;
    return self.update(rows, batch, minibatch, epochs, seed, first_stream, learning_rate, target_kl, sums);
}

}  // namespace

void bind_learner(py::module_& module) {
    module.def(
        "simd_level", [](const std::string& asked) { return std::string(choose_level(asked).name); }, py::arg("asked") = "");
    module.def("simd_levels", [] {
        std::vector<std::string> names;
        for (const Level* level : levels()) {
            names.emplace_back(level->name);
        }
        return names;
    });
    module.def(
        "peak_flops",
        [](const std::string& simd) {
            const Level& level = choose_level(simd);
            const py::gil_scoped_release no_gil;
            return level.peak();
        },
        py::arg("simd") = "");
    module.attr("MAX_HIDDEN_LAYERS") = kMaxLayers - 1;
    py::class_<Networks>(module, "Networks")
        .def(py::init(&networks), py::kw_only(), py::arg("obs_dim"), py::arg("act_dim"), py::arg("num_actions"),
             py::arg("hidden_sizes"), py::arg("activation"), py::arg("shared_trunk"));
    py::class_<PpoLearner>(module, "PpoLearner")
        .def(py::init(&make), py::arg("networks"), py::kw_only(), py::arg("max_batch"), py::arg("max_rows"),
             py::arg("clip_coef"), py::arg("clip_vloss"), py::arg("norm_adv_minibatch"), py::arg("ent_coef"),
             py::arg("vf_coef"), py::arg("max_grad_norm"), py::arg("adam_eps"), py::arg("threads"), py::arg("simd") = "")
        .def_property_readonly("simd_level", [](const PpoLearner& self) { return std::string(self.level().name); })
        .def_property_readonly("num_params", &PpoLearner::num_params)
        .def_property_readonly("threads", &PpoLearner::threads)
        .def_property_readonly("adam_steps", &PpoLearner::adam_steps)
        .def("load", &load, py::arg("flat").noconvert(), py::arg("exp_avg").noconvert(), py::arg("exp_avg_sq").noconvert(),
             py::arg("adam_steps"))
        .def("save", &save, py::arg("flat").noconvert(), py::arg("exp_avg").noconvert(), py::arg("exp_avg_sq").noconvert())
        .def("gradient", &gradient, py::arg("index").noconvert(), py::arg("norm_obs").noconvert(),
             py::arg("actions").noconvert(), py::arg("log_probs").noconvert(), py::arg("advantages").noconvert(),
             py::arg("returns").noconvert(), py::arg("values").noconvert(), py::arg("valid").noconvert(), py::kw_only(),
             py::arg("out").noconvert(), py::arg("stats").noconvert())
        .def("step", &step, py::arg("gradient").noconvert(), py::arg("learning_rate"))
        .def("update", &update, py::arg("norm_obs").noconvert(), py::arg("actions").noconvert(),
             py::arg("log_probs").noconvert(), py::arg("advantages").noconvert(), py::arg("returns").noconvert(),
             py::arg("values").noconvert(), py::arg("valid").noconvert(), py::kw_only(), py::arg("minibatch"),
             py::arg("seed"), py::arg("first_stream"), py::arg("learning_rate"), py::arg("target_kl"),
             py::arg("stats").noconvert());
}

}  // namespace ppo_fast
