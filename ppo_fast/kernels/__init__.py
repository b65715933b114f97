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
from ..reference import rng as _rng
from ..reference import shuffle as _shuffle
from . import _checks as _check
from ._checks import BOOL, FLOAT32, FLOAT64, INT64
from ._select import active, available, backend, use, why_not

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
    "permutation",
    "stream_id",
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


def permutation(n: int, *, seed: int, stream: int, out: Int64 | None = None) -> Int64:
    """Return a random permutation of 0 ... n − 1 that is a pure function of its arguments.

        for i = n − 1, ..., 1:  swap order[i] with order[j],  j uniform in [0, i] (Philox words, Lemire's rejection)

    Args:
        n: how many, 0 <= n < 2**31.
        seed: the run's seed, 0 <= seed < 2**64.
        stream: which of the run's permutations, 0 <= stream < 2**56, see :func:`stream_id`.
        out: (n,) int64 to overwrite; allocated if None.

    Returns:
        (n,) int64 (``out`` if given).

    Raises:
        ConfigError: n, seed or stream is out of range.
        ShapeError: out has the wrong type, dtype, layout or shape.

    Source: Salmon et al., SC 2011 (Philox4x32-10); Lemire, arXiv:1805.10941; Durstenfeld, CACM 7 (1964) 420.
    """
    n = _check.check_integer("n", n, 0, 2**31, "2**31")
    seed = _check.check_integer("seed", seed, 0, 2**64, "2**64")
    stream = _check.check_integer("stream", stream, 0, 2**56, "2**56")
    if out is None:
        out = np.empty(n, INT64)
    else:
        _check.check_array("out", out, INT64, "(n,)", (n,), output=True)
    backend().permutation_into(out, seed, stream)
    return out


def stream_id(rank: int, epoch: int) -> int:
    """Name the permutation of one process and one pass over its batch: ``rank << 40 | epoch``.

    Args:
        rank: index of the process, 0 <= rank < 2**16.
        epoch: passes made so far in the whole run, 0 <= epoch < 2**40.

    Raises:
        ConfigError: rank or epoch is out of range.
    """
    rank = _check.check_integer("rank", rank, 0, 2**16, "2**16")
    epoch = _check.check_integer("epoch", epoch, 0, 2**40, "2**40")
    return _shuffle.stream_id(rank, epoch)


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


def normals(env_ids: Int64, steps: Int64, dim: int, *, seed: int, out: Float64 | None = None) -> Float64:
    """Draw the standard normal action noise of (env, step) rows; each row is a pure function of (seed, env, step).

        out[i, k] = Φ⁻¹(u),   u from Philox4x32-10 with key = seed, counter = (k // 2, step, env, NOISE), half k % 2

    Args:
        env_ids: (n,) int64, global environment indices, each in [0, 2**32).
        steps: (n,) int64, step numbers of those environments, each in [0, 2**56).
        dim: normals per row, 0 <= dim < 2**31.
        seed: the run's seed, 0 <= seed < 2**64.
        out: (n, dim) float64 to overwrite; allocated if None.

    Returns:
        (n, dim) float64 (``out`` if given).

    Raises:
        ConfigError: dim or seed is out of range.
        ShapeError: an array has the wrong type, dtype, layout or shape, an id or a step is out of range, or out
            overlaps an input.

    Source: Salmon et al., SC 2011; inverse normal CDF: Wichura, AS241, Applied Statistics 37 (1988) 477.
    """
    _check.check_layout("env_ids", env_ids, (INT64,))
    _check.check_axes("env_ids", env_ids, "(n,)")
    _check.check_array("steps", steps, INT64, "(n,)", env_ids.shape)
    _check.check_range("env_ids", env_ids, 2**32, "2**32")
    _check.check_range("steps", steps, 2**56, "2**56")
    dim = _check.check_integer("dim", dim, 0, 2**31, "2**31")
    seed = _check.check_integer("seed", seed, 0, 2**64, "2**64")
    shape = (len(env_ids), dim)
    if out is None:
        out = np.empty(shape, FLOAT64)
    else:
        _check.check_array("out", out, FLOAT64, "(n, dim)", shape, output=True)
        _check.check_apart({"out": out}, {"env_ids": env_ids, "steps": steps})
    backend().normals_into(env_ids, steps, seed, out)
    return out


def env_seeds(seed: int, first_env: int, num_envs: int, purpose: int = 0) -> Int64:
    """Return the seeds given to the simulators of global environments first_env ... first_env + num_envs − 1.

        seed of env e = (philox(key = seed, counter = (0, 0, 0, ENV_SEED | purpose))[0] + e) mod 2**31

    Called once per run, so there is one implementation, the reference's.

    Args:
        seed: the run's seed, 0 <= seed < 2**64.
        first_env: global index of the first environment, 0 <= first_env < 2**32.
        num_envs: how many, 0 <= num_envs < 2**31, so that all differ.
        purpose: 0 for training, 1 for evaluation, below 2**24.

    Returns:
        (num_envs,) int64, distinct, each in [0, 2**31).

    Raises:
        ConfigError: an argument is out of range.
    """
    seed = _check.check_integer("seed", seed, 0, 2**64, "2**64")
    first_env = _check.check_integer("first_env", first_env, 0, 2**32, "2**32")
    num_envs = _check.check_integer("num_envs", num_envs, 0, 2**31, "2**31")
    purpose = _check.check_integer("purpose", purpose, 0, 2**24, "2**24")
    return _rng.env_seeds(seed, first_env, num_envs, purpose)
