// ppo_fast._core: with bind_actor.cpp and bind_learner.cpp all that knows Python. It unpacks arrays into pointers and
// sizes and releases the GIL.
//
// Private: ppo_fast/kernels checks shapes, ranges and overlap, with messages. Here only dtype and layout are enforced,
// by noconvert(): pybind11 would otherwise convert, and an output of the wrong dtype would be filled in a temporary.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstddef>
#include <cstdint>

#include "gae.hpp"
#include "gather.hpp"
#include "moments.hpp"
#include "rng.hpp"
#include "shuffle.hpp"

namespace py = pybind11;

namespace ppo_fast {
void bind_learner(py::module_& module);  // bind_learner.cpp
void bind_actor(py::module_& module);    // bind_actor.cpp
}

namespace {

template <typename T>
using Array = py::array_t<T, py::array::c_style>;

template <typename T>
std::size_t axis(const Array<T>& array, int which) {
    return static_cast<std::size_t>(array.shape(which));  // throws if the array has fewer axes
}

void gae_into(const Array<float>& rewards, const Array<float>& values, const Array<float>& next_values,
              const Array<bool>& terminated, const Array<bool>& done, double gamma, double gae_lambda,
              Array<float>& advantages, Array<float>& returns) {
    const float* r = rewards.data();
    const float* v = values.data();
    const float* next_v = next_values.data();
    const bool* term = terminated.data();
    const bool* end = done.data();
    const std::size_t num_steps = axis(rewards, 0);
    const std::size_t num_envs = axis(rewards, 1);
    float* adv = advantages.mutable_data();
    float* ret = returns.mutable_data();
    const auto discount = static_cast<float>(gamma);  // rounded once, as the reference does
    const auto decay = static_cast<float>(gamma * gae_lambda);
    {
        const py::gil_scoped_release no_gil;
        ppo_fast::gae(r, v, next_v, term, end, num_steps, num_envs, discount, decay, adv, ret);
    }
}

void permutation_into(Array<std::int64_t>& out, std::uint64_t seed, std::uint64_t stream) {
    std::int64_t* order = out.mutable_data();
    const std::size_t n = axis(out, 0);
    {
        const py::gil_scoped_release no_gil;
        ppo_fast::permutation(order, n, seed, stream);
    }
}

void gather_into(const Array<float>& source, const Array<std::int64_t>& index, Array<float>& out) {
    const float* from = source.data();
    const std::int64_t* order = index.data();
    const std::size_t num_rows = axis(index, 0);
    const std::size_t dim = axis(source, 1);
    float* to = out.mutable_data();
    {
        const py::gil_scoped_release no_gil;
        ppo_fast::gather(from, order, num_rows, dim, to);
    }
}

template <typename Real>
void moments_into(Array<double>& count, Array<double>& mean, Array<double>& m2, const Array<Real>& rows,
                  const Array<bool>& valid) {
    double* c = count.mutable_data();
    double* m = mean.mutable_data();
    double* s = m2.mutable_data();
    const Real* x = rows.data();
    const bool* counts = valid.data();
    const std::size_t num_rows = axis(rows, 0);
    const std::size_t dim = axis(rows, 1);
    {
        const py::gil_scoped_release no_gil;
        ppo_fast::update_moments(c, m, s, x, counts, num_rows, dim);
    }
}

using Draws = void(const std::int64_t*, const std::int64_t*, std::size_t, std::size_t, std::uint64_t, double*);

template <Draws* draw>
void draws_into(const Array<std::int64_t>& env_ids, const Array<std::int64_t>& steps, std::uint64_t seed,
                Array<double>& out) {
    const std::int64_t* env = env_ids.data();
    const std::int64_t* step = steps.data();
    const std::size_t rows = axis(out, 0);
    const std::size_t dim = axis(out, 1);
    double* to = out.mutable_data();
    {
        const py::gil_scoped_release no_gil;
        draw(env, step, rows, dim, seed, to);
    }
}

}  // namespace

PYBIND11_MODULE(_core, m, py::mod_gil_not_used()) {
    m.doc() = "Compiled kernels of ppo_fast. Private: use ppo_fast.kernels, which checks its arguments.";
    m.attr("__version__") = PPO_FAST_VERSION;
    m.def("gae_into", &gae_into, py::arg("rewards").noconvert(), py::arg("values").noconvert(),
          py::arg("next_values").noconvert(), py::arg("terminated").noconvert(), py::arg("done").noconvert(),
          py::arg("gamma"), py::arg("gae_lambda"), py::arg("advantages").noconvert(), py::arg("returns").noconvert());
    m.def("permutation_into", &permutation_into, py::arg("out").noconvert(), py::arg("seed"), py::arg("stream"));
    m.def("gather_into", &gather_into, py::arg("source").noconvert(), py::arg("index").noconvert(),
          py::arg("out").noconvert());
    m.def("moments_into", &moments_into<float>, py::arg("count").noconvert(), py::arg("mean").noconvert(),
          py::arg("m2").noconvert(), py::arg("rows").noconvert(), py::arg("valid").noconvert());
    m.def("moments_into", &moments_into<double>, py::arg("count").noconvert(), py::arg("mean").noconvert(),
          py::arg("m2").noconvert(), py::arg("rows").noconvert(), py::arg("valid").noconvert());
    m.def("normals_into", &draws_into<ppo_fast::normals>, py::arg("env_ids").noconvert(), py::arg("steps").noconvert(),
          py::arg("seed"), py::arg("out").noconvert());
    m.def("uniforms_into", &draws_into<ppo_fast::uniforms>, py::arg("env_ids").noconvert(),
          py::arg("steps").noconvert(), py::arg("seed"), py::arg("out").noconvert());
#if defined(PPO_FAST_LEARNER)
    ppo_fast::bind_learner(m);
    ppo_fast::bind_actor(m);
#endif
}
