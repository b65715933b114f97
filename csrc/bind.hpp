// What the binding files share.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstddef>
#include <stdexcept>

namespace py = pybind11;

namespace ppo_fast {

template <typename T>
using Array = py::array_t<T, py::array::c_style>;

inline void require(bool ok, const char* what) {
    if (!ok) {
        throw std::invalid_argument(what);
    }
}

template <typename T>
std::size_t size(const Array<T>& array) {
    return static_cast<std::size_t>(array.size());
}

}  // namespace ppo_fast
