"""Proximal Policy Optimisation: several passes of gradient steps over a rollout, on an objective that stops to pay.

    L = −L^CLIP + c₁ · L^VF − c₂ · H

The formulas themselves are in ``losses``; acting and judging are in ``on_policy``.

Source: Schulman et al., arXiv:1707.06347.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from . import losses
from .on_policy import Array, OnPolicy, Rows
from .on_policy import Settings as Common


@dataclass(frozen=True)
class Settings(Common):
    """Options of PPO; names and meanings are those of ``ppo_fast.train``."""

    update_epochs: int = 10
    recompute_adv: bool = False
    clip_coef: float = 0.2
    ent_coef: float = 0.0
    vf_coef: float = 0.5
    target_kl: float | None = None
    adaptive_kl: float | None = None
    shared_trunk: bool = False


class PPO(OnPolicy):
    """Proximal Policy Optimisation, written to be read."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings, shared_trunk=settings.shared_trunk)
        self.rate = settings.learning_rate
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=settings.learning_rate, eps=1e-5)

    def improve(self, batch: dict[str, Array]) -> dict[str, float]:
        """Take update_epochs passes of gradient steps over shuffled minibatches of the rows that count."""
        s = self.settings
        for group in self.optimizer.param_groups:
            group["lr"] = self.annealed(self.rate)
        rows, kl = self.rows(batch), 0.0
        for epoch in range(s.update_epochs):
            if s.recompute_adv and epoch > 0:
                rows |= self.judge_again(batch)
            weighted, count = 0.0, 0
            for chosen in self.minibatches(rows):
                size = len(chosen["valid"])
                weighted += size * self.minibatch(chosen)
                count += size
            kl = weighted / max(count, 1)
            if s.target_kl is not None and kl > s.target_kl:
                break
        self.adapt(kl)
        return {"approx_kl": kl}

    @torch.no_grad()
    def judge_again(self, batch: dict[str, Array]) -> Rows:
        """Return advantages and value targets as the critic sees them by now, as B rows."""
        last = self.obs_normalizer(self.obs)[None]  # the statistics have not moved since the rollout
        norm_obs = np.concatenate([batch["norm_obs"], last])
        values = self.net(torch.from_numpy(norm_obs))[1].numpy()
        again = {**batch, "values": values}
        self.estimate(again)
        return {key: value for key, value in self.rows(again).items() if key in ("advantages", "returns")}

    def adapt(self, kl: float) -> None:
        """Lower the learning rate after an update whose last pass found KL twice its target, raise it at half of it."""
        target = self.settings.adaptive_kl
        if target is not None:
            factor = 1 / 1.5 if kl > 2 * target else 1.5 if kl < target / 2 else 1
            self.rate = min(max(self.rate * factor, 1e-6), 1e-2)

    def minibatch(self, rows: Rows) -> float:
        """Take one gradient step; return the mean KL of these rows before it."""
        loss, kl = self.loss(rows)
        self.descend(self.optimizer, loss)
        return float(kl)

    def loss(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Compute −L^CLIP + vf_coef · L^VF − ent_coef · H and the mean KL, on rows that all count."""
        s = self.settings
        head, values = self.net(rows["norm_obs"])
        log_ratio = self.net.log_prob(head, rows["actions"]) - rows["log_probs"]
        advantages = losses.normalize_advantages(rows["advantages"])
        objective = losses.clipped_surrogate(torch.exp(log_ratio), advantages, s.clip_coef)
        value = losses.value_loss(values, rows["returns"])
        loss = -objective + s.vf_coef * value - s.ent_coef * self.net.entropy(head)
        return loss, losses.approx_kl(log_ratio.detach())
