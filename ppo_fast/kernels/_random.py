"""The random draws of the door: minibatch orders, action noise, seeds of simulators. No generator, no state."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..reference import rng as _rng
from ..reference import shuffle as _shuffle
from . import _checks as _check
from ._checks import FLOAT64, INT64
from ._select import backend

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]


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


def normals(env_ids: Int64, steps: Int64, dim: int, *, seed: int, out: Float64 | None = None) -> Float64:
    """Draw the standard normal action noise of (env, step) rows; each row is a pure function of (seed, env, step).

        out[i, k] = Φ⁻¹(u),   u = uniforms(...)[i, k]

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
    out, seed = _checked(env_ids, steps, dim, seed, out)
    backend().normals_into(env_ids, steps, seed, out)
    return out


def uniforms(env_ids: Int64, steps: Int64, dim: int, *, seed: int, out: Float64 | None = None) -> Float64:
    """Draw the uniform action noise of (env, step) rows; each row is a pure function of (seed, env, step).

        out[i, k] = (bits // 2**12 + 1/2) / 2**52, strictly inside (0, 1); the 64 bits are half k % 2 of what
        Philox4x32-10 makes of key = seed, counter = (k // 2, step, env, NOISE)

    Args:
        env_ids: (n,) int64, global environment indices, each in [0, 2**32).
        steps: (n,) int64, step numbers of those environments, each in [0, 2**56).
        dim: numbers per row, 0 <= dim < 2**31.
        seed: the run's seed, 0 <= seed < 2**64.
        out: (n, dim) float64 to overwrite; allocated if None.

    Returns:
        (n, dim) float64 (``out`` if given).

    Raises:
        ConfigError: dim or seed is out of range.
        ShapeError: an array has the wrong type, dtype, layout or shape, an id or a step is out of range, or out
            overlaps an input.

    Source: Salmon et al., SC 2011.
    """
    out, seed = _checked(env_ids, steps, dim, seed, out)
    backend().uniforms_into(env_ids, steps, seed, out)
    return out


def _checked(env_ids: Int64, steps: Int64, dim: int, seed: int, out: Float64 | None) -> tuple[Float64, int]:
    """Return the array to fill and the seed, or raise what :func:`normals` and :func:`uniforms` raise."""
    _check.check_layout("env_ids", env_ids, (INT64,))
    _check.check_axes("env_ids", env_ids, "(n,)")
    _check.check_array("steps", steps, INT64, "(n,)", env_ids.shape)
    _check.check_range("env_ids", env_ids, 2**32, "2**32")
    _check.check_range("steps", steps, 2**56, "2**56")
    dim = _check.check_integer("dim", dim, 0, 2**31, "2**31")
    seed = _check.check_integer("seed", seed, 0, 2**64, "2**64")
    shape = (len(env_ids), dim)
    if out is None:
        return np.empty(shape, FLOAT64), seed
    _check.check_array("out", out, FLOAT64, "(n, dim)", shape, output=True)
    _check.check_apart({"out": out}, {"env_ids": env_ids, "steps": steps})
    return out, seed


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
