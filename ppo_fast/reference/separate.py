"""What REINFORCE and TRPO share: a critic that is fitted on its own.

V rows that count.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from . import losses
from .on_policy import OnPolicy, Rows, Settings


@dataclass(frozen=True)
class SeparateSettings(Settings):
    """Options of the algorithms that fit the critic on its own."""

    learning_rate: float = 1e-3  # the critic's
    critic_epochs: int = 20  # passes over the batch


class PolicyAndCritic(OnPolicy):
    """A critic that is fitted on its own, and a policy with parameters of its own."""

    def __init__(self, settings: SeparateSettings) -> None:
        super().__init__(settings)
        self.policy_parameters = list(self.net.actor.parameters())
        if not self.num_actions:
            self.policy_parameters.append(self.net.log_std)
        self.critic_optimizer = torch.optim.Adam(self.net.critic.parameters(), lr=settings.learning_rate, eps=1e-5)

    def fit_critic(self, rows: Rows) -> None:
        """Descend on ½ mean((V − R)²) for critic_epochs passes over shuffled minibatches."""
        for group in self.critic_optimizer.param_groups:
            group["lr"] = self.annealed(self.settings.learning_rate)
        for _ in range(self.settings.critic_epochs):
            for chosen in self.minibatches(rows):
                _, values = self.net(chosen["norm_obs"])
                self.descend(self.critic_optimizer, losses.value_loss(values, chosen["returns"]))

    def log_prob(self, rows: Rows) -> Tensor:
        """Return log π(a|s), (V,)."""
        head, _ = self.net(rows["norm_obs"])
        return self.net.log_prob(head, rows["actions"])
