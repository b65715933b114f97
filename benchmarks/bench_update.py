"""The update alone, on one rollout of Ant-v5: native, by torch, and the reference's."""

from __future__ import annotations

import copy
from contextlib import closing
from dataclasses import replace
from time import perf_counter

import numpy as np
import torch

from ppo_fast.batch import Rollout
from ppo_fast.learners.native import NativeLearner, lacks
from ppo_fast.learners.ppo_base import PPOLearner
from ppo_fast.learners.torch_learner import TorchLearner
from ppo_fast.models import ActorCritic
from ppo_fast.normalizers import ObsNormalizer
from ppo_fast.reference.ppo import PPO

from ._ceiling import ceilings
from ._measure import Lane, Sample
from ._recipes import FAST
from ._training import PacedTrainer, reference_settings
from .conftest import Bench

ENV = "Ant-v5"
# Bound on |ours - reference| / |reference| of the whole update's change of the parameters. Rounding makes it 2e-6.
AGREE = 1e-4


def test_update(bench: Bench) -> None:
    section, alone = f"{ENV}: update, {FAST}", ceilings(bench.recording(ENV), bench.ceiling_steps(ENV) // 2)
    cfg = replace(bench.config(ENV), target_kl=None)  # the same number of steps in each
    bench.keep(section, cfg)
    with closing(PacedTrainer(cfg)) as paced:
        trainer = paced.trainer
        rollout = trainer.worker.buffers  # one update has been made on it: the ratios are not all 1
        flat = trainer.learner.flat.cpu().clone()
    reference = ReferenceUpdate(PPO(reference_settings(cfg)), trainer.model, flat, rollout)
    updates: dict[str, OurUpdate | ReferenceUpdate] = {"reference": reference}
    ours: list[PPOLearner] = [
        TorchLearner(trainer.model, flat, replace(cfg, learner="torch", update="eager"), trainer.device)
    ]
    if not lacks(trainer.model, trainer.device):
        ours.append(NativeLearner(trainer.model, flat, cfg))
    updates |= {learner.mode: OurUpdate(learner, flat, rollout, trainer.normalizer) for learner in ours}

    reference()
    expected = reference.parameters() - flat
    for name, update in updates.items():
        update()
        error = float((update.parameters() - flat - expected).norm() / expected.norm())
        assert error <= AGREE, f"{name}: the update differs from the reference's by {error:.1e}"

    lanes: dict[str, Lane] = {**alone, **updates}
    bench.contest(section, lanes, {name: {"ceiling": tuple(alone), "reference": "reference"} for name in updates})
    for name in updates:
        row = bench.report.sections[section][name]
        per_sample = sorted(1e6 * s.seconds / cfg.batch_size / cfg.update_epochs for s in row.samples)
        row.note = f"{per_sample[len(per_sample) // 2]:.2f} us per sample per epoch"


class OurUpdate:
    """What the trainer calls its phase `update`, always from the same parameters."""

    def __init__(self, learner: PPOLearner, flat: torch.Tensor, rollout: Rollout, normalizer: ObsNormalizer) -> None:
        self.learner, self.flat, self.rollout, self.normalizer = learner, flat, rollout, normalizer
        self.fresh = learner.state()

    def __call__(self) -> Sample:
        self.learner.flat.copy_(self.flat)
        self.learner.load(self.fresh)
        start = perf_counter()
        self.learner.update(self.rollout)
        self.normalizer.update(self.rollout.obs[:-1], self.rollout.valid)
        return Sample(self.rollout.num_valid, perf_counter() - start)

    def parameters(self) -> torch.Tensor:
        return self.learner.flat.cpu()


class ReferenceUpdate:
    """The same of the reference trainer."""

    def __init__(self, ppo: PPO, model: ActorCritic, flat: torch.Tensor, rollout: Rollout) -> None:
        self.ppo, self.model = ppo, model
        keys = ["obs", "norm_obs", "actions", "log_probs", "advantages", "returns", "valid"]
        self.batch = {key: np.array(getattr(rollout, key)[: len(rollout.valid)]) for key in keys}
        self.start = {self.name(key): tensor.clone() for key, tensor in model.unflatten(flat).items()}
        self.fresh = copy.deepcopy(ppo.optimizer.state_dict())

    def __call__(self) -> Sample:
        self.ppo.net.load_state_dict(self.start)
        self.ppo.optimizer.load_state_dict(copy.deepcopy(self.fresh))
        self.ppo.epochs_done = 0
        start = perf_counter()
        self.ppo.learn(self.batch)
        return Sample(int(self.batch["valid"].sum()), perf_counter() - start)

    def parameters(self) -> torch.Tensor:
        state = self.ppo.net.state_dict()
        return self.model.flatten({key: state[self.name(key)] for key in self.model.shapes()})

    @staticmethod
    def name(key: str) -> str:
        """Return the reference's name of one of our parameters: it counts activations as layers."""
        if key == "actor.log_std":
            return "log_std"
        net, layer, kind = key.split(".")
        return f"{net}.{2 * int(layer)}.{kind}"
