"""The arrays that one rollout hands to the learner.

Axes: T steps · N envs · D observation · A action.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Bool = NDArray[np.bool_]


def aligned_zeros(*shape: int) -> Float32:
    """Return zeros (``shape``) float32 that begin at a multiple of 64 bytes.

    The last bit of a BLAS product may depend on the alignment of what it reads, and NumPy's differs between processes.
    """
    size = math.prod(shape) * 4
    raw = np.zeros(size + 63, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(np.float32).reshape(shape)


@dataclass
class Rollout:
    """T steps of N environments under one frozen policy and frozen statistics.

    Row T of ``obs``, ``norm_obs`` and ``values_all`` is what the next rollout starts from; with next-step autoreset row
    t+1 after an end at t is the true final state of that episode, so V(s_{t+1}) needs no second forward pass.
    """

    obs: Float32  # (T+1, N, D) raw observation before the action at t
    norm_obs: Float32  # (T+1, N, D) normalised with the statistics that were acted on
    actions: Float32  # (T, N, A) sampled action, un-clipped, in policy units
    log_probs: Float32  # (T, N) log π(a|s) at sampling time
    rewards: Float32  # (T, N) raw reward of t → t+1; 0 on reset rows
    scaled_rewards: Float32  # (T, N) what the learner sees
    terminated: Bool  # (T, N)
    truncated: Bool  # (T, N)
    done: Bool  # (T, N) terminated or truncated
    valid: Bool  # (T, N) False on reset rows
    values_all: Float32  # (T+1, N) V(s_t)
    advantages: Float32 = field(init=False)  # (T, N)
    returns: Float32 = field(init=False)  # (T, N) advantages + values
    first_env: int = 0  # global index of environment 0, where processes share a run

    @classmethod
    def allocate(cls, num_steps: int, num_envs: int, obs_dim: int, act_dim: int, first_env: int = 0) -> Rollout:
        """Return a rollout of zeros; the arrays are reused by every rollout of a run."""
        t, n = num_steps, num_envs

        f32 = aligned_zeros

        def flag() -> Bool:
            return np.zeros((t, n), np.bool_)

        rollout = cls(
            obs=f32(t + 1, n, obs_dim),
            norm_obs=f32(t + 1, n, obs_dim),
            actions=f32(t, n, act_dim),
            log_probs=f32(t, n),
            rewards=f32(t, n),
            scaled_rewards=f32(t, n),
            terminated=flag(),
            truncated=flag(),
            done=flag(),
            valid=flag(),
            values_all=f32(t + 1, n),
            first_env=first_env,
        )
        rollout.advantages = f32(t, n)
        rollout.returns = f32(t, n)
        return rollout

    @property
    def values(self) -> Float32:
        """V(s_t), (T, N)."""
        return self.values_all[:-1]

    @property
    def next_values(self) -> Float32:
        """V(s_{t+1}) of the same episode, (T, N)."""
        return self.values_all[1:]

    @property
    def num_valid(self) -> int:
        """Real transitions: reset rows do not count."""
        return int(self.valid.sum())
