"""The PPO update of every kind of model, (separate, shared) x (Gaussian, categorical), held to the reference.

What does not depend on the kind of model is in test_ppo_update.py.

Axes: T steps · N envs · B = T·N rows · K actions to choose from · P parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import training
from torch import Tensor
from training import ACT_DIM, OBS_DIM, Loss, TwoTimesRule, one_thread  # noqa: F401

from ppo_fast.config import Config
from ppo_fast.errors import BackendError, ShapeError
from ppo_fast.learners.native import NativeLearner
from ppo_fast.learners.ppo_base import PPOLearner
from ppo_fast.learners.ppo_step import LossConfig, Minibatch, eager_gradient, functional_gradient, ppo_loss
from ppo_fast.learners.torch_learner import TorchLearner
from ppo_fast.models import ACTIVATIONS, ActorCritic

KINDS = {
    "separate-gaussian": ActorCritic(OBS_DIM, ACT_DIM, (24, 16)),
    "shared-gaussian": ActorCritic(OBS_DIM, ACT_DIM, (24, 16), shared_trunk=True),
    "separate-categorical": ActorCritic(OBS_DIM, 1, (24, 16), num_actions=5),
    "shared-categorical": ActorCritic(OBS_DIM, 1, (24, 16), shared_trunk=True, num_actions=5),
}
CHOICES = [name for name, model in KINDS.items() if model.num_actions]
LOSS = Loss(norm_adv=True, clip_vloss=True, ent_coef=0.05)
NO_CLIP = 1e30  # a bound on the gradient's norm that never binds
BETA1 = float(np.float32(1.0 - 0.9))  # exp_avg after one step from zero is this times the gradient


@pytest.fixture(params=["torch", "native"])
def learner(request: pytest.FixtureRequest) -> str:
    """Name each learner in turn."""
    if request.param == "native":
        request.getfixturevalue("native_core")
    return str(request.param)


def make_learner(model: ActorCritic, flat: Tensor, learner: str = "torch", **options: Any) -> PPOLearner:
    """Return a learner for rollouts of 16 steps x 8 environments; one minibatch per epoch and one epoch by default."""
    defaults: dict[str, Any] = {
        "num_envs": 8, "num_steps": 16, "minibatch_size": 128, "update_epochs": 1, "anneal_lr": False,
        "learner": learner, "update": "eager" if learner == "torch" else "auto",
        "clip_vloss": LOSS.clip_vloss, "ent_coef": LOSS.ent_coef, "max_grad_norm": NO_CLIP,
    }  # fmt: skip
    make = {"torch": TorchLearner, "native": NativeLearner}[learner]
    return make(model, flat, Config(**{**defaults, **options}), torch.device("cpu"))


def by_name(model: ActorCritic, vector: Tensor) -> dict[str, Tensor]:
    return {name: view.detach() for name, view in model.unflatten(vector).items()}


def references(model: ActorCritic, flat: Tensor, rollout: Any) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """Return (gradient, metrics) of the reference in float32 and in float64, the reset rows dropped."""
    single, double = (
        training.reference_gradient(training.reference_net(model, flat, t), training.valid_rows(rollout, t), LOSS)
        for t in (torch.float32, torch.float64)
    )
    return single, double


@pytest.mark.parametrize("gradient_of", [eager_gradient, functional_gradient])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_gradient_is_as_exact_as_the_reference(
    kind: str, activation: str, gradient_of: Callable[..., tuple[Tensor, Tensor]]
) -> None:
    model = replace(KINDS[kind], activation=activation)
    hp = LossConfig(LOSS.clip_coef, LOSS.clip_vloss, LOSS.norm_adv, LOSS.ent_coef, LOSS.vf_coef, NO_CLIP, 1e-5)
    rule = TwoTimesRule()
    for seed in range(32):
        flat = training.random_parameters(model, seed)
        rollout = training.random_rollout(model, flat, seed, reset_rows=0.0)
        rows = training.valid_rows(rollout, torch.float32)
        minibatch = Minibatch(**rows, valid=torch.ones(128))
        gradient, _ = gradient_of(model, hp, flat, torch.tensor(1 / 128), minibatch)
        (single, _), (double, _) = references(model, flat, rollout)
        rule.add(by_name(model, gradient), single, double)
    rule.check()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_learner_takes_the_gradient_of_the_valid_rows_and_reports_their_metrics(
    kind: str, activation: str, learner: str
) -> None:
    model = replace(KINDS[kind], activation=activation)
    gradients, metrics = TwoTimesRule(), TwoTimesRule()
    for seed in range(32):
        flat = training.random_parameters(model, seed)
        rollout = training.random_rollout(model, flat, seed)
        updated = make_learner(model, flat, learner)
        reported = updated.update(rollout)
        (single, single_metrics), (double, double_metrics) = references(model, flat, rollout)
        gradients.add(by_name(model, updated.state()["exp_avg"].double() / BETA1), single, double)
        assert reported["clip_frac"] == pytest.approx(double_metrics.pop("clip_frac"), abs=1e-6)  # k/n in float32
        single_metrics.pop("clip_frac")
        metrics.add({name: reported[name] for name in double_metrics}, single_metrics, double_metrics)
    gradients.check()
    metrics.check()


@pytest.mark.parametrize("kind", KINDS)
def test_loss_goes_through_every_layer_once(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = KINDS[kind]
    flat = training.random_parameters(model, 1)
    rows = training.valid_rows(training.random_rollout(model, flat, 1, reset_rows=0.0), torch.float32)
    calls = []
    addmm = torch.addmm
    monkeypatch.setattr(torch, "addmm", lambda *args: calls.append(1) or addmm(*args))
    hp = LossConfig(0.2, True, True, 0.05, 0.5, NO_CLIP, 1e-5)
    ppo_loss(model, hp, flat, torch.tensor(1 / 128), Minibatch(**rows, valid=torch.ones(128)))
    assert len(calls) == sum(name.endswith("weight") for name in model.shapes())


@pytest.mark.parametrize("kind", KINDS)
def test_nan_in_reset_rows_changes_not_one_bit_of_the_update(kind: str, learner: str) -> None:
    model = KINDS[kind]
    flat = training.random_parameters(model, 7)
    results = []
    for poison in (False, True):
        rollout = training.random_rollout(model, flat, 7)
        if poison:
            for name in ("actions", "log_probs", "rewards", "scaled_rewards", "advantages", "returns"):
                getattr(rollout, name)[~rollout.valid] = np.nan
        updated = make_learner(model, flat, learner, minibatch_size=32, update_epochs=3)
        metrics = updated.update(rollout)
        assert all(map(math.isfinite, metrics.values()))
        results.append((metrics, updated.flat.numpy().tobytes()))
    assert results[0] == results[1]


def test_entropy_of_a_choice_is_a_mean_over_the_valid_rows(learner: str) -> None:
    # One layer of weights 0 but for the first logit, which is 50 · tanh(20 x) with x = -1 or 1: p = (0, 1/4, ...) or
    # (1, 0, ...), so H = ln 4 or 0. Of the 128 rows, 96 count; of those, 24 have x = -1.
    model = ActorCritic(1, 1, (1,), num_actions=5)
    flat = torch.zeros(model.num_params)
    views = model.unflatten(flat)
    views["actor.0.weight"][:] = 20.0
    views["actor.1.weight"][0] = 50.0
    rollout = training.random_rollout(model, flat, 1, reset_rows=0.0)
    rollout.norm_obs[:] = 1.0
    rollout.norm_obs[:4, :6] = -1.0
    rollout.valid[:, 6:] = False
    reported = make_learner(model, flat, learner).update(rollout)
    assert reported["entropy"] == pytest.approx(24 / 96 * math.log(4), rel=1e-6)


@pytest.mark.parametrize("bad", [-1.0, 5.0, 1.5, math.nan, math.inf])
@pytest.mark.parametrize("kind", CHOICES)
def test_an_action_that_is_no_index_is_refused_in_a_valid_row_and_ignored_in_a_reset_row(
    kind: str, bad: float, learner: str
) -> None:
    model = KINDS[kind]
    flat = training.random_parameters(model, 1)
    rollout = training.random_rollout(model, flat, 1)
    updated = make_learner(model, flat, learner)
    rollout.actions[~rollout.valid] = bad
    updated.update(rollout)
    before = updated.flat.clone()
    rollout.actions[tuple(np.argwhere(rollout.valid)[0])] = bad
    with pytest.raises(ShapeError, match=r"actions must be indices 0 \.\.\. 4, got "):
        updated.update(rollout)
    assert torch.equal(updated.flat, before)


# Compiled


@pytest.fixture(scope="module")
def compiled() -> PPOLearner:
    """A compiled learner of the kind that differs most from the one of test_ppo_update.py."""
    torch.set_num_threads(1)
    model = KINDS["shared-categorical"]
    try:
        return make_learner(model, training.random_parameters(model, 1), update="compile")
    except BackendError as err:
        pytest.skip(str(err))


@pytest.mark.slow  # a compilation; that of a Gaussian policy is among the quick ones
def test_compiled_gradient_is_as_exact_as_the_float32_reference(compiled: PPOLearner) -> None:
    assert compiled.mode == "compile"
    model = compiled.model
    rule = TwoTimesRule()
    for seed in range(32):
        flat = training.random_parameters(model, seed)
        rollout = training.random_rollout(model, flat, seed)
        compiled.flat.copy_(flat)
        zeros = torch.zeros_like(flat)
        compiled.load({"exp_avg": zeros, "exp_avg_sq": zeros, "counters": torch.tensor([0, seed])})
        compiled.update(rollout)
        (single, _), (double, _) = references(model, flat, rollout)
        rule.add(by_name(model, compiled.state()["exp_avg"].double() / BETA1), single, double)
    rule.check()
