"""The learners: before each of its steps the reference lends them parameters and moments, and the steps are compared.

B = T·N rows · M rows of a minibatch · P parameters.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ppo_fast.batch import Rollout
from ppo_fast.config import Config
from ppo_fast.errors import BackendError
from ppo_fast.learners.graph_learner import GraphLearner
from ppo_fast.learners.native import NativeLearner
from ppo_fast.learners.ppo_base import PPOLearner
from ppo_fast.learners.torch_learner import TorchLearner
from ppo_fast.lockstep.report import Group, Stages
from ppo_fast.lockstep.rules import Equal, TwoTimesRule
from ppo_fast.lockstep.teacher import MOMENTS, Teacher, Twin, Watcher, flat_state, steps_of_adam
from ppo_fast.models import ActorCritic
from ppo_fast.reference.ppo import Settings

STAGES: Stages = {
    "first weights": Equal,
    "loss": TwoTimesRule,
    "KL": TwoTimesRule,
    "clipped gradient": TwoTimesRule,
    "Adam": TwoTimesRule,
    "weights": TwoTimesRule,
}
MakeLearner = Callable[[ActorCritic, Tensor, Config], PPOLearner]
POISONED = ("actions", "log_probs", "advantages", "returns")  # nothing may read these of a reset row
BETA1_COMPLEMENT = float(np.float32(1.0 - 0.9))  # from moments of 0, a step leaves this times the gradient in exp_avg


def torch_learner(update: Literal["eager", "compile", "graph"]) -> MakeLearner:
    """Return what makes the torch learner, ``eager``, ``compile`` or ``graph``, on the CPU."""
    kind = GraphLearner if update == "graph" else TorchLearner

    def make(model: ActorCritic, flat: Tensor, cfg: Config) -> PPOLearner:
        return kind(model, flat, dataclasses.replace(cfg, update=update), torch.device("cpu"))

    return make


def native_learner(simd: str) -> MakeLearner:
    """Return what makes the native learner at one SIMD level."""

    def make(model: ActorCritic, flat: Tensor, cfg: Config) -> PPOLearner:
        return NativeLearner(model, flat, cfg, simd=simd)

    return make


#: Every learner that a run may use; one that raises BackendError is listed with the reason.
LEARNERS: dict[str, MakeLearner] = {
    "torch eager": torch_learner("eager"),
    "torch compile": torch_learner("compile"),
    "torch graph": torch_learner("graph"),
    **{f"native {simd}": native_learner(simd) for simd in ("avx512", "avx2", "baseline")},
}


class Learners(Watcher):
    """All learners, which share what the reference makes of a minibatch in float32 and in float64.

    A learner is asked for nothing but what training asks for: :meth:`PPOLearner.update`, on a rollout in which only the
    rows of one minibatch count. One update from moments of 0 shows its gradient, clipped; one from the reference's
    moments is the step. The step is held to the reference's, and to Adam's given the gradient that was shown.

    Args:
        ppo: the reference.
        model: shapes of the networks.
        cfg: options of the run, with one epoch per update.
    """

    def __init__(self, ppo: Teacher, model: ActorCritic, cfg: Config) -> None:
        self.group = Group("learners", STAGES)
        self._model = model
        self._twins = [Twin(ppo, model, dtype) for dtype in (torch.float32, torch.float64)]
        self._learners: dict[str, PPOLearner] = {}
        flat = model.init(cfg.seed, cfg.log_std_init)
        for name, make in LEARNERS.items():
            try:
                self._learners[name] = make(model, flat, cfg)
            except BackendError as error:
                self.group.missing[name] = str(error)
                continue
            self.group.add_column(name)["first weights"].add(self._learners[name].flat, flat_state(ppo, model)["flat"])
        self.metrics: dict[str, list[dict[str, float]]] = {}  # learner -> what it reported of each minibatch

    def minibatch(self, ppo: Teacher, rows: dict[str, Tensor], epoch: int, chosen: npt.NDArray[np.int64]) -> None:
        """Make every learner take the step that the reference is about to take."""
        for twin in self._twins:
            twin.follow(ppo)
        losses, gradients, steps = zip(*(twin.minibatch(rows) for twin in self._twins), strict=True)
        state, settings = flat_state(ppo, self._model), ppo.settings
        fresh = {**state, **{key: torch.zeros_like(state[key]) for key in MOMENTS}}
        rollout = minibatch_rollout(ppo, chosen)
        for name, learner in self._learners.items():
            rules = self.group.columns[name]
            learner.set_progress(ppo.progress())
            metrics = take_step(learner, rollout, fresh, adam_steps=0, epoch=epoch)
            for key, ours in (("loss", total_loss(metrics, settings)), ("KL", metrics["approx_kl"])):
                rules[key].add({key: ours}, *({key: theirs[key]} for theirs in losses))
            gradient = learner.exp_avg.double() / BETA1_COMPLEMENT
            rules["clipped gradient"].add(self._model.unflatten(gradient), *gradients)

            self.metrics.setdefault(name, []).append(metrics)
            take_step(learner, rollout, state, adam_steps=steps_of_adam(ppo), epoch=epoch)
            after = {"flat": learner.flat, "exp_avg": learner.exp_avg, "exp_avg_sq": learner.exp_avg_sq}
            rules["weights"].add(after, *steps)
            for twin in self._twins:
                twin.follow(ppo)
            rules["Adam"].add(after, *(twin.adam(gradient) for twin in self._twins))


def total_loss(metrics: dict[str, float], s: Settings) -> float:
    """Return the loss, of which a learner reports the parts."""
    return metrics["policy_loss"] + s.vf_coef * metrics["value_loss"] - s.ent_coef * metrics["entropy"]


def take_step(
    learner: PPOLearner, rollout: Rollout, state: dict[str, Tensor], *, adam_steps: int, epoch: int
) -> dict[str, float]:
    """Give a learner parameters, moments and counters, and have it update on one minibatch; return its metrics."""
    learner.flat.copy_(state["flat"])
    learner.load({**{key: state[key] for key in MOMENTS}, "counters": torch.tensor([adam_steps, epoch])})
    return learner.update(rollout)


def minibatch_rollout(ppo: Teacher, chosen: npt.NDArray[np.int64]) -> Rollout:
    """Return the reference's last rollout with the rows of one minibatch (M,) alone counting, and NaN in reset rows."""
    batch = ppo.batch
    num_steps, num_envs = batch["valid"].shape
    rollout = Rollout.allocate(num_steps, num_envs, ppo.obs_dim, ppo.act_dim)
    for name in (*POISONED, "terminated", "done"):
        getattr(rollout, name)[:] = batch[name]
    rollout.norm_obs[:-1], rollout.values_all[:] = batch["norm_obs"], batch["values"]
    valid = rollout.valid.reshape(-1)
    valid[chosen] = batch["valid"].reshape(-1)[chosen]
    for name in POISONED:
        getattr(rollout, name)[~batch["valid"]] = np.nan
    return rollout
