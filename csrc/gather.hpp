// Rows of an array in the order of an index, equal to ppo_fast/kernels/_reference.py (gather_into).
//   out[m, d] = source[index[m], d]
// source is (B, D), index (M,) with entries in [0, B), out (M, D), row-major.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace ppo_fast {

inline void gather(const float* source, const std::int64_t* index, std::size_t num_rows, std::size_t dim, float* out) {
    if (dim == 1) {  // a call of memcpy per number would cost more than the number
        for (std::size_t m = 0; m < num_rows; ++m) {
            out[m] = source[index[m]];
        }
        return;
    }
    for (std::size_t m = 0; m < num_rows; ++m) {
        std::copy_n(source + static_cast<std::size_t>(index[m]) * dim, dim, out + m * dim);
    }
}

}  // namespace ppo_fast
