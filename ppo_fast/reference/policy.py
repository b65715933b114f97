"""The networks, and the two kinds of policy that their output can mean.

M rows · D observation · A actions at once · K actions to choose one from.
"""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from . import losses
from .rng import normals, uniforms

ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU, "elu": nn.ELU, "silu": nn.SiLU}


class ActorCritic(nn.Module):
    """A policy and a value: two networks, or two linear heads on hidden layers that they share.

    What the actor returns, the *head*, is the mean (M, A) of a diagonal Gaussian whose σ is the same in every state;
    or, with ``num_actions`` K, the logits (M, K) of a choice. An action (M, 1) is then the index of what was chosen.
    """

    def __init__(
        self,
        obs_dim: int,
        act_dim: int,
        log_std_init: float,
        seed: int,
        *,
        hidden_sizes: tuple[int, ...] = (64, 64),
        activation: str = "tanh",
        shared_trunk: bool = False,
        num_actions: int = 0,
    ) -> None:
        super().__init__()
        self.num_actions = num_actions

        def hidden(wanted: bool) -> list[nn.Module]:
            pairs = itertools.pairwise((obs_dim, *hidden_sizes)) if wanted else ()
            return [layer for n_in, n_out in pairs for layer in (nn.Linear(n_in, n_out), ACTIVATIONS[activation]())]

        self.trunk = nn.Sequential(*hidden(shared_trunk))  # empty, it returns what it is given
        self.actor = nn.Sequential(*hidden(not shared_trunk), nn.Linear(hidden_sizes[-1], num_actions or act_dim))
        self.critic = nn.Sequential(*hidden(not shared_trunk), nn.Linear(hidden_sizes[-1], 1))
        if not num_actions:
            self.log_std = nn.Parameter(torch.full((act_dim,), log_std_init))
        generator = torch.Generator().manual_seed(seed)
        for network, last_gain in ((self.trunk, np.sqrt(2)), (self.actor, 0.01), (self.critic, 1.0)):
            linears = [layer for layer in network if isinstance(layer, nn.Linear)]
            for layer in linears:
                gain = last_gain if layer is linears[-1] else np.sqrt(2)
                nn.init.orthogonal_(layer.weight, gain, generator=generator)
                nn.init.zeros_(layer.bias)

    def forward(self, norm_obs: Tensor) -> tuple[Tensor, Tensor]:
        """Return the head and the value (M,) of normalised observations (M, D)."""
        hidden = self.trunk(norm_obs)
        return self.actor(hidden), self.critic(hidden)[..., 0]

    def log_prob(self, head: Tensor, actions: Tensor) -> Tensor:
        """Return log π(a|s) of actions (M, A), (M,)."""
        if self.num_actions:
            return losses.categorical_log_prob(head, actions[:, 0].long())
        return losses.gaussian_log_prob(head, self.log_std, actions)

    def entropy(self, head: Tensor) -> Tensor:
        """Return the mean entropy of the policy over these rows, a scalar."""
        return losses.categorical_entropy(head).mean() if self.num_actions else losses.gaussian_entropy(self.log_std)

    def sample(self, head: Tensor, seed: int, step: int) -> Tensor:
        """Draw the actions (N, A) of environments 0 ... N − 1 at this step; they depend on nothing else."""
        names = np.arange(len(head)), np.full(len(head), step)
        if self.num_actions:
            return choose(head, uniforms(seed, *names, 1))
        noise = normals(seed, *names, head.shape[1])
        return head + torch.exp(self.log_std) * torch.from_numpy(noise.astype(np.float32))

    def mode(self, head: Tensor) -> Tensor:
        """Return the most likely action; of several, the first."""
        return head.argmax(dim=-1, keepdim=True).float() if self.num_actions else head


def choose(logits: Tensor, u: npt.NDArray[np.float64]) -> Tensor:
    """Draw from a categorical distribution by inverting it: walk along the actions until u of the weight is passed.

        w_k = exp(l_k − max l),   c_k = w_0 + ... + w_k,   a = #{k < K − 1 : c_k <= u c_{K−1}}

    Args:
        logits: (N, K).
        u: (N, 1) float64, uniform in (0, 1).

    Returns:
        (N, 1) float32, indices in 0 ... K − 1.
    """
    weights = torch.exp(logits - logits.max(dim=1, keepdim=True).values).numpy()
    sums = np.cumsum(weights, axis=1)  # one after another, in float32
    passed = sums[:, :-1] <= u * sums[:, -1:].astype(np.float64)
    return torch.from_numpy(passed.sum(axis=1, keepdims=True).astype(np.float32))
