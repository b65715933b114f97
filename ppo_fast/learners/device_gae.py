"""Generalised advantage estimation on the learner's device, for an update that never comes back to the host.

Axes: T steps · N envs.
"""

from __future__ import annotations

import torch
from torch import Tensor


def gae(
    rewards: Tensor,
    values: Tensor,
    next_values: Tensor,
    terminated: Tensor,
    done: Tensor,
    *,
    gamma: float,
    gae_lambda: float,
) -> tuple[Tensor, Tensor]:
    """Compute what :func:`ppo_fast.kernels.gae` computes, with the same roundings, without waiting for the device.

        δ_t = r_t + γ · V(s_{t+1}) − V(s_t)        without the V(s_{t+1}) term where terminated_t
        A_t = δ_t + γλ · A_{t+1}                   without the A_{t+1} term where done_t,     A_T = 0
        R_t = A_t + V(s_t)

    Args:
        rewards: (T, N) float32, like ``values`` and ``next_values``.
        values: V(s_t).
        next_values: V(s_{t+1}) of the same episode.
        terminated: (T, N) bool, like ``done``.
        done: terminated or truncated.
        gamma: γ, rounded once to float32.
        gae_lambda: λ; the product γλ is rounded once to float32.

    Returns:
        advantages and returns, (T, N) float32.

    Source: Schulman et al., arXiv:1506.02438, section 3. Time limits: Pardo et al., arXiv:1712.00378.
    """
    # A sweep, not a scan in log T steps: a scan rounds in another order, and T small kernels cost little in a graph.
    delta = torch.where(terminated, rewards - values, (rewards + gamma * next_values) - values)
    decay = gamma * gae_lambda
    advantages = torch.empty_like(delta)
    advantage = delta.new_zeros(delta.shape[1])
    for t in reversed(range(len(delta))):
        advantage = torch.where(done[t], delta[t], delta[t] + decay * advantage)
        advantages[t] = advantage
    return advantages, advantages + values
