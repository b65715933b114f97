// Running mean and sum of squared deviations, bit-equal to ppo_fast/reference/moments.py (update_moments).
//   batch of the n valid rows:  b = sum x / n,  b2 = sum (x - b)^2, in row order, in double
//   d = b - mean;  mean += d n/(count + n);  m2 += b2 + d^2 count n/(count + n);  count += n
// Columns do not mix, so they are taken in strips whose sums fit on the stack: nothing is allocated.
// Source: Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979.
#pragma once

#include <algorithm>
#include <cstddef>

namespace ppo_fast {

// rows: (num_rows, dim) float or double, row-major; a row that is not valid is not read.
template <typename Real>
inline void update_moments(double* count, double* mean, double* m2, const Real* rows, const bool* valid,
                           std::size_t num_rows, std::size_t dim) {
    const auto n = static_cast<double>(std::count(valid, valid + num_rows, true));
    if (n == 0.0) {
        return;
    }
    const double total = *count + n;
    const double weight = n / total;
    constexpr std::size_t kStrip = 64;
    for (std::size_t first = 0; first < dim; first += kStrip) {
        const std::size_t width = std::min(kStrip, dim - first);
        double batch_mean[kStrip] = {};
        double batch_m2[kStrip] = {};
        for (std::size_t row = 0; row < num_rows; ++row) {
            if (valid[row]) {
                const Real* x = rows + row * dim + first;
                for (std::size_t d = 0; d < width; ++d) {
                    batch_mean[d] += static_cast<double>(x[d]);
                }
            }
        }
        for (std::size_t d = 0; d < width; ++d) {
            batch_mean[d] /= n;
        }
        for (std::size_t row = 0; row < num_rows; ++row) {
            if (valid[row]) {
                const Real* x = rows + row * dim + first;
                for (std::size_t d = 0; d < width; ++d) {
                    const double deviation = static_cast<double>(x[d]) - batch_mean[d];
                    batch_m2[d] += deviation * deviation;
                }
            }
        }
        for (std::size_t d = 0; d < width; ++d) {
            const double delta = batch_mean[d] - mean[first + d];
            mean[first + d] += delta * weight;
            m2[first + d] += batch_m2[d] + delta * delta * (*count * weight);
        }
    }
    *count = total;
}

}  // namespace ppo_fast
