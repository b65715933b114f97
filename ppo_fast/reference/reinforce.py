"""REINFORCE: make an action more likely in proportion to what came of it.

    ∇J(θ) = E[ Σ_t Ψ_t ∇ log π_θ(a_t|s_t) ],    θ ← θ + α ∇J(θ)

with one of three weights Ψ, each with the same mean gradient as the one before and less noise:

    total_return    Ψ_t = R(τ) = Σ_k γ^k r_k              everything that happened in the episode
    reward_to_go    Ψ_t = R̂_t = Σ_{k ≥ t} γ^{k−t} r_k     what happened since: an action cannot change the past
    advantage       Ψ_t = R̂_t − V(s_t)                    how much better than expected

With γ < 1 the second drops a factor γ^t, as everyone does: the far future of an episode would hardly be learned from.
An episode that the rollout cuts off goes on with the critic's opinion of where it was cut, γ^k V(s_k).

Source: Williams, Machine Learning 8 (1992) 229; the weights: Schulman et al., arXiv:1506.02438, §2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from . import losses
from .on_policy import Array
from .separate import PolicyAndCritic, SeparateSettings

Weight = Literal["total_return", "reward_to_go", "advantage"]


@dataclass(frozen=True)
class Settings(SeparateSettings):
    """Options of REINFORCE; names and meanings are those of ``ppo_fast.train``."""

    policy_lr: float = 3e-3
    policy_weight: Weight = "advantage"
    normalize: bool = True  # Ψ to mean 0 and standard deviation 1 over the rollout, which is a baseline as well


def policy_gradient_loss(log_probs: Tensor, weights: Tensor) -> Tensor:
    """Return −mean(Ψ log π(a|s)); its gradient is the policy gradient's estimate, negated.

    The mean is over steps, where the textbook's is over episodes: a factor that the learning rate absorbs.

    Args:
        log_probs: (V,) log π(a|s), differentiable.
        weights: (V,) Ψ, constants.
    """
    return -(weights * log_probs).mean()


def rewards_to_go(rewards: Array, next_values: Array, terminated: Array, done: Array, gamma: float) -> Array:
    """Sum up the discounted rewards from each step to the end of its episode, or to where the record ends.

        R̂_t = r_t + γ R̂_{t+1},   R̂_{t+1} = 0 after a terminal state, V(s_{t+1}) at a time limit or the rollout's end

    Args:
        rewards: (T, N).
        next_values: (T, N) V(s_{t+1}).
        terminated: (T, N) bool.
        done: (T, N) bool, terminated or cut by a time limit.
        gamma: γ.

    Returns:
        (T, N).
    """
    to_go = np.zeros_like(rewards)
    beyond = next_values[-1]
    for t in reversed(range(len(rewards))):
        beyond = np.where(done[t], next_values[t], beyond)
        beyond = np.where(terminated[t], 0.0, beyond)
        to_go[t] = rewards[t] + gamma * beyond
        beyond = to_go[t]
    return to_go


def total_returns(to_go: Array, starts: Array) -> Array:
    """Return for every step the discounted reward of its whole episode: the reward-to-go of the episode's first step.

    Args:
        to_go: (T, N).
        starts: (T, N) bool, where a new episode, or the record of it, begins.
    """
    totals = to_go.copy()
    for t in range(1, len(to_go)):
        totals[t] = np.where(starts[t], to_go[t], totals[t - 1])
    return totals


class Reinforce(PolicyAndCritic):
    """REINFORCE, written to be read, with Adam for the ascent."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.policy_optimizer = torch.optim.Adam(self.policy_parameters, lr=settings.policy_lr, eps=1e-5)

    def improve(self, batch: dict[str, Array]) -> dict[str, float]:
        """Take one step along the policy gradient, weighted by what the critic said before, and fit the critic."""
        s = self.settings
        batch["advantages"] = self.weights(batch)
        rows = self.rows(batch)
        counting = {key: value[rows["valid"]] for key, value in rows.items()}
        weights = counting["advantages"]
        if s.normalize:
            weights = losses.normalize_advantages(weights)
        self.fit_critic(rows)
        for group in self.policy_optimizer.param_groups:
            group["lr"] = self.annealed(s.policy_lr)
        self.descend(self.policy_optimizer, policy_gradient_loss(self.log_prob(counting), weights))
        with torch.no_grad():
            log_ratio = self.log_prob(counting) - counting["log_probs"]
        return {"approx_kl": float(losses.approx_kl(log_ratio))}

    def weights(self, batch: dict[str, Array]) -> Array:
        """Return Ψ of every step, (T, N)."""
        kind = self.settings.policy_weight
        if kind == "advantage":  # GAE: with λ = 1 it is R̂ − V, with less it leans on the critic
            return batch["advantages"]
        next_values = batch["values"][1:]
        to_go = rewards_to_go(
            batch["scaled_rewards"], next_values, batch["terminated"], batch["done"], self.settings.gamma
        )
        starts = ~batch["valid"]  # a reset row, the next row begins an episode
        starts[1:] |= ~batch["valid"][:-1]
        return to_go if kind == "reward_to_go" else total_returns(to_go, starts)
