// ppo_fast._core.PpoActor: unpacks arrays into pointers and sizes and releases the GIL.
//
// Private: ppo_fast/rollout/native_worker.py passes what it has allocated or checked. Here dtype and layout are enforced
// by noconvert(), and sizes and environment ids once more, because a wrong one would write beyond a buffer.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "bind.hpp"
#include "ppo_actor.hpp"

namespace ppo_fast {
namespace {

// An actor, and the arrays of the rollout that it is in the middle of.
struct BoundActor {
    std::unique_ptr<PpoActor> actor;
    std::vector<py::object> rollout;
};

std::unique_ptr<BoundActor> make(const Networks& networks, std::size_t num_envs, std::size_t num_steps, std::uint64_t seed,
                                 std::size_t first_env, bool normalize, float clip_obs,
                                 const std::vector<double>& action_low, const std::vector<double>& half_range,
                                 const std::vector<bool>& bounded, const std::string& simd) {
    require(num_envs > 0 && num_steps > 0, "sizes must be at least 1");
    require(action_low.size() == networks.act_dim && half_range.size() == networks.act_dim &&
                bounded.size() == networks.act_dim,
            "the bounds must have length A");
    auto bound = std::make_unique<BoundActor>();
    bound->actor = std::make_unique<PpoActor>(networks, num_envs, num_steps, seed, first_env, normalize, clip_obs,
                                              Scaling{action_low, half_range, bounded}, choose_level(simd));
    return bound;
}

void load(BoundActor& self, const Array<float>& flat, const Array<float>& mean, const Array<float>& inv_std) {
    require(size(flat) == self.actor->num_params(), "the parameters must have length P");
    require(size(mean) == self.actor->obs_dim() && size(inv_std) == self.actor->obs_dim(),
            "mean and inv_std must have length D");
    self.actor->load(flat.data(), mean.data(), inv_std.data());
}

Answers answers(const PpoActor& actor, Array<std::int32_t>& env_ids, Array<double>& actions) {
    require(size(env_ids) == actor.num_envs() && size(actions) == actor.num_envs() * actor.act_dim(),
            "out must hold N answers");
    return {env_ids.mutable_data(), actions.mutable_data()};
}

std::size_t begin(BoundActor& self, Array<float>& obs, Array<float>& norm_obs, Array<float>& actions,
                  Array<float>& log_probs, Array<float>& values, Array<float>& rewards, Array<bool>& terminated,
                  Array<bool>& truncated, Array<bool>& valid, std::uint64_t first_step, Array<std::int32_t>& out_env_ids,
                  Array<double>& out_actions) {
    PpoActor& actor = *self.actor;
    const std::size_t rows = actor.num_steps() * actor.num_envs(), all = rows + actor.num_envs();
    require(size(obs) == all * actor.obs_dim() && size(norm_obs) == all * actor.obs_dim() && size(values) == all &&
                size(actions) == rows * actor.act_dim() && size(log_probs) == rows && size(rewards) == rows &&
                size(terminated) == rows && size(truncated) == rows && size(valid) == rows,
            "an array of the rollout has the wrong size");
    const Answers out = answers(actor, out_env_ids, out_actions);
    const Buffers buffers{obs.mutable_data(),     norm_obs.mutable_data(),   actions.mutable_data(),
                          log_probs.mutable_data(), values.mutable_data(),   rewards.mutable_data(),
                          terminated.mutable_data(), truncated.mutable_data(), valid.mutable_data()};
    self.rollout = {obs, norm_obs, actions, log_probs, values, rewards, terminated, truncated, valid};
    const py::gil_scoped_release no_gil;
    return actor.begin(buffers, first_step, out);
}

template <typename Real>
std::size_t receive(BoundActor& self, const Array<std::int32_t>& env_ids, const Array<Real>& obs,
                    const Array<float>& rewards, const Array<bool>& terminated, const Array<bool>& truncated,
                    const Array<bool>& valid, Array<std::int32_t>& out_env_ids, Array<double>& out_actions) {
    PpoActor& actor = *self.actor;
    const std::size_t n = size(env_ids);
    require(size(obs) == n * actor.obs_dim() && size(rewards) == n && size(terminated) == n && size(truncated) == n &&
                size(valid) == n,
            "the columns of the rows differ in length");
    const Answers out = answers(actor, out_env_ids, out_actions);
    require(actor.claim(env_ids.data(), n), "env_ids must name environments that have been answered, each once");
    const Arrived rows{env_ids.data(), rewards.data(), terminated.data(), truncated.data(), valid.data()};
    const Real* from = obs.data();
    const py::gil_scoped_release no_gil;
    return actor.receive(rows, from, n, out);
}

template <typename Real>
void def_receive(py::class_<BoundActor>& actor) {
    actor.def("receive", &receive<Real>, py::arg("env_ids").noconvert(), py::arg("obs").noconvert(),
              py::arg("rewards").noconvert(), py::arg("terminated").noconvert(), py::arg("truncated").noconvert(),
              py::arg("valid").noconvert(), py::arg("out_env_ids").noconvert(), py::arg("out_actions").noconvert());
}

}  // namespace

void bind_actor(py::module_& module) {
    py::class_<BoundActor> actor(module, "PpoActor");
    actor
        .def(py::init(&make), py::arg("networks"), py::kw_only(), py::arg("num_envs"), py::arg("num_steps"),
             py::arg("seed"), py::arg("first_env"), py::arg("normalize"), py::arg("clip_obs"), py::arg("action_low"),
             py::arg("half_range"), py::arg("bounded"), py::arg("simd") = "")
        .def_property_readonly("simd_level", [](const BoundActor& self) { return std::string(self.actor->level().name); })
        .def_property_readonly("remaining", [](const BoundActor& self) { return self.actor->remaining(); })
        .def_property_readonly("failed_env", [](const BoundActor& self) { return self.actor->failed_env(); })
        .def("load", &load, py::arg("flat").noconvert(), py::arg("mean").noconvert(), py::arg("inv_std").noconvert())
        .def("begin", &begin, py::arg("obs").noconvert(), py::arg("norm_obs").noconvert(), py::arg("actions").noconvert(),
             py::arg("log_probs").noconvert(), py::arg("values").noconvert(), py::arg("rewards").noconvert(),
             py::arg("terminated").noconvert(), py::arg("truncated").noconvert(), py::arg("valid").noconvert(),
             py::kw_only(), py::arg("first_step"), py::arg("out_env_ids").noconvert(), py::arg("out_actions").noconvert());
    def_receive<float>(actor);
    def_receive<double>(actor);
}

}  // namespace ppo_fast
