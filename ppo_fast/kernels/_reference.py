"""The kernels as the specification itself: slow, always there."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import reference
from ..reference import update_moments as moments_into

__all__ = ["gae_into", "gather_into", "moments_into", "normals_into", "permutation_into", "uniforms_into"]


def gae_into(
    rewards: Any,
    values: Any,
    next_values: Any,
    terminated: Any,
    done: Any,
    gamma: float,
    gae_lambda: float,
    advantages: Any,
    returns: Any,
) -> None:
    """Fill advantages and returns; see :func:`ppo_fast.reference.gae`."""
    advantages[...], returns[...] = reference.gae(
        rewards, values, next_values, terminated, done, gamma=gamma, gae_lambda=gae_lambda
    )


def permutation_into(out: Any, seed: int, stream: int) -> None:
    """Fill out; see :func:`ppo_fast.reference.permutation`."""
    out[...] = reference.permutation(len(out), seed, stream)


def gather_into(source: Any, index: Any, out: Any) -> None:
    """Fill out with source[index]."""
    np.take(source, index, axis=0, out=out, mode="clip")  # "clip" writes to out directly; the front checked the range


def normals_into(env_ids: Any, steps: Any, seed: int, out: Any) -> None:
    """Fill out; see :func:`ppo_fast.reference.normals`."""
    out[...] = reference.normals(seed, env_ids, steps, out.shape[1])


def uniforms_into(env_ids: Any, steps: Any, seed: int, out: Any) -> None:
    """Fill out; see :func:`ppo_fast.reference.uniforms`."""
    out[...] = reference.uniforms(seed, env_ids, steps, out.shape[1])
