"""Real training loops as lanes: the trainer and the reference, each let go a few iterations at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from time import perf_counter
from typing import Any

import torch

from ppo_fast import native
from ppo_fast.config import DEFAULTS, Config
from ppo_fast.learners.ppo_base import PPOLearner
from ppo_fast.reference.ppo import PPO, Settings
from ppo_fast.rollout import Worker, make_worker
from ppo_fast.timing import PhaseTimer
from ppo_fast.trainer import Trainer

from ._measure import Lane, Paced, Sample


def how(learner: PPOLearner) -> str:
    """Say how a learner makes its steps, and what its compilation took if this session had not compiled it before."""
    if learner.mode != "compile":
        return learner.mode
    return f"compiled in {learner.compile_s:.1f} s" if learner.compile_s > 1.0 else "compiled before in this session"


class PacedTrainer(Paced):
    """A whole :class:`Trainer`, its sinks included, past its warm-up and its first iteration."""

    trainer: Trainer

    def __init__(self, cfg: Config) -> None:
        def run(report: Callable[[dict[str, Any]], None]) -> None:
            self.trainer = Trainer(cfg, [_Rows(report)])
            self.trainer.run()

        super().__init__(run)

    def actors(self) -> list[str]:
        """Return the actors that can be had here, the fastest first."""
        return ["torch"] if native.lacks(self.trainer.model) else ["native", "torch"]

    def worker(self, actor: str, **options: Any) -> Worker:
        """Return a worker with environments of its own, at their first reset, and the trainer's policy.

        Args:
            actor: ``native`` or ``torch``.
            options: of the run that are to differ, as ``num_envs``.
        """
        t = self.trainer
        cfg = dataclasses.replace(t.cfg, **options)
        return make_worker(cfg, actor, t.model, t.normalizer, t.device, PhaseTimer())


def rollouts(worker: Worker, flat: torch.Tensor, number: int) -> Lane:
    """Return a lane of that many rollouts under the parameters ``flat``, and nothing learned from them."""

    def run() -> Sample:
        worker.timer.take()
        start = perf_counter()
        env_steps = sum(worker.collect(flat).num_valid for _ in range(number))
        return Sample(env_steps, perf_counter() - start, worker.timer.take())

    return run


class PacedReference(Paced):
    """The whole reference trainer, past its warm-up and its first iteration."""

    def __init__(self, cfg: Config) -> None:
        def run(report: Callable[[dict[str, Any]], None]) -> None:
            torch.set_num_threads(1)  # its command line does the same
            PPO(reference_settings(cfg)).run(report)

        super().__init__(run)


class _Rows:
    """A sink that hands on the rows of the metrics."""

    def __init__(self, report: Callable[[dict[str, Any]], None]) -> None:
        self.log = report

    def start(self, config: dict[str, Any], info: dict[str, Any]) -> None: ...

    def evaluation(self, record: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


# Options with an effect on the numbers that the reference has as they are built in.
_NOT_THE_REFERENCES = (
    "norm_adv", "clip_vloss", "adam_eps", "norm_obs", "clip_obs", "norm_reward", "clip_reward", "precision", "overlap",
)  # fmt: skip


def reference_settings(cfg: Config) -> Settings:
    """Return the options that the reference shares with the trainer.

    Raises:
        ValueError: another one, which the reference does not have, is not built-in.
    """
    for name in _NOT_THE_REFERENCES:
        if getattr(cfg, name) != DEFAULTS[name]:
            raise ValueError(f"the reference knows {name} {DEFAULTS[name]!r} alone, got {getattr(cfg, name)!r}")
    return Settings(**{field.name: getattr(cfg, field.name) for field in dataclasses.fields(Settings)})
