"""The update of the native learner against torch, compiled and eager, by minibatch size and by SIMD level.

Networks of 2 x 64 on Ant-v5's 105 inputs and 8 actions; 2048 random rows, ten epochs. A lane is the fastest of several
updates, because other programs can only slow one down; the rounds of all lanes are interleaved.
"""

from __future__ import annotations

from time import perf_counter

import numpy as np
import pytest
import torch

from ppo_fast.batch import Rollout
from ppo_fast.config import Config
from ppo_fast.errors import BackendError
from ppo_fast.learners.native import NativeLearner
from ppo_fast.learners.ppo_base import PPOLearner
from ppo_fast.learners.torch_learner import TorchLearner
from ppo_fast.models import ActorCritic

from ._measure import Lane, Sample
from .conftest import Bench

_core = pytest.importorskip("ppo_fast._core", reason="the C++ core does not load", exc_type=ImportError)
if not hasattr(_core, "PpoLearner"):
    pytest.skip("the C++ core was built without the native learner", allow_module_level=True)

MODEL = ActorCritic(105, 8)
STEPS, ENVS = 32, 64
AGREE = 1e-2  # bound on |step of one - step of the other| / |step| over a whole update: rounding differs


def random_rollout() -> Rollout:
    rng = np.random.default_rng(1)
    rollout = Rollout.allocate(STEPS, ENVS, MODEL.obs_dim, MODEL.act_dim)
    for array in (rollout.norm_obs, rollout.advantages, rollout.returns, rollout.values_all):
        array[:] = rng.normal(size=array.shape)
    rollout.actions[:] = rng.normal(scale=0.6, size=rollout.actions.shape)
    rollout.log_probs[:] = -8.0
    rollout.valid[:] = rng.random(rollout.valid.shape) < 0.99
    return rollout


def fastest_update(learner: PPOLearner, flat: torch.Tensor, rollout: Rollout, repeats: int) -> Lane:
    fresh = learner.state()

    def lane() -> Sample:
        seconds = []
        for _ in range(repeats):
            learner.flat.copy_(flat)
            learner.load(fresh)
            start = perf_counter()
            learner.update(rollout)
            seconds.append(perf_counter() - start)
        return Sample(STEPS * ENVS, min(seconds))

    return lane


@pytest.mark.parametrize("minibatch", [64, 256, 1024])
def test_native_update(minibatch: int, bench: Bench) -> None:
    flat, rollout = MODEL.init(1, -0.5), random_rollout()
    epochs = 1 if bench.smoke else 10
    cfg = {"num_envs": ENVS, "num_steps": STEPS, "minibatch_size": minibatch, "update_epochs": epochs, "seed": 1}
    cpu = torch.device("cpu")
    learners: dict[str, PPOLearner] = {"eager": TorchLearner(MODEL, flat, Config(**cfg, update="eager"), cpu)}
    notes = {}
    if not bench.smoke:
        try:
            learners["compile"] = TorchLearner(MODEL, flat, Config(**cfg, update="compile"), cpu)
        except BackendError as error:
            notes["eager"] = f"; {error}"
    for simd in _core.simd_levels():
        learners[f"native {simd}"] = NativeLearner(MODEL, flat, Config(**cfg), simd=simd)

    lanes = {}
    for name, learner in learners.items():
        learner.update(rollout)
        moved, expected = learner.flat - flat, learners["eager"].flat - flat
        error = float((moved - expected).norm() / expected.norm())
        assert error <= AGREE, f"{name}: the update differs from eager's by {error:.1e}"
        learner.load({name: torch.zeros_like(tensor) for name, tensor in learner.state().items()})
        repeats = bench.steps(20 if name.startswith("native") else 4)
        lanes[name] = fastest_update(learner, flat, rollout, repeats)

    section = f"105-64-64-(8, 1): update of {STEPS * ENVS} rows, {epochs} epochs, minibatch {minibatch}"
    reference = "compile" if "compile" in lanes else "eager"
    bench.contest(section, lanes, {name: {"reference": reference} for name in lanes})
    for name in lanes:
        row = bench.report.sections[section][name]
        best = min(sample.seconds for sample in row.samples)
        row.note = f"{1e6 * best / (STEPS * ENVS * epochs):.2f} us per sample per epoch at best{notes.get(name, '')}"
