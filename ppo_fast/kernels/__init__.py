"""The numeric kernels: one public door to C++, Numba and the reference, with the checks.

    T steps · N envs · B = T·N rows · M rows of a minibatch · D components

Every function computes exactly what its twin in :mod:`ppo_fast.reference` computes, bit for bit, whatever the backend.
Arrays must have the stated dtype and be C-contiguous; nothing is cast or copied silently. Outputs are written whole.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ShapeError
from . import _checks as _check
from ._checks import BOOL, FLOAT32, FLOAT64, INT64
from ._random import env_seeds, normals, permutation, stream_id, uniforms
from ._select import active, available, backend, passed_over, use, why_not

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

__all__ = [
    "active",
    "available",
    "env_seeds",
    "gae",
    "gather",
    "normals",
    "passed_over",
    "permutation",
    "stream_id",
    "uniforms",
    "update_moments",
    "use",
    "why_not",
]


def gae(
    rewards: Float32,
    values: Float32,
    next_values: Float32,
    terminated: Bool,
    done: Bool,
    *,
    gamma: float,
    gae_lambda: float,
    out: tuple[Float32, Float32] | None = None,
) -> tuple[Float32, Float32]:
    """Compute generalised advantage estimates and value targets, sweeping backwards in time.

        δ_t = r_t + γ · V(s_{t+1}) − V(s_t)        without the V(s_{t+1}) term where terminated_t
        A_t = δ_t + γλ · A_{t+1}                   without the A_{t+1} term where done_t,     A_T = 0
        R_t = A_t + V(s_t)

    ``terminated`` removes the bootstrap, ``done`` ends the sum; a time limit does only the second. Both select, neither
    multiplies: what stands in a row that does not count reaches nobody.

    Args:
        rewards: (T, N) float32, reward of the transition t → t+1.
        values: (T, N) float32, V(s_t).
        next_values: (T, N) float32, V(s_{t+1}) of the same episode; with next-step autoreset this is ``values``
            shifted by one, so both may be views of one (T+1, N) buffer.
        terminated: (T, N) bool, the episode reached a terminal state at t+1.
        done: (T, N) bool, the episode ended at t+1, terminated or truncated.
        gamma: discount γ in [0, 1], rounded once to float32.
        gae_lambda: λ in [0, 1]; the product γλ is rounded once to float32.
        out: advantages and returns to overwrite, each (T, N) float32; allocated if None.

    Returns:
        advantages and returns, each (T, N) float32 (``out`` if given).

    Raises:
        ShapeError: an array has the wrong type, dtype, layout or shape, or an output overlaps another argument.
        ConfigError: gamma or gae_lambda is not a number in [0, 1].

    Source: Schulman et al., arXiv:1506.02438, section 3. Time limits: Pardo et al., arXiv:1712.00378.
    """
    _check.check_layout("rewards", rewards, (FLOAT32,))
    _check.check_axes("rewards", rewards, "(T, N)")
    shape = rewards.shape
    _check.check_array("values", values, FLOAT32, "(T, N)", shape)
    _check.check_array("next_values", next_values, FLOAT32, "(T, N)", shape)
    _check.check_array("terminated", terminated, BOOL, "(T, N)", shape)
    _check.check_array("done", done, BOOL, "(T, N)", shape)
    gamma = _check.check_fraction("gamma", gamma)
    gae_lambda = _check.check_fraction("gae_lambda", gae_lambda)
    advantages, returns = _pair(out) if out is not None else (np.empty(shape, FLOAT32), np.empty(shape, FLOAT32))
    if out is not None:
        _check.check_array("out[0] (advantages)", advantages, FLOAT32, "(T, N)", shape, output=True)
        _check.check_array("out[1] (returns)", returns, FLOAT32, "(T, N)", shape, output=True)
        _check.check_apart(
            {"out[0] (advantages)": advantages, "out[1] (returns)": returns},
            {
                "rewards": rewards,
                "values": values,
                "next_values": next_values,
                "terminated": terminated,
                "done": done,
            },
        )
    backend().gae_into(rewards, values, next_values, terminated, done, gamma, gae_lambda, advantages, returns)
    return advantages, returns


def _pair(out: Any) -> tuple[Any, Any]:
    """Unpack ``out`` of :func:`gae`, or raise ShapeError."""
    if not isinstance(out, (tuple, list)) or len(out) != 2:
        raise ShapeError(f"out must be a pair (advantages, returns), got {type(out).__name__}")
    return out[0], out[1]


def gather(source: Float32, index: Int64, *, out: Float32 | None = None) -> Float32:
    """Return the rows of ``source`` that ``index`` names, in that order: ``out[m] = source[index[m]]``.

    Args:
        source: (B,) or (B, D) float32.
        index: (M,) int64, each in [0, B); negative numbers do not count from the end.
        out: (M,) or (M, D) float32 to overwrite; allocated if None.

    Returns:
        (M,) or (M, D) float32 (``out`` if given).

    Raises:
        ShapeError: an array has the wrong type, dtype, layout or shape, an index is out of range, or out overlaps
            another argument.
    """
    _check.check_layout("source", source, (FLOAT32,))
    if source.ndim not in (1, 2):
        raise ShapeError(f"source must have shape (B,) or (B, D), got {source.shape}")
    _check.check_layout("index", index, (INT64,))
    _check.check_axes("index", index, "(M,)")
    _check.check_range("index", index, len(source), f"B = {len(source)}")
    shape = (len(index), *source.shape[1:])
    if out is None:
        out = np.empty(shape, FLOAT32)
    else:
        _check.check_array("out", out, FLOAT32, "(M,)" if source.ndim == 1 else "(M, D)", shape, output=True)
        _check.check_apart({"out": out}, {"source": source, "index": index})
    if source.ndim == 1:
        backend().gather_into(source[:, None], index, out[:, None])
    else:
        backend().gather_into(source, index, out)
    return out


def update_moments(count: Float64, mean: Float64, m2: Float64, rows: Float32 | Float64, valid: Bool) -> None:
    """Merge the valid rows into a running mean and sum of squared deviations, in place.

        batch:  n = #valid,  b = Σ x / n,  b2 = Σ (x − b)²        (float64, in row order)
        d = b − mean,  total = count + n
        mean += d · n/total;   m2 += b2 + d² · count · n/total;   count = total

    The variance is m2 / count. With no valid row nothing changes.

    Args:
        count: (1,) float64, rows merged so far. Written.
        mean: (D,) float64. Written.
        m2: (D,) float64, sum of squared deviations from the mean. Written.
        rows: (B, D) float32 or float64.
        valid: (B,) bool; a row where it is False is not read.

    Raises:
        ShapeError: an array has the wrong type, dtype, layout or shape, or a written one overlaps another argument;
            nothing has been written then.

    Source: Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979.
    """
    _check.check_layout("rows", rows, (FLOAT32, FLOAT64))
    _check.check_axes("rows", rows, "(B, D)")
    num_rows, dim = rows.shape
    _check.check_array("valid", valid, BOOL, "(B,)", (num_rows,))
    _check.check_array("count", count, FLOAT64, "(1,)", (1,), output=True)
    _check.check_array("mean", mean, FLOAT64, "(D,)", (dim,), output=True)
    _check.check_array("m2", m2, FLOAT64, "(D,)", (dim,), output=True)
    _check.check_apart({"count": count, "mean": mean, "m2": m2}, {"rows": rows, "valid": valid})
    backend().moments_into(count, mean, m2, rows, valid)
