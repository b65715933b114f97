"""Generalised advantage estimation, twice: as the backward sweep that runs, and as the sum that defines it.

T steps · N envs. ``terminated`` says that the world ended, so there is no value beyond; ``done`` says that the record
of this episode ends here, for whatever reason. A time limit is done without being terminated: the sum stops, the value
of the final state stays.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]
Bools = npt.NDArray[np.bool_]


def gae(
    rewards: Floats,
    values: Floats,
    next_values: Floats,
    terminated: Bools,
    done: Bools,
    *,
    gamma: float,
    gae_lambda: float,
) -> tuple[Floats, Floats]:
    """Compute advantages and value targets, sweeping backwards in time.

        δ_t = r_t + γ · V(s_{t+1}) − V(s_t)        without the V(s_{t+1}) term where terminated_t
        A_t = δ_t + γλ · A_{t+1}                   without the A_{t+1} term where done_t,     A_T = 0
        R_t = A_t + V(s_t)

    Terms are left out, never multiplied by zero: 0 × NaN is NaN.

    Args:
        rewards: (T, N) float32 or float64, reward of the transition t → t+1. All arithmetic is done in this dtype.
        values: (T, N) same dtype, V(s_t).
        next_values: (T, N) same dtype, V(s_{t+1}) of the same episode (of its final state where it ended).
        terminated: (T, N) bool, the episode reached a terminal state at t+1.
        done: (T, N) bool, the episode ended at t+1 (terminated or truncated).
        gamma: discount γ, rounded once to the dtype.
        gae_lambda: λ; the product γλ is formed in float64 and rounded once to the dtype.

    Returns:
        advantages and returns, (T, N) of the same dtype.

    Source: Schulman et al., arXiv:1506.02438, section 3. Time limits: Pardo et al., arXiv:1712.00378.
    """
    dtype = rewards.dtype.type
    discount, decay = dtype(gamma), dtype(gamma * gae_lambda)
    num_steps, num_envs = rewards.shape
    advantages = np.empty_like(rewards)
    returns = np.empty_like(rewards)
    with np.errstate(over="ignore", invalid="ignore"):  # rows that do not count may hold anything
        for n in range(num_envs):
            advantage_tp1 = dtype(0)
            for t in reversed(range(num_steps)):
                if terminated[t, n]:
                    delta = rewards[t, n] - values[t, n]
                else:
                    delta = (rewards[t, n] + discount * next_values[t, n]) - values[t, n]
                advantage = delta if done[t, n] else delta + decay * advantage_tp1
                advantages[t, n] = advantage
                returns[t, n] = advantage + values[t, n]
                advantage_tp1 = advantage
    return advantages, returns


def gae_from_definition(
    rewards: Floats,
    values: Floats,
    next_values: Floats,
    terminated: Bools,
    done: Bools,
    *,
    gamma: float,
    gae_lambda: float,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Compute the same in float64 from the definition, a sum over the future of each step: O(T²), to learn from.

        A_t = Σ_{l ≥ 0} (γλ)^l δ_{t+l},     up to and including the first done, or the end of the rollout

    Arguments and results as in :func:`gae`, whatever the inputs' dtype.

    Source: Schulman et al., arXiv:1506.02438, equation 16.
    """
    rewards, values, next_values = (np.asarray(x, dtype=np.float64) for x in (rewards, values, next_values))
    num_steps, num_envs = rewards.shape
    bootstrap = np.where(terminated, 0.0, next_values)
    delta = rewards + gamma * bootstrap - values
    advantages = np.zeros((num_steps, num_envs))
    for t in range(num_steps):
        for n in range(num_envs):
            for k in range(t, num_steps):
                advantages[t, n] += (gamma * gae_lambda) ** (k - t) * delta[k, n]
                if done[k, n]:
                    break
    return advantages, advantages + values
