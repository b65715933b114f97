"""What a PPO update owes whatever makes it: when the KL ends it, what its metrics are, and explained variance.

Axes: T steps · N envs · B = T·N rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import training
from torch import Tensor
from training import ACT_DIM, LEVELS, OBS_DIM, Loss, TwoTimesRule, one_thread  # noqa: F401

from ppo_fast import reference
from ppo_fast.batch import Rollout
from ppo_fast.config import Config
from ppo_fast.learners.native import NativeLearner
from ppo_fast.learners.ppo_base import PPOLearner
from ppo_fast.learners.torch_learner import TorchLearner
from ppo_fast.metrics import explained_variance
from ppo_fast.models import ActorCritic

pytestmark = pytest.mark.usefixtures("one_thread")

MODEL = ActorCritic(OBS_DIM, ACT_DIM)
Make = Callable[..., PPOLearner]


def config(**options: Any) -> Config:
    """Return a config for rollouts of 16 steps x 8 environments in minibatches of 32."""
    defaults: dict[str, Any] = {"num_envs": 8, "num_steps": 16, "minibatch_size": 32, "update": "eager"}
    return Config(**{**defaults, "anneal_lr": False, **options})


@pytest.fixture(params=["torch", *LEVELS])
def make(request: pytest.FixtureRequest) -> Make:
    """Return what makes a learner from parameters (P,) and options: eager torch, or the core at a SIMD level."""
    if request.param == "torch":
        return lambda flat, **options: TorchLearner(MODEL, flat, config(**options), torch.device("cpu"))
    request.getfixturevalue("native_core")
    return lambda flat, **options: NativeLearner(MODEL, flat, config(**options), simd=request.param)


def snapshot(learner: PPOLearner) -> dict[str, bytes]:
    tensors = {"flat": learner.flat, **learner.state()}
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}


def test_kl_above_its_target_ends_the_update_after_the_epoch_and_not_within_it(make: Make) -> None:
    flat = training.random_parameters(MODEL, 12)
    rollout = training.random_rollout(MODEL, flat, 12)
    options = {"learning_rate": 3e-3, "norm_adv": "minibatch"}
    # Every epoch has the same valid rows, so the KL of epoch k alone is k · mean(1..k) - (k-1) · mean(1..k-1).
    mean = [0.0]
    after = {}
    for epochs in range(1, 5):
        learner = make(flat, update_epochs=epochs, **options)
        mean.append(learner.update(rollout)["approx_kl"])
        after[epochs] = snapshot(learner)
    kl = [k * mean[k] - (k - 1) * mean[k - 1] for k in range(1, 5)]
    assert kl[0] < kl[1] < kl[2] < kl[3]
    # A target a thousandth to either side of an epoch's KL: float32 sums know it to a millionth.
    for last, target in ((1, kl[0] * 0.999), (2, kl[0] * 1.001), (2, kl[1] * 0.999), (3, kl[1] * 1.001),
                         (3, kl[2] * 0.999), (4, kl[2] * 1.001), (4, kl[3] * 1.001)):  # fmt: skip
        learner = make(flat, update_epochs=4, target_kl=target, **options)
        assert learner.update(rollout)["epochs"] == last
        assert snapshot(learner) == after[last]


def test_metrics_are_means_over_valid_rows_and_not_over_minibatches(make: Make) -> None:
    # A step too small to change a float32 parameter: every minibatch then sees the same policy, and the metrics of four
    # minibatches with different numbers of valid rows must be those of all valid rows at once; but the gradient's norm
    # is a mean over the minibatches, before it is clipped.
    rule, epochs = TwoTimesRule(), 2
    for seed in range(32):
        flat = training.random_parameters(MODEL, seed)
        rollout = training.random_rollout(MODEL, flat, seed, reset_rows=0.4)
        learner = make(flat, norm_adv="none", learning_rate=1e-30, update_epochs=epochs, max_grad_norm=1e-3)
        reported = learner.update(rollout)
        assert torch.equal(learner.flat, flat)
        (_, single), (_, double) = (gradient(flat, rollout, dtype) for dtype in (torch.float32, torch.float64))
        assert reported["clip_frac"] == pytest.approx(double.pop("clip_frac"), abs=1e-6)
        single.pop("clip_frac")
        rule.add({name: reported[name] for name in double}, single, double)

        parts = np.concatenate([reference.permutation(128, 1, epoch).reshape(4, 32) for epoch in range(epochs)])
        norms = [norm(gradient(flat, rollout, torch.float64, only=chosen)[0]) for chosen in parts]
        assert max(norms) > 1.2 * min(norms)
        assert reported["grad_norm"] == pytest.approx(np.mean(norms), rel=1e-5)
    rule.check()


def gradient(flat: Tensor, rollout: Rollout, dtype: torch.dtype, only: Any = None) -> tuple[Any, dict[str, float]]:
    """Return gradient and metrics of the reference over the rows that count, or those among ``only``."""
    rows = training.valid_rows(rollout, dtype)
    if only is not None:
        counts = rollout.valid.reshape(-1)
        place = np.cumsum(counts) - 1
        rows = {name: value[place[only[counts[only]]]] for name, value in rows.items()}
    return training.reference_gradient(training.reference_net(MODEL, flat, dtype), rows, Loss(norm_adv=False))


def norm(named: dict[str, Tensor]) -> float:
    return float(torch.cat([part.reshape(-1) for part in named.values()]).norm())


def test_explained_variance_by_hand() -> None:
    # Three rows count: targets 1, 2, 6 have the variance 14/3; what the values leave of them, 1, 0, 2, has 2/3.
    rollout = Rollout.allocate(2, 2, OBS_DIM, ACT_DIM)
    rollout.valid[:] = [[True, True], [False, True]]
    rollout.returns[:] = [[1.0, 2.0], [np.nan, 6.0]]
    rollout.values_all[:2] = [[0.0, 2.0], [np.nan, 4.0]]
    assert explained_variance(rollout) == pytest.approx(1 - (2 / 3) / (14 / 3), rel=1e-6)
    rollout.returns[:] = [[1.0, 1.0], [7.0, 1.0]]
    assert explained_variance(rollout) is None  # nothing to explain
