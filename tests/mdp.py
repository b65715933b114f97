"""A Markov decision process so small that its episodes can be written down, and with them the exact policy gradient.

S states · K actions · H steps of an episode · n episodes.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

NUM_STATES, NUM_ACTIONS, HORIZON = 3, 2, 3


@dataclass
class Episodes:
    """Every episode that can happen, n of them, H steps each."""

    states: NDArray[np.int64]  # (n, H)
    actions: NDArray[np.int64]  # (n, H)
    rewards: NDArray[np.float64]  # (n, H)


@dataclass
class TinyMDP:
    """Random transitions and rewards, these around ``offset``; policy π(a|s) = softmax(θ[s])."""

    seed: int
    offset: float = 0.0
    first: NDArray[np.float64] = field(init=False)  # (S,)
    transition: NDArray[np.float64] = field(init=False)  # (S, K, S)
    reward: NDArray[np.float64] = field(init=False)  # (S, K)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        self.first = rng.dirichlet(np.ones(NUM_STATES))
        self.transition = rng.dirichlet(np.ones(NUM_STATES), size=(NUM_STATES, NUM_ACTIONS))
        self.reward = self.offset + rng.normal(size=(NUM_STATES, NUM_ACTIONS))

    def episodes(self) -> Episodes:
        """Return all of them: (S K)^H."""
        paths = np.array(list(itertools.product(range(NUM_STATES), range(NUM_ACTIONS), repeat=HORIZON)))
        states, actions = paths[:, ::2], paths[:, 1::2]
        return Episodes(states, actions, self.reward[states, actions])

    def log_probs(self, theta: Tensor, e: Episodes) -> Tensor:
        """Return log π(a|s) of every step, (n, H)."""
        return torch.log_softmax(theta, 1)[torch.from_numpy(e.states), torch.from_numpy(e.actions)]

    def probability(self, theta: Tensor, e: Episodes) -> Tensor:
        """Return how likely each episode is, (n,): differentiable by θ."""
        world = self.first[e.states[:, 0]].copy()
        for t in range(HORIZON - 1):
            world *= self.transition[e.states[:, t], e.actions[:, t], e.states[:, t + 1]]
        return torch.from_numpy(world) * self.log_probs(theta, e).sum(1).exp()

    def gradient(self, theta: Tensor, gamma: float) -> NDArray[np.float64]:
        """Return ∇J by differentiating J(θ) = Σ_τ p_θ(τ) R(τ), (S, K): no policy gradient theorem in it."""
        e, leaf = self.episodes(), theta.clone().requires_grad_()
        returns = torch.from_numpy(e.rewards @ gamma ** np.arange(HORIZON))
        objective = (self.probability(leaf, e) * returns).sum()
        return torch.autograd.grad(objective, leaf)[0].numpy()

    def values(self, theta: Tensor, gamma: float) -> NDArray[np.float64]:
        """Return V(s) with h = H, H−1, ..., 1, 0 steps to go, (H + 1, S), last row 0."""
        policy = torch.softmax(theta, 1).numpy()
        out = np.zeros((HORIZON + 1, NUM_STATES))
        for t in reversed(range(HORIZON)):
            out[t] = (policy * (self.reward + gamma * self.transition @ out[t + 1])).sum(1)
        return out
