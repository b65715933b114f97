"""The PPO update: its gradient and its step against the reference, what reset rows weigh, how an update proceeds.

Axes: T steps · N envs · B = T·N rows · M rows of a minibatch · D observation · A action · P parameters.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import training
from torch import Tensor
from training import ACT_DIM, FLOAT_FIELDS, OBS_DIM, Loss, TwoTimesRule, one_thread  # noqa: F401

from ppo_fast import reference
from ppo_fast.batch import Rollout
from ppo_fast.config import Config
from ppo_fast.errors import BackendError, ShapeError
from ppo_fast.learners import torch_learner
from ppo_fast.learners.ppo_step import (
    STATS,
    LossConfig,
    Minibatch,
    Optimizer,
    adam_step,
    eager_gradient,
    functional_gradient,
    ppo_loss,
)
from ppo_fast.learners.torch_learner import TorchLearner
from ppo_fast.models import ActorCritic
from ppo_fast.reference import losses

MODEL = ActorCritic(OBS_DIM, ACT_DIM)
NO_CLIP = 1e30  # a bound on the gradient's norm that never binds
BETA1 = float(np.float32(1.0 - 0.9))  # exp_avg after one step from zero is this times the gradient
POISONED = ("actions", "log_probs", "rewards", "scaled_rewards", "advantages", "returns")


def make_learner(flat: Tensor | None = None, **options: Any) -> TorchLearner:
    """Return a learner for rollouts of 16 steps x 8 environments; one minibatch per epoch and one epoch by default."""
    defaults: dict[str, Any] = {
        "num_envs": 8,
        "num_steps": 16,
        "minibatch_size": 128,
        "update_epochs": 1,
        "update": "eager",
        "anneal_lr": False,
    }
    flat = training.random_parameters(MODEL, 1) if flat is None else flat
    return TorchLearner(MODEL, flat, Config(**{**defaults, **options}), torch.device("cpu"))


def set_state(learner: TorchLearner, flat: Tensor, *, epochs_done: int = 0) -> None:
    """Put a learner where a fresh one with parameters ``flat`` would be."""
    learner.flat.copy_(flat)
    zeros = torch.zeros_like(flat)
    learner.load({"exp_avg": zeros, "exp_avg_sq": zeros, "counters": torch.tensor([0, epochs_done])})


def snapshot(learner: TorchLearner) -> dict[str, bytes]:
    tensors = {"flat": learner.flat, **learner.state()}
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}


def masked_minibatch(rollout: Rollout, *, dtype: torch.dtype = torch.float32) -> tuple[Minibatch, Tensor]:
    """Return the rollout as one minibatch as ``ppo_loss`` asks for it, and 1 / number of valid rows."""
    keep = rollout.valid.reshape(-1)
    fields = {}
    for name in FLOAT_FIELDS:
        array = rollout.norm_obs[:-1] if name == "norm_obs" else getattr(rollout, name)
        tensor = torch.tensor(array.reshape(keep.size, *array.shape[2:]), dtype=dtype)
        if name not in ("norm_obs", "values"):
            tensor[torch.from_numpy(~keep)] = 0.0
        fields[name] = tensor
    valid = torch.from_numpy(keep).to(dtype)
    return Minibatch(**fields, valid=valid), 1.0 / valid.sum()


def by_name(vector: Tensor) -> dict[str, Tensor]:
    return {name: view.detach() for name, view in MODEL.unflatten(vector).items()}


def references(flat: Tensor, rollout: Rollout, loss: Loss) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """Return (gradient, metrics) of the reference in float32 and in float64, the reset rows dropped."""
    single, double = (
        training.reference_gradient(training.reference_net(MODEL, flat, t), training.valid_rows(rollout, t), loss)
        for t in (torch.float32, torch.float64)
    )
    return single, double


# The gradient


@pytest.mark.parametrize("gradient_of", [eager_gradient, functional_gradient])
@pytest.mark.parametrize(
    "loss",
    [
        Loss(norm_adv=False),
        Loss(norm_adv=True, ent_coef=0.01),
        Loss(norm_adv=False, clip_vloss=True, ent_coef=0.01, clip_coef=0.1),
        Loss(norm_adv=True, clip_vloss=True, vf_coef=1.0),
    ],
)
def test_masked_gradient_is_as_exact_as_the_reference_on_the_valid_rows(
    gradient_of: Callable[..., Any], loss: Loss
) -> None:
    hp = LossConfig(loss.clip_coef, loss.clip_vloss, loss.norm_adv, loss.ent_coef, loss.vf_coef, NO_CLIP, 1e-5)
    rule = TwoTimesRule()
    for seed in range(32):
        flat = training.random_parameters(MODEL, seed)
        rollout = training.random_rollout(MODEL, flat, seed)
        minibatch, inv_count = masked_minibatch(rollout)
        gradient, _ = gradient_of(MODEL, hp, flat, inv_count, minibatch)
        (single, _), (double, _) = references(flat, rollout, loss)
        rule.add(by_name(gradient), single, double)
    rule.check()


@pytest.mark.parametrize("norm_adv", ["none", "batch", "minibatch"])
@pytest.mark.parametrize(("clip_vloss", "ent_coef"), [(False, 0.0), (True, 0.01)])
def test_learner_takes_the_gradient_of_the_valid_rows_and_reports_their_metrics(
    norm_adv: str, clip_vloss: bool, ent_coef: float
) -> None:
    learner = make_learner(norm_adv=norm_adv, clip_vloss=clip_vloss, ent_coef=ent_coef, max_grad_norm=NO_CLIP)
    loss = Loss(norm_adv=norm_adv != "none", clip_vloss=clip_vloss, ent_coef=ent_coef)
    gradients, metrics = TwoTimesRule(), TwoTimesRule()
    for seed in range(32):
        flat = training.random_parameters(MODEL, seed)
        rollout = training.random_rollout(MODEL, flat, seed)
        set_state(learner, flat, epochs_done=seed)
        reported = learner.update(rollout)
        (single, single_metrics), (double, double_metrics) = references(flat, rollout, loss)
        gradients.add(by_name(learner.state()["exp_avg"].double() / BETA1), single, double)
        assert reported["clip_frac"] == pytest.approx(double_metrics.pop("clip_frac"), abs=1e-6)  # k/n in float32
        single_metrics.pop("clip_frac")
        metrics.add({name: reported[name] for name in double_metrics}, single_metrics, double_metrics)
    gradients.check()
    metrics.check()


def test_the_two_times_rule_notices_a_relative_error_of_two_in_a_million() -> None:
    rule = TwoTimesRule()
    for seed in range(32):
        flat = training.random_parameters(MODEL, seed)
        (single, _), (double, _) = references(flat, training.random_rollout(MODEL, flat, seed), Loss())
        rule.add({name: g * (1 + 2e-6) for name, g in double.items()}, single, double)
    assert all(ratio > 2 for ratio in rule.ratios().values())
    with pytest.raises(AssertionError, match="twice"):
        rule.check()


@pytest.mark.parametrize("advantage", [1.0, -1.0])
@pytest.mark.parametrize("ratio", [0.5, 0.79, 0.81, 1.0, 1.19, 1.21, 2.0])
def test_surrogate_gradient_vanishes_exactly_where_clipping_says_so(ratio: float, advantage: float) -> None:
    # All weights 0 and log σ = 0: μ = 0, σ = 1, V = 0. At a = 1.5, log π = -1.125 - ½ log 2π, and
    #   ∂log π/∂log σ = a² - 1 = 1.25,   ∂log π/∂bias of the last layer = a = 1.5.
    # Only pushing a ratio further out where that would pay is cut: above 1.2 with A > 0, below 0.8 with A < 0.
    model = ActorCritic(2, 1, (4,))
    flat = torch.zeros(model.num_params)
    log_prob = -1.125 - 0.5 * math.log(2 * math.pi)
    row = torch.zeros(1)
    minibatch = Minibatch(
        norm_obs=torch.ones(1, 2), actions=torch.full((1, 1), 1.5), log_probs=row + log_prob - math.log(ratio),
        advantages=row + advantage, returns=row, values=row, valid=row + 1,
    )  # fmt: skip
    hp = LossConfig(0.2, False, False, 0.0, 0.5, NO_CLIP, 1e-5)
    gradient, _ = eager_gradient(model, hp, flat, torch.tensor(1.0), minibatch)
    parts = model.unflatten(gradient)
    clipped = ratio > 1.2 if advantage > 0 else ratio < 0.8
    if clipped:
        assert torch.equal(gradient, torch.zeros_like(gradient))
    else:
        # log π and log π_old are near 2.6, so their float32 difference, and with it r, is off by up to 2 · 2^-23.
        assert float(parts["actor.log_std"]) == pytest.approx(-advantage * ratio * 1.25, rel=4 * 2.0**-23)
        assert float(parts["actor.1.bias"]) == pytest.approx(-advantage * ratio * 1.5, rel=4 * 2.0**-23)


def test_gradient_reaches_every_parameter() -> None:
    flat = training.random_parameters(MODEL, 3)
    minibatch, inv_count = masked_minibatch(training.random_rollout(MODEL, flat, 3))
    gradient, _ = eager_gradient(MODEL, LossConfig(0.2, False, True, 0.0, 0.5, 0.5, 1e-5), flat, inv_count, minibatch)
    assert all(bool((part != 0).all()) for part in by_name(gradient).values())


def test_taking_a_gradient_changes_no_input() -> None:
    flat = training.random_parameters(MODEL, 4)
    minibatch, inv_count = masked_minibatch(training.random_rollout(MODEL, flat, 4))
    before = [tensor.clone() for tensor in (flat, inv_count, *minibatch)]
    for gradient_of in (eager_gradient, functional_gradient):
        gradient_of(MODEL, LossConfig(0.2, True, True, 0.1, 0.5, 0.5, 1e-5), flat, inv_count, minibatch)
    assert all(torch.equal(a, b) for a, b in zip(before, (flat, inv_count, *minibatch), strict=True))


# Adam


def torch_adam(
    hp: LossConfig, dtype: torch.dtype, learning_rate: float, step: int, vectors: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Return what clip_grad_norm_ and torch.optim.Adam make of parameters of 0, in tensors of 2,000 as in a network."""
    pieces = {name: [piece.to(dtype, copy=True) for piece in vector.split(2000)] for name, vector in vectors.items()}
    parameters = [torch.nn.Parameter(torch.zeros_like(piece)) for piece in pieces["gradient"]]
    optimizer = torch.optim.Adam(parameters, lr=learning_rate, betas=(0.9, 0.999), eps=hp.adam_eps)
    for i, parameter in enumerate(parameters):
        parameter.grad = pieces["gradient"][i]
        moments = {name: pieces[name][i] for name in ("exp_avg", "exp_avg_sq")}
        optimizer.state[parameter] = {"step": torch.tensor(float(step - 1)), **moments}
    norm = torch.nn.utils.clip_grad_norm_(parameters, hp.max_grad_norm)
    optimizer.step()
    states = {name: torch.cat([optimizer.state[p][name] for p in parameters]) for name in ("exp_avg", "exp_avg_sq")}
    return {"flat": torch.cat([p.detach() for p in parameters]), "norm": norm, **states}


def test_adam_step_is_as_exact_as_torch_with_clip_grad_norm_given_equal_gradients() -> None:
    hp = LossConfig(0.2, False, True, 0.0, 0.5, 0.5, 1e-5)
    size, learning_rate = 50_000, 3e-4  # as many as a policy for Humanoid has
    rule, clipped = TwoTimesRule(), 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        step = int(rng.integers(1, 2000))
        # A gradient's components are of all sizes: it is then that a float32 sum of many squares loses digits.
        arrays = {
            "gradient": 10 ** rng.uniform(-6, -2) * rng.normal(size=size) * np.exp(2 * rng.normal(size=size)),
            "exp_avg": rng.normal(scale=0.01, size=size) * (seed % 4 > 0),
            "exp_avg_sq": rng.uniform(0, 1e-4, size=size) * (seed % 4 > 0),
        }
        vectors = {name: torch.from_numpy(array.astype(np.float32)) for name, array in arrays.items()}
        gradient = vectors["gradient"].clone()
        clipped += float(gradient.norm()) > hp.max_grad_norm

        # Parameters of 0, so that what is compared is the step itself and not the rounding of a sum with it.
        opt = Optimizer(torch.zeros(size), vectors["exp_avg"].clone(), vectors["exp_avg_sq"].clone(), torch.zeros(8))
        step_size = torch.tensor(learning_rate / (1 - 0.9**step))
        inv_sqrt_bias2 = torch.tensor(1 / math.sqrt(1 - 0.999**step))
        norm = adam_step(hp, opt, step_size, inv_sqrt_bias2, gradient)
        assert torch.equal(gradient, vectors["gradient"])
        assert float(norm) == pytest.approx(float(gradient.double().norm()), rel=2.0**-23)
        ours = {"flat": opt.flat, "norm": norm, "exp_avg": opt.exp_avg, "exp_avg_sq": opt.exp_avg_sq}
        expected = [torch_adam(hp, dtype, learning_rate, step, vectors) for dtype in (torch.float32, torch.float64)]
        rule.add(ours, *expected)
    assert 8 <= clipped <= 32  # both sides of the bound were met
    rule.check()


def test_clipping_bounds_the_norm_of_the_whole_gradient_and_reports_it_unclipped() -> None:
    flat = training.random_parameters(MODEL, 5)
    rollout = training.random_rollout(MODEL, flat, 5)
    free, bound = make_learner(flat, max_grad_norm=NO_CLIP), make_learner(flat, max_grad_norm=0.01)
    unclipped, clipped = free.update(rollout), bound.update(rollout)
    gradient, small = (learner.state()["exp_avg"].double() / BETA1 for learner in (free, bound))
    norm = float(gradient.norm())
    assert norm > 0.01
    # A float32 norm of P numbers; summed pairwise its relative error is a few ulp.
    assert unclipped["grad_norm"] == clipped["grad_norm"] == pytest.approx(norm, rel=8 * 2.0**-24)
    assert float(small.norm()) == pytest.approx(0.01 * norm / (norm + 1e-6), rel=8 * 2.0**-24)
    cosine = float(torch.dot(gradient, small) / (gradient.norm() * small.norm()))
    assert cosine == pytest.approx(1.0, abs=1e-12)  # second order in the rounding of each component


@pytest.mark.parametrize(("anneal", "progress", "factor"), [(True, 0.0, 1.0), (True, 0.25, 0.75), (False, 0.25, 1.0)])
def test_first_step_has_the_size_of_the_scheduled_learning_rate(anneal: bool, progress: float, factor: float) -> None:
    # At t = 1, m/(1-β₁) = g and v/(1-β₂) = g², so every parameter moves by lr · g / (|g| + eps).
    flat = training.random_parameters(MODEL, 6)
    learner = make_learner(flat, learning_rate=0.01, anneal_lr=anneal, adam_eps=1e-5)
    learner.set_progress(progress)
    metrics = learner.update(training.random_rollout(MODEL, flat, 6))
    assert metrics["learning_rate"] == 0.01 * factor
    gradient = learner.state()["exp_avg"].double() / BETA1
    expected = -0.01 * factor * gradient / (gradient.abs() + 1e-5)
    moved = learner.flat.double() - flat.double()
    # Six roundings of the step, and that of the sum with a parameter below 2 in magnitude.
    bound = 6 * 2.0**-24 * expected.abs() + 2.0**-24 * 2
    assert bool(((moved - expected).abs() <= bound).all())
    assert float(flat.abs().max()) < 2


# Masks


@pytest.mark.parametrize("clip_vloss", [False, True])
@pytest.mark.parametrize("norm_adv", ["none", "batch", "minibatch"])
def test_nan_in_reset_rows_changes_not_one_bit_of_the_update(norm_adv: str, clip_vloss: bool) -> None:
    options = {"norm_adv": norm_adv, "clip_vloss": clip_vloss, "minibatch_size": 32, "update_epochs": 3}
    flat = training.random_parameters(MODEL, 7)
    clean, poisoned = (training.random_rollout(MODEL, flat, 7) for _ in range(2))
    for name in POISONED:
        getattr(poisoned, name)[~poisoned.valid] = np.nan
    assert 10 < (~clean.valid).sum() < 30
    results = []
    for rollout in (clean, poisoned):
        learner = make_learner(flat, **options)
        metrics = learner.update(rollout)
        assert all(map(math.isfinite, metrics.values()))
        results.append((metrics, snapshot(learner)))
    assert results[0] == results[1]


def test_nan_in_valid_rows_does_reach_the_update() -> None:  # the control arm of the test above
    flat = training.random_parameters(MODEL, 7)
    for name in ("actions", "log_probs", "advantages", "returns"):
        rollout = training.random_rollout(MODEL, flat, 7)
        row = tuple(np.argwhere(rollout.valid)[0])
        getattr(rollout, name)[row] = np.nan
        learner = make_learner(flat)
        learner.update(rollout)
        assert not learner.is_finite(), name


def test_minibatch_of_reset_rows_alone_makes_no_step() -> None:
    flat = training.random_parameters(MODEL, 8)
    order = reference.permutation(128, 1, 0)  # seed 1, the first epoch
    rollout, only_rest = (training.random_rollout(MODEL, flat, 8, reset_rows=0.0) for _ in range(2))
    rollout.valid.reshape(-1)[order[32:64]] = False  # the second minibatch of four
    learner = make_learner(flat, minibatch_size=32)
    metrics = learner.update(rollout)
    assert learner.state()["counters"].tolist() == [3, 1]  # steps of Adam, epochs
    assert all(map(math.isfinite, metrics.values()))

    # A reset row before the first real step does not age Adam either: with one minibatch left that counts, the update
    # is bit for bit the first step of a learner that sees that minibatch alone.
    for skipped in (slice(32, 128), slice(0, 96)):
        only_rest.valid[:] = True
        only_rest.valid.reshape(-1)[order[skipped]] = False
        learner = make_learner(flat, minibatch_size=32, learning_rate=0.01, max_grad_norm=NO_CLIP)
        learner.update(only_rest)
        gradient = learner.state()["exp_avg"].double() / BETA1
        moved = (learner.flat.double() - flat.double()).abs()
        assert learner.state()["counters"].tolist() == [1, 1]
        expected = 0.01 * gradient.abs() / (gradient.abs() + 1e-5)  # what t = 1 gives, see above
        assert bool(((moved - expected).abs() <= 6 * 2.0**-24 * expected + 2.0**-23).all())


def test_rollout_of_reset_rows_alone_changes_nothing() -> None:
    flat = training.random_parameters(MODEL, 9)
    rollout = training.random_rollout(MODEL, flat, 9)
    rollout.valid[:] = False
    for norm_adv in ("none", "batch", "minibatch"):
        learner = make_learner(flat, norm_adv=norm_adv, target_kl=0.01)
        metrics = learner.update(rollout)
        assert torch.equal(learner.flat, flat)
        assert not learner.state()["exp_avg"].any()
        assert not learner.state()["exp_avg_sq"].any()
        assert learner.state()["counters"].tolist() == [0, 1]
        assert all(map(math.isfinite, metrics.values()))


def test_one_valid_row_has_a_normalised_advantage_of_zero() -> None:
    flat = training.random_parameters(MODEL, 10)
    rollout = training.random_rollout(MODEL, flat, 10)
    rollout.valid[:] = False
    rollout.valid[3, 4] = True
    for norm_adv in ("batch", "minibatch"):
        learner = make_learner(flat, norm_adv=norm_adv, vf_coef=0.0)
        assert learner.update(rollout)["policy_loss"] == 0.0
        assert torch.equal(learner.flat, flat)  # A = 0: no policy gradient, and the value has no weight


# How an update proceeds


@pytest.fixture
def minibatches(monkeypatch: pytest.MonkeyPatch) -> list[Minibatch]:
    """Record a copy of every minibatch that an eager learner steps on."""
    seen: list[Minibatch] = []
    step = torch_learner.minibatch_step

    def spy(model: Any, hp: Any, compiled: bool, opt: Optimizer, scalars: Tensor, mb: Minibatch) -> None:
        seen.append(Minibatch(*(tensor.clone() for tensor in mb)))
        step(model, hp, compiled, opt, scalars, mb)

    monkeypatch.setattr(torch_learner, "minibatch_step", spy)
    return seen


def test_every_row_is_used_once_per_epoch_in_the_order_of_the_reference(minibatches: list[Minibatch]) -> None:
    flat = training.random_parameters(MODEL, 11)
    rollout = training.random_rollout(MODEL, flat, 11, reset_rows=0.0)
    rollout.returns[:] = np.arange(128).reshape(16, 8)  # row t·N + env, exact in float32
    learner = make_learner(flat, minibatch_size=32, update_epochs=3, seed=5)
    for update in range(2):
        minibatches.clear()
        learner.update(rollout)
        assert [len(mb.valid) for mb in minibatches] == [32] * 12
        rows = torch.cat([mb.returns for mb in minibatches]).numpy().astype(np.int64).reshape(3, 128)
        for epoch in range(3):
            np.testing.assert_array_equal(rows[epoch], reference.permutation(128, 5, update * 3 + epoch))
        # Every field of a row travels with it.
        t, env = np.divmod(rows[-1], 8)
        for name in FLOAT_FIELDS:
            whole = torch.cat([getattr(mb, name) for mb in minibatches[-4:]]).numpy()
            array = rollout.norm_obs if name == "norm_obs" else getattr(rollout, name)
            if name == "advantages":
                continue
            np.testing.assert_array_equal(whole, array[t, env], err_msg=name)


def test_batch_normalisation_is_over_the_valid_rows_of_the_whole_batch(minibatches: list[Minibatch]) -> None:
    rule = TwoTimesRule()
    for seed in range(32):
        flat = training.random_parameters(MODEL, seed)
        rollout = training.random_rollout(MODEL, flat, seed, num_steps=64)
        order = reference.permutation(512, 1, 0)
        order = order[rollout.valid.reshape(-1)[order]]
        minibatches.clear()
        make_learner(flat, num_steps=64, minibatch_size=64, norm_adv="batch").update(rollout)
        used = torch.cat([mb.advantages[mb.valid > 0] for mb in minibatches])
        single, double = (
            losses.normalize_advantages(training.valid_rows(rollout, dtype)["advantages"]).numpy()
            for dtype in (torch.float32, torch.float64)
        )
        places = np.cumsum(rollout.valid.reshape(-1))[order] - 1  # of each shuffled row among the valid ones
        rule.add(*({"advantages": x} for x in (used.numpy(), single[places], double[places])))
        assert abs(float(used.double().mean())) < 1e-6
        assert abs(float(used.double().std(correction=0)) - 1) < 1e-6
    rule.check()
    assert abs(float(minibatches[0].advantages[minibatches[0].valid > 0].mean())) > 1e-3  # not per minibatch


def test_the_learning_rate_follows_the_kl_of_the_last_epoch() -> None:
    flat = training.random_parameters(MODEL, 3)
    options = {"adaptive_kl": 0.01, "anneal_lr": False, "learning_rate": 1e-3, "update_epochs": 3}
    rates = []
    for kl, expected in ((0.021, 1e-3 / 1.5), (0.0199, 1e-3), (0.0051, 1e-3), (0.0049, 1.5e-3)):
        learner = make_learner(flat=flat, **options)
        found = torch.zeros(3, len(STATS))
        found[:, STATS.index("rows")] = 100.0
        found[:2, STATS.index("approx_kl")] = 100.0 * 7.0  # earlier epochs do not count
        found[2, STATS.index("approx_kl")] = 100.0 * kl
        learner._epochs = lambda batch, passes, found=found: found  # type: ignore[method-assign]
        learner.update(training.random_rollout(MODEL, flat, 3))
        learner.set_progress(0.9, 0.5)
        assert learner.learning_rate == pytest.approx(0.5 * expected)
        rates.append(learner.learning_rate)
    assert len(set(rates)) == 3


def test_the_adapted_rate_stays_in_its_bounds_and_goes_with_the_state() -> None:
    flat = training.random_parameters(MODEL, 4)
    options = {"adaptive_kl": 1e-9, "anneal_lr": False, "learning_rate": 2e-6}
    learner = make_learner(flat=flat, **options)
    for seed in range(4):
        learner.update(training.random_rollout(MODEL, flat, seed))
    assert learner.base_rate == 1e-6
    other = make_learner(flat=flat, **options)
    other.load(learner.state())
    assert other.base_rate == 1e-6
    double = {"dtype": torch.float64}
    for wrong in (torch.tensor([1.0]), torch.tensor([math.nan], **double), torch.zeros(1, **double)):
        with pytest.raises(ShapeError, match="base_rate"):
            other.load({**learner.state(), "base_rate": wrong})
    up = make_learner(flat=flat, adaptive_kl=1e9, anneal_lr=False, learning_rate=9e-3)
    up.update(training.random_rollout(MODEL, flat, 1))
    assert up.base_rate == 1e-2


def batches_learned_from(
    monkeypatch: pytest.MonkeyPatch, learner: TorchLearner, rollout: Rollout
) -> list[dict[str, Any]]:
    """Update, and return the advantages and returns that each pass learned from."""
    seen: list[dict[str, Any]] = []
    real = learner._epochs

    def watched(batch: dict[str, Any], passes: int) -> Tensor:
        seen.extend({name: batch[name].copy() for name in ("advantages", "returns")} for _ in range(passes))
        return real(batch, passes)

    monkeypatch.setattr(learner, "_epochs", watched)
    learner.update(rollout)
    return seen


@pytest.mark.parametrize("norm_adv", ["none", "batch", "minibatch"])
def test_advantages_are_recomputed_with_the_critic_of_the_moment(
    monkeypatch: pytest.MonkeyPatch, norm_adv: str
) -> None:
    flat, keep = training.random_parameters(MODEL, 5), None
    rollout = training.random_rollout(MODEL, flat, 5)
    rng = np.random.default_rng(5)
    rollout.scaled_rewards[:] = rng.normal(size=rollout.valid.shape)
    rollout.done[:] = rng.random(rollout.valid.shape) < 0.1
    rollout.terminated[:] = rollout.done & (rng.random(rollout.valid.shape) < 0.5)
    keep = rollout.valid.reshape(-1)
    options = {"norm_adv": norm_adv, "learning_rate": 0.01, "minibatch_size": 64, "gamma": 0.9, "gae_lambda": 0.8}
    learner = make_learner(flat, recompute_adv=True, update_epochs=3, **options)
    passes = batches_learned_from(monkeypatch, learner, rollout)
    assert len(passes) == 3
    for number in (1, 2):  # the critic after so many passes, found by a learner that stops there
        before = make_learner(flat, recompute_adv=True, update_epochs=number, **options)
        before.update(rollout)
        net = training.reference_net(MODEL, before.flat, torch.float64)
        with torch.no_grad():
            values = net(torch.from_numpy(rollout.norm_obs.astype(float)).reshape(-1, OBS_DIM))[1].numpy()
        values = values.reshape(rollout.values_all.shape)
        advantages, returns = reference.gae_from_definition(
            rollout.scaled_rewards, values[:-1], values[1:], rollout.terminated, rollout.done, gamma=0.9, gae_lambda=0.8
        )
        expected = advantages.reshape(-1)[keep]
        if norm_adv == "batch":
            expected = (expected - expected.mean()) / expected.std()
        np.testing.assert_allclose(passes[number]["advantages"][keep], expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(passes[number]["returns"][keep], returns.reshape(-1)[keep], rtol=1e-4, atol=1e-5)
        assert np.abs(passes[number]["returns"][keep] - passes[number - 1]["returns"][keep]).max() > 0.01
        assert not passes[number]["returns"][~keep].any()


def test_recomputing_leaves_a_single_pass_as_it_was_and_the_kl_rule_in_force() -> None:
    flat = training.random_parameters(MODEL, 6)
    rollout = training.random_rollout(MODEL, flat, 6)
    plain, again = (make_learner(flat, recompute_adv=recompute, minibatch_size=64) for recompute in (False, True))
    assert plain.update(rollout) == again.update(rollout)
    assert snapshot(plain) == snapshot(again)
    options = {"recompute_adv": True, "update_epochs": 5, "minibatch_size": 32, "learning_rate": 3e-3}
    kl = make_learner(flat, **{**options, "update_epochs": 1}).update(rollout)["approx_kl"]
    assert make_learner(flat, target_kl=kl / 2, **options).update(rollout)["epochs"] == 1
    assert make_learner(flat, target_kl=100.0, **options).update(rollout)["epochs"] == 5


def test_restored_state_continues_as_if_nothing_had_happened() -> None:
    flat = training.random_parameters(MODEL, 13)
    first, second = (training.random_rollout(MODEL, flat, seed) for seed in (13, 14))
    options = {"minibatch_size": 32, "update_epochs": 2}
    straight = make_learner(flat, **options)
    straight.update(first)
    restored = make_learner(straight.flat, **options)
    restored.load(straight.state())
    assert straight.update(second) == restored.update(second)
    assert snapshot(straight) == snapshot(restored)

    amnesiac = make_learner(flat, **options)  # the control arm: Adam and the epochs forgotten
    amnesiac.update(first)
    set_state(amnesiac, amnesiac.flat.clone())
    amnesiac.update(second)
    assert snapshot(amnesiac) != snapshot(straight)


def test_a_state_that_was_handed_out_does_not_change_with_the_learner() -> None:
    flat = training.random_parameters(MODEL, 15)
    learner = make_learner(flat)
    learner.update(training.random_rollout(MODEL, flat, 15))
    state = learner.state()
    copies = {name: tensor.clone() for name, tensor in state.items()}
    learner.update(training.random_rollout(MODEL, flat, 16))
    assert all(torch.equal(state[name], copies[name]) for name in state)


def test_an_update_writes_to_nothing_in_the_rollout() -> None:
    flat = training.random_parameters(MODEL, 17)
    rollout, untouched = (training.random_rollout(MODEL, flat, 17) for _ in range(2))
    make_learner(flat, norm_adv="batch").update(rollout)
    for name, array in vars(untouched).items():
        np.testing.assert_array_equal(getattr(rollout, name), array, err_msg=name)


# Compiled

COMPILED_LOSS = Loss(clip_vloss=True, ent_coef=0.01)
COMPILED_BOUND = 3.0  # on the gradient's norm, which is below and above it in the rollouts used


@pytest.fixture(scope="module")
def compiled() -> TorchLearner:
    """One compiled learner for all tests, with every optional term of the loss; skipped where nothing compiles."""
    torch.set_num_threads(1)
    torch._dynamo.utils.counters.clear()
    try:
        return make_learner(
            update="compile", minibatch_size=32, norm_adv="minibatch", clip_vloss=True, ent_coef=0.01,
            max_grad_norm=COMPILED_BOUND,
        )  # fmt: skip
    except BackendError as err:
        pytest.skip(str(err))


def clipped_references(flat: Tensor, rollout: Rollout) -> list[tuple[dict[str, Tensor], float, Any]]:
    """Return (parameters by name with clipped gradients, norm before clipping, metrics) in float32 and in float64."""
    out = []
    for dtype in (torch.float32, torch.float64):
        net = training.reference_net(MODEL, flat, dtype)
        _, metrics = training.reference_gradient(net, training.valid_rows(rollout, dtype), COMPILED_LOSS)
        norm = torch.nn.utils.clip_grad_norm_(net.parameters(), COMPILED_BOUND)
        out.append((training.reference_parameters(net), float(norm), metrics))
    return out


def test_compiled_gradient_is_as_exact_as_the_float32_reference(compiled: TorchLearner) -> None:
    assert compiled.mode == "compile"
    assert compiled.compile_s > 0
    gradients, metrics, norms = TwoTimesRule(), TwoTimesRule(), []
    for seed in range(32):
        flat = training.random_parameters(MODEL, seed)
        rollout = training.random_rollout(MODEL, flat, seed)
        # All rows but those of one minibatch are reset rows: the update is one step, exp_avg one clipped gradient.
        order = reference.permutation(128, 1, seed)
        rollout.valid.reshape(-1)[np.delete(order, np.s_[32 * (seed % 4) : 32 * (seed % 4) + 32])] = False
        set_state(compiled, flat, epochs_done=seed)
        reported = compiled.update(rollout)
        assert compiled.state()["counters"].tolist() == [1, seed + 1]
        single, double = clipped_references(flat, rollout)
        ours = by_name(compiled.state()["exp_avg"].double() / BETA1)
        gradients.add(ours, *({name: p.grad for name, p in part[0].items()} for part in (single, double)))
        expected = [{**part[2], "grad_norm": part[1]} for part in (single, double)]
        metrics.add({name: reported[name] for name in expected[1]}, *expected)
        norms.append(double[1])
    assert min(norms) < COMPILED_BOUND < max(norms)
    gradients.check()
    metrics.check()


def test_compiled_step_is_one_graph_and_never_compiles_again(compiled: TorchLearner) -> None:
    counters = torch._dynamo.utils.counters
    flat = training.random_parameters(MODEL, 20)
    set_state(compiled, flat)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for update in range(6):
            compiled.set_progress(update / 6)
            compiled.learning_rate *= 0.9**update  # a new rate every time, whatever the schedule
            compiled.update(training.random_rollout(MODEL, flat, update, reset_rows=0.1 * update))
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


def test_a_process_may_compile_more_learners_than_torch_compiles_one_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))

    def bound(width: int) -> Callable[[Tensor], None]:
        def step(x: Tensor) -> None:
            x.add_(torch.ones(width).sum())

        return step

    x, widths = torch.zeros(()), range(1, torch._dynamo.config.recompile_limit + 3)

    def all_of_them(compiled: Callable[..., Any]) -> None:
        for width in widths:
            compiled(bound(width))(x)

    all_of_them(torch_learner.compiled_apart)
    assert x == sum(widths)
    with pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit):  # the control arm: what torch does by itself
        all_of_them(functools.partial(torch.compile, fullgraph=True, dynamic=False))


def test_compiled_update_is_blind_to_nan_in_reset_rows(compiled: TorchLearner) -> None:
    flat = training.random_parameters(MODEL, 21)
    results = []
    for poison in (False, True):
        rollout = training.random_rollout(MODEL, flat, 21)
        if poison:
            for name in POISONED:
                getattr(rollout, name)[~rollout.valid] = np.nan
        set_state(compiled, flat)
        results.append((compiled.update(rollout), snapshot(compiled)))
    assert results[0] == results[1]


def test_compiled_whole_step_is_as_exact_as_torch_adam(compiled: TorchLearner) -> None:
    rule = TwoTimesRule()
    for seed in range(32):
        generator = torch.Generator().manual_seed(seed)
        flat = training.random_parameters(MODEL, seed)
        exp_avg = 0.01 * torch.randn(MODEL.num_params, generator=generator)
        exp_avg_sq = 1e-3 * torch.rand(MODEL.num_params, generator=generator)
        rollout = training.random_rollout(MODEL, flat, seed)
        rollout.valid.reshape(-1)[reference.permutation(128, 1, seed)[32:]] = False
        compiled.flat.copy_(flat)
        compiled.load({"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq, "counters": torch.tensor([seed, seed])})
        compiled.learning_rate = 0.1  # so large that the step's error shows beside the parameter's rounding
        compiled.update(rollout)

        expected = []
        for parameters, _, _ in clipped_references(flat, rollout):
            optimizer = torch.optim.Adam(parameters.values(), lr=0.1, eps=1e-5)
            state = {"exp_avg": MODEL.unflatten(exp_avg), "exp_avg_sq": MODEL.unflatten(exp_avg_sq)}
            for name, parameter in parameters.items():
                moments = {key: views[name].to(parameter.dtype, copy=True) for key, views in state.items()}
                optimizer.state[parameter] = {"step": torch.tensor(float(seed)), **moments}
            optimizer.step()
            values = {f"{name} flat": p.detach() for name, p in parameters.items()}
            moments = {f"{name} {key}": optimizer.state[p][key] for name, p in parameters.items() for key in state}
            expected.append({**values, **moments})
        after = {"flat": compiled.flat, **{key: compiled.state()[key] for key in ("exp_avg", "exp_avg_sq")}}
        ours = {f"{name} {key}": part for key, vector in after.items() for name, part in by_name(vector).items()}
        rule.add(ours, *expected)
    rule.check()


# Which of the two runs


def broken_compile(*args: Any, **options: Any) -> Any:
    raise RuntimeError("no C++ compiler found\nand a long trace")


def test_compiling_by_name_without_a_compiler_is_an_error_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda *_, **__: broken_compile)
    with pytest.raises(BackendError, match=r"--update compile.*no C\+\+ compiler found$"):
        make_learner(update="compile")


def test_auto_without_a_compiler_falls_back_aloud(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch, "compile", lambda *_, **__: broken_compile)
    monkeypatch.setattr(torch_learner, "COMPILE_PAYS_AFTER", 0)
    with caplog.at_level(logging.WARNING, logger="ppo_fast"):
        learner = make_learner(update="auto")
    assert learner.mode == "eager"
    assert "no C++ compiler found" in learner.why_eager
    assert "no C++ compiler found" in caplog.text


@pytest.mark.parametrize("update", ["eager", "auto"])
def test_a_short_run_does_not_try_to_compile(monkeypatch: pytest.MonkeyPatch, update: str) -> None:
    monkeypatch.setattr(torch, "compile", lambda *_, **__: pytest.fail("compiled"))
    learner = make_learner(update=update, total_timesteps=10_000)
    assert (learner.mode, learner.compile_s) == ("eager", 0.0)
    assert learner.why_eager


def test_gradient_and_metrics_hold_in_float64_to_its_precision() -> None:
    # The same functions, run in float64, must meet the float64 reference up to float64 rounding: nothing in them is an
    # approximation. Sums of 128 rows of numbers of order 1: 1e-12 is a thousand times their rounding.
    hp = LossConfig(0.2, True, True, 0.01, 0.5, NO_CLIP, 1e-5)
    flat = training.random_parameters(MODEL, 22)
    rollout = training.random_rollout(MODEL, flat, 22)
    minibatch, inv_count = masked_minibatch(rollout, dtype=torch.float64)
    leaf = flat.double().requires_grad_()
    loss, sums = ppo_loss(MODEL, hp, leaf, inv_count, minibatch)
    (gradient,) = torch.autograd.grad(loss, leaf)
    _, (expected, metrics) = references(flat, rollout, Loss(clip_vloss=True, ent_coef=0.01))
    for name, part in by_name(gradient).items():
        np.testing.assert_allclose(part.numpy(), expected[name].numpy(), rtol=0, atol=1e-12)
    order = ("policy_loss", "value_loss", "entropy", "approx_kl", "clip_frac")
    for name, total in zip(order, sums.tolist()[:5], strict=True):
        assert total * float(inv_count) == pytest.approx(metrics[name], abs=1e-12), name
    assert sums[5] == minibatch.valid.sum()
