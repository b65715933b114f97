"""What the algorithms share that fit the critic on its own and then improve the policy in a single step.

Axes: B rows · V rows that count · D observation · A action · P parameters.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ppo_fast.batch import Float32, Rollout
from ppo_fast.config import Config
from ppo_fast.learners.ppo_base import PPOLearner
from ppo_fast.models import ActorCritic, Categorical, Gaussian


class Rows(NamedTuple):
    """The rows of a rollout that count, on the learner's device."""

    norm_obs: Tensor  # (V, D)
    actions: Tensor  # (V, A)
    log_probs: Tensor  # (V,) log π_old(a|s)
    weights: Tensor  # (V,) what log π(a|s) is weighted with: advantages, normalised if asked for


class SeparateLearner(ABC):
    """Fit the critic by Adam for several epochs, then make one step of the policy on the whole batch.

    The critic is fitted by the PPO learner, on whatever that runs on: with advantages of 0 its surrogate has no
    gradient, so what moves is the critic alone, and the moments of the policy's parameters stay 0.

    Args:
        critic: a PPO learner under :func:`critic_config`; its flat vector is the one of this learner.
        cfg: the run's options.
    """

    def __init__(self, critic: PPOLearner, cfg: Config) -> None:
        self.critic, self.cfg, self.model = critic, cfg, critic.model
        self.name, self.mode, self.why_eager = critic.name, critic.mode, critic.why_eager
        self.compile_s, self.simd, self.threads = critic.compile_s, critic.simd, critic.threads
        self.flat = critic.flat

    def set_progress(self, progress: float, lr_scale: float = 1.0) -> None:
        """Set the critic's learning rate: ``lr · lr_scale``, times ``1 − progress`` when annealed."""
        self.critic.set_progress(progress, lr_scale)

    def update(self, rollout: Rollout) -> dict[str, float]:
        """Fit the critic, then improve the policy, both with what the old critic said of the rollout.

        Raises:
            ShapeError: an array of the rollout is not as ``cfg`` and the model say, or an action of a valid row is no
                index of a categorical policy.
        """
        batch = self.critic.stage(self._weighted(rollout))
        fitted = self.critic.learn({**batch, "advantages": np.zeros_like(batch["advantages"])})
        rows = self._rows(batch)
        improved = self._improve(rows) if len(rows.weights) else self._nothing()
        kept = ("value_loss", "grad_norm", "learning_rate", "epochs")
        return {**improved, **{name: fitted[name] for name in kept}}

    def _weighted(self, rollout: Rollout) -> Rollout:
        """Return the rollout with the policy's weights in place of its advantages."""
        return rollout

    @abstractmethod
    def _improve(self, rows: Rows) -> dict[str, float]:
        """Make the policy's step on ``flat`` and return its metrics, those of :meth:`_nothing`."""

    @abstractmethod
    def _nothing(self) -> dict[str, float]:
        """Return the metrics of no step."""

    def _rows(self, batch: dict[str, Float32]) -> Rows:
        chosen = torch.from_numpy(np.flatnonzero(batch["valid"]))

        def pick(name: str) -> Tensor:
            return torch.from_numpy(batch[name])[chosen].to(self.flat.device)

        return Rows(pick("norm_obs"), pick("actions"), pick("log_probs"), pick("advantages"))

    # --- state -------------------------------------------------------------------------------------------------------
    def state(self) -> dict[str, Tensor]:
        """Return the critic's optimizer state and counters by name, all on the CPU."""
        return self.critic.state()

    def load(self, state: dict[str, Tensor]) -> None:
        """Restore what :meth:`state` returned.

        Raises:
            ShapeError: a tensor is not as it must be.
        """
        self.critic.load(state)

    def is_finite(self) -> bool:
        """Return whether every parameter and every moment is finite; waits for the device."""
        return self.critic.is_finite()


def policy_of(model: ActorCritic, flat: Tensor, norm_obs: Tensor) -> Gaussian | Categorical:
    """Return the distributions over actions in the states ``norm_obs`` (V, D) under the parameters ``flat`` (P,)."""
    params = model.params(flat)
    return model.policy(model.head(params, norm_obs), params.log_std)
