"""The kernels in Numba: the same arithmetic in the same order as the reference, compiled.

Each kernel is compiled at its first call, for the one signature that it has, and not cached on disk (a cache keyed by
file time is a stale result waiting to happen). No ``fastmath``, so that LLVM neither reorders a sum nor fuses a
multiply with an add; no ``prange``, whose threads would fight the simulators'.

Integers that take part in Philox are all ``uint64``: Numba turns int64 mixed with uint64 into float64.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit, types

from ..reference import rng

__all__ = ["gae_into", "gather_into", "moments_into", "normals_into", "permutation_into", "uniforms_into"]

_helper: Callable[[Callable[..., Any]], Callable[..., Any]] = njit(fastmath=False, error_model="numpy")

_F32_IN, _F32_OUT = (types.Array(types.float32, 2, "C", readonly=readonly) for readonly in (True, False))
_BOOL_IN = types.Array(types.boolean, 2, "C", readonly=True)
_I64_IN, _I64_OUT = (types.Array(types.int64, 1, "C", readonly=readonly) for readonly in (True, False))
_F64_IN, _F64_OUT = (types.Array(types.float64, 2, "C", readonly=readonly) for readonly in (True, False))
_F64_VECTOR = types.Array(types.float64, 1, "C")
_MASK_IN = types.Array(types.boolean, 1, "C", readonly=True)


def _kernel(*signatures: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Compile a function for these signatures when it is first called."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @functools.cache
        def compiled() -> Callable[..., None]:
            options = {"cache": False, "fastmath": False, "nogil": True, "error_model": "numpy"}
            return njit(list(signatures), **options)(function)  # type: ignore[no-any-return]

        @functools.wraps(function)
        def call(*args: Any) -> None:
            compiled()(*args)

        return call

    return decorate


_LOW = np.uint64(rng.LOW_32_BITS)
_M0, _M1 = np.uint64(rng.MULTIPLIER_0), np.uint64(rng.MULTIPLIER_1)
_W0, _W1 = np.uint64(rng.WEYL_0), np.uint64(rng.WEYL_1)
_NOISE, _PERMUTATION = np.uint64(rng.NOISE), np.uint64(rng.PERMUTATION)
_U0, _U12, _U32 = np.uint64(0), np.uint64(12), np.uint64(32)
_ROUNDS = rng.ROUNDS
_CENTRE_NUM, _CENTRE_DEN = rng.CENTRE_NUM, rng.CENTRE_DEN
_TAIL_NUM, _TAIL_DEN = rng.TAIL_NUM, rng.TAIL_DEN
_FAR_NUM, _FAR_DEN = rng.FAR_NUM, rng.FAR_DEN
_ATANH, _LN_2, _SQRT_HALF = rng.ATANH_SERIES, rng.LN_2, rng.SQRT_HALF


@_helper
def _philox(c0: Any, c1: Any, c2: Any, c3: Any, seed: Any) -> Any:
    k0, k1 = seed & _LOW, seed >> _U32
    for _ in range(_ROUNDS):
        product0 = _M0 * c0
        product1 = _M1 * c2
        c0, c1, c2, c3 = (product1 >> _U32) ^ c1 ^ k0, product1 & _LOW, (product0 >> _U32) ^ c3 ^ k1, product0 & _LOW
        k0 = (k0 + _W0) & _LOW
        k1 = (k1 + _W1) & _LOW
    return c0, c1, c2, c3


@_helper
def _polynomial(coefficients: Any, x: Any) -> Any:
    result = coefficients[-1]
    for k in range(len(coefficients) - 2, -1, -1):
        result = result * x + coefficients[k]
    return result


@_helper
def _log(x: Any) -> Any:
    m, e = math.frexp(x)
    if m < _SQRT_HALF:
        m, e = 2.0 * m, e - 1
    s = (m - 1.0) / (m + 1.0)
    return e * _LN_2 + 2.0 * s * _polynomial(_ATANH, s * s)


@_helper
def _uniform(high: Any, low: Any) -> Any:
    """Return reference.rng.uniform of the 64 bits high:low."""
    return (np.float64((high << _U32 | low) >> _U12) + 0.5) * 2.0**-52


@_helper
def _normal(u: Any) -> Any:
    """Return reference.rng.inverse_normal_cdf(u)."""
    q = u - 0.5
    if abs(q) <= 0.425:
        s = 0.180625 - q * q
        return q * _polynomial(_CENTRE_NUM, s) / _polynomial(_CENTRE_DEN, s)
    r = math.sqrt(-_log(u if q < 0.0 else 1.0 - u))
    if r <= 5.0:
        tail = _polynomial(_TAIL_NUM, r - 1.6) / _polynomial(_TAIL_DEN, r - 1.6)
    else:
        tail = _polynomial(_FAR_NUM, r - 5.0) / _polynomial(_FAR_DEN, r - 5.0)
    return -tail if q < 0.0 else tail


@_kernel(types.void(_I64_IN, _I64_IN, types.uint64, _F64_OUT))
def uniforms_into(env_ids: Any, steps: Any, seed: Any, out: Any) -> None:
    """Fill out (n, dim); see :func:`ppo_fast.reference.uniforms`."""
    rows, dim = out.shape
    for i in range(rows):
        env, step = np.uint64(env_ids[i]), np.uint64(steps[i])
        for j in range((dim + 1) // 2):
            w0, w1, w2, w3 = _philox(np.uint64(j), step & _LOW, env, _NOISE | step >> _U32, seed)
            out[i, 2 * j] = _uniform(w1, w0)
            if 2 * j + 1 < dim:
                out[i, 2 * j + 1] = _uniform(w3, w2)


@_kernel(types.void(_I64_IN, _I64_IN, types.uint64, _F64_OUT))
def normals_into(env_ids: Any, steps: Any, seed: Any, out: Any) -> None:
    """Fill out (n, dim); see :func:`ppo_fast.reference.normals`."""
    rows, dim = out.shape
    for i in range(rows):
        env, step = np.uint64(env_ids[i]), np.uint64(steps[i])
        for j in range((dim + 1) // 2):
            w0, w1, w2, w3 = _philox(np.uint64(j), step & _LOW, env, _NOISE | step >> _U32, seed)
            out[i, 2 * j] = _normal(_uniform(w1, w0))
            if 2 * j + 1 < dim:
                out[i, 2 * j + 1] = _normal(_uniform(w3, w2))


@_kernel(types.void(_I64_OUT, types.uint64, types.uint64))
def permutation_into(out: Any, seed: Any, stream: Any) -> None:
    """Fill out (n,); see :func:`ppo_fast.reference.permutation`."""
    n = len(out)
    for i in range(n):
        out[i] = i
    words = np.empty(4, np.uint64)
    taken = 4
    block = 0
    for i in range(n - 1, 0, -1):
        bound = np.uint64(i + 1)
        reject_below = (_LOW + np.uint64(1)) % bound
        while True:
            if taken == 4:
                words[0], words[1], words[2], words[3] = _philox(
                    np.uint64(block), stream & _LOW, _U0, _PERMUTATION | stream >> _U32, seed
                )
                block += 1
                taken = 0
            product = words[taken] * bound
            taken += 1
            if product & _LOW >= reject_below:
                break
        j = np.int64(product >> _U32)
        out[i], out[j] = out[j], out[i]


@_kernel(types.void(_F32_IN, _F32_IN, _F32_IN, _BOOL_IN, _BOOL_IN, types.float64, types.float64, _F32_OUT, _F32_OUT))
def gae_into(
    rewards: Any,
    values: Any,
    next_values: Any,
    terminated: Any,
    done: Any,
    gamma: Any,
    gae_lambda: Any,
    advantages: Any,
    returns: Any,
) -> None:
    """Fill advantages and returns (T, N); see :func:`ppo_fast.reference.gae`."""
    num_steps, num_envs = rewards.shape
    discount, decay = np.float32(gamma), np.float32(gamma * gae_lambda)
    for t in range(num_steps - 1, -1, -1):
        for n in range(num_envs):
            advantage_tp1 = advantages[t + 1, n] if t + 1 < num_steps else np.float32(0.0)
            cut = rewards[t, n] - values[t, n]
            bootstrapped = (rewards[t, n] + discount * next_values[t, n]) - values[t, n]
            delta = cut if terminated[t, n] else bootstrapped
            summed = delta + decay * advantage_tp1
            advantage = delta if done[t, n] else summed
            advantages[t, n] = advantage
            returns[t, n] = advantage + values[t, n]


@_kernel(types.void(_F32_IN, _I64_IN, _F32_OUT))
def gather_into(source: Any, index: Any, out: Any) -> None:
    """Fill out (M, D) with source[index]."""
    for m in range(len(index)):
        for d in range(source.shape[1]):
            out[m, d] = source[index[m], d]


@_kernel(
    types.void(_F64_VECTOR, _F64_VECTOR, _F64_VECTOR, _F32_IN, _MASK_IN),
    types.void(_F64_VECTOR, _F64_VECTOR, _F64_VECTOR, _F64_IN, _MASK_IN),
)
def moments_into(count: Any, mean: Any, m2: Any, rows: Any, valid: Any) -> None:
    """Merge the valid rows; see :func:`ppo_fast.reference.update_moments`."""
    num_rows, dim = rows.shape
    n = 0.0
    batch_mean = np.zeros(dim)
    batch_m2 = np.zeros(dim)
    for b in range(num_rows):
        if valid[b]:
            n += 1.0
            for d in range(dim):
                batch_mean[d] += np.float64(rows[b, d])
    if n == 0.0:
        return
    for d in range(dim):
        batch_mean[d] /= n
    for b in range(num_rows):
        if valid[b]:
            for d in range(dim):
                deviation = np.float64(rows[b, d]) - batch_mean[d]
                batch_m2[d] += deviation * deviation
    total = count[0] + n
    weight = n / total
    for d in range(dim):
        delta = batch_mean[d] - mean[d]
        mean[d] += delta * weight
        m2[d] += batch_m2[d] + delta * delta * (count[0] * weight)
    count[0] = total
