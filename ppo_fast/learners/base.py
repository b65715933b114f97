"""What the trainer asks of an update rule."""

from __future__ import annotations

from typing import Protocol

import torch

from ppo_fast.batch import Rollout
from ppo_fast.models import ActorCritic


class Learner(Protocol):
    """Own the flat parameter vector and improve it from rollouts."""

    name: str  # as in --learner
    mode: str  # how a step of Adam runs, for the banner and the log
    why_eager: str
    compile_s: float
    simd: str | None
    threads: int
    model: ActorCritic
    flat: torch.Tensor  # (P,) float32 on the learner's device, updated in place

    def set_progress(self, progress: float, lr_scale: float = 1.0) -> None:
        """Set the schedules for ``progress`` in [0, 1] of the run, and multiply the length of steps by ``lr_scale``."""

    def update(self, rollout: Rollout) -> dict[str, float]:
        """Improve ``flat`` on one rollout and return its metrics."""

    def state(self) -> dict[str, torch.Tensor]:
        """Return optimizer state and counters by name, all on the CPU."""

    def load(self, state: dict[str, torch.Tensor]) -> None:
        """Restore what :meth:`state` returned.

        Raises:
            ShapeError: a tensor is not as it must be.
        """

    def is_finite(self) -> bool:
        """Return whether every parameter and every moment of the optimizer is finite; waits for the device."""
