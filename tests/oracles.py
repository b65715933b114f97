"""Independent truth for the tests: from definitions, in float64, sharing no code and no recursion with the package."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]


def gae_oracle(
    rewards: Any, values: Any, next_values: Any, terminated: Any, done: Any, *, gamma: float, gae_lambda: float
) -> Float64:
    """Return the advantages as GAE was first defined: the exponentially weighted mean of k-step advantages.

        A^(k)_t = r_t + γ r_{t+1} + ... + γ^(k-1) r_{t+k-1} + γ^k V(s_{t+k}) − V(s_t)
        A_t = (1 − λ) Σ_{k=1}^{K-1} λ^(k-1) A^(k)_t + λ^(K-1) A^(K)_t,   K = steps left in the episode or rollout

    V after a termination is 0; the last k-step advantage gets the weight of all the longer ones, which do not exist. It
    is equal to the sum of TD errors when V(s_{t+1}) seen from t is V(s_{t+1}) seen from t+1, as within an episode.

    Source: Schulman et al., arXiv:1506.02438, equations 15 and 16.
    """
    rewards, values, next_values = (np.asarray(x, np.float64) for x in (rewards, values, next_values))
    num_steps, num_envs = rewards.shape
    advantages = np.empty((num_steps, num_envs))
    for n in range(num_envs):
        for t in range(num_steps):
            ends = np.flatnonzero(done[t:, n])
            last = t + int(ends[0]) if len(ends) else num_steps - 1
            steps_left = last - t + 1
            k_step = []
            discounted_rewards = 0.0
            for k in range(1, steps_left + 1):
                at = t + k - 1
                discounted_rewards += gamma ** (k - 1) * rewards[at, n]
                bootstrap = 0.0 if terminated[at, n] else gamma**k * next_values[at, n]
                k_step.append(discounted_rewards + bootstrap - values[t, n])
            weights = [(1 - gae_lambda) * gae_lambda ** (k - 1) for k in range(1, steps_left)]
            weights.append(gae_lambda ** (steps_left - 1))
            advantages[t, n] = sum(w * a for w, a in zip(weights, k_step, strict=True))
    return advantages


def gae_error_bound(
    rewards: Any, values: Any, next_values: Any, done: Any, *, gamma: float, gae_lambda: float, unit_roundoff: float
) -> Float64:
    """Bound the rounding error of a GAE sweep: (roundings a term passes through) × unit roundoff × Σ |terms|.

    A term of A_t that comes from step t + l passes 3 roundings inside δ, and per step back one of the product with γλ
    (plus that of γλ itself) and one of the sum: at most 4 + 3 T. Twice that covers the second order.

    Source: Higham, Accuracy and Stability of Numerical Algorithms, section 3.1.
    """
    rewards, values, next_values = (np.abs(np.asarray(x, np.float64)) for x in (rewards, values, next_values))
    size = rewards + gamma * next_values + values
    for t in range(len(size) - 2, -1, -1):
        size[t] += np.where(done[t], 0.0, gamma * gae_lambda * size[t + 1])
    return 2 * (4 + 3 * len(size)) * unit_roundoff * size


def moments_oracle(rows: Any, valid: Any) -> tuple[Float64, Float64]:
    """Return mean and sum of squared deviations of the valid rows, in extended precision where the machine has it."""
    counted = np.asarray(rows)[valid].astype(np.longdouble)
    mean = counted.mean(axis=0)
    return mean.astype(np.float64), ((counted - mean) ** 2).sum(axis=0).astype(np.float64)
