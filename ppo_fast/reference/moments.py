"""Running mean and variance of vectors, merged batch by batch, over the rows that count.

The state is three float64 arrays: count (1,), mean (D,) and m2 (D,), the sum of squared deviations from the mean. The
variance is m2 / count. Sums run over the rows in their order, so that the result has one value, to the last bit.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def update_moments(
    count: npt.NDArray[np.float64],
    mean: npt.NDArray[np.float64],
    m2: npt.NDArray[np.float64],
    rows: npt.NDArray[np.float32] | npt.NDArray[np.float64],
    valid: npt.NDArray[np.bool_],
) -> None:
    """Merge the valid rows into the running moments, in place; with no valid row nothing changes.

        batch:  n = #valid,  b = Σ x / n,  b2 = Σ (x − b)²
        d = b − mean,  total = count + n
        mean += d · n/total;   m2 += b2 + d² · count · n/total;   count = total

    Two passes over the batch, because the textbook Σx² − n·mean² cancels: a joint angle near 1e4 with a spread of 0.1
    would lose its variance.

    Args:
        count: (1,) float64, rows merged so far. Written.
        mean: (D,) float64. Written.
        m2: (D,) float64. Written.
        rows: (B, D) float32 or float64.
        valid: (B,) bool; a row where it is False is not read.

    Source: Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979.
    """
    n = float(np.count_nonzero(valid))
    if n == 0.0:
        return
    counted = rows[valid].astype(np.float64)
    batch_mean = np.zeros_like(mean)
    for row in counted:  # one by one: np.sum may add in another order
        batch_mean += row
    batch_mean /= n
    batch_m2 = np.zeros_like(m2)
    for row in counted:
        deviation = row - batch_mean
        batch_m2 += deviation * deviation
    total = count[0] + n
    weight = n / total
    delta = batch_mean - mean
    mean += delta * weight
    m2 += batch_m2 + delta * delta * (count[0] * weight)
    count[0] = total
