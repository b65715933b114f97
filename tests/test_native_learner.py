"""The native learner against torch: gradients, Adam, whole updates, masks, SIMD levels, state, bad input.

Axes: B rows · M rows of a minibatch · D observation · A action · P parameters.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import hypothesis
import memory
import numpy as np
import pytest
import torch
import training
from hypothesis import strategies as st
from torch import Tensor
from training import LEVELS, TwoTimesRule, one_thread  # noqa: F401

from ppo_fast import kernels
from ppo_fast.batch import Rollout
from ppo_fast.config import Config
from ppo_fast.errors import BackendError, ConfigError, ShapeError
from ppo_fast.learners import choose, native
from ppo_fast.learners.native import NativeLearner
from ppo_fast.learners.ppo_base import PPOLearner
from ppo_fast.learners.ppo_step import LossConfig, Minibatch, eager_gradient
from ppo_fast.learners.torch_learner import TorchLearner
from ppo_fast.models import ActorCritic, gaussian_log_prob
from ppo_fast.native import ACTIVATIONS

CPU = torch.device("cpu")
MODEL = ActorCritic(training.OBS_DIM, training.ACT_DIM)
NO_CLIP = 1e30  # a bound on the gradient's norm that never binds
FUSED = [level for level in LEVELS if level != "baseline"]


pytestmark = pytest.mark.usefixtures("native_core", "one_thread")


def make_config(**options: Any) -> Config:
    """Return a config for rollouts of 16 steps x 8 environments; one minibatch and one epoch by default."""
    defaults: dict[str, Any] = {"num_envs": 8, "num_steps": 16, "minibatch_size": 128, "update_epochs": 1}
    return Config(**{**defaults, "anneal_lr": False, **options})


def make_learner(
    model: ActorCritic = MODEL, flat: Tensor | None = None, *, simd: str = "", **options: Any
) -> NativeLearner:
    flat = training.random_parameters(model, 1) if flat is None else flat
    return NativeLearner(model, flat, make_config(**options), simd=simd)


def random_batch(model: ActorCritic, flat: Tensor, seed: int, rows: int, *, reset_rows: float = 0.15) -> dict[str, Any]:
    """Return a staged batch whose ratios spread over both sides of the clip range; at least one row counts."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int, scale: float = 1.0) -> Any:
        return rng.normal(scale=scale, size=shape).astype(np.float32)

    norm_obs = normal(rows, model.obs_dim)
    params = model.params(flat)
    mean = model.mean(params, torch.from_numpy(norm_obs))
    actions = mean + params.log_std.exp() * torch.from_numpy(normal(rows, model.act_dim))
    log_probs = gaussian_log_prob(mean, params.log_std, actions).numpy() + normal(rows, scale=0.25)
    returns = normal(rows)
    valid = (rng.random(rows) >= reset_rows).astype(np.float32)
    valid[rng.integers(rows)] = 1.0
    return {
        "norm_obs": norm_obs,
        "actions": actions.numpy(),
        "log_probs": log_probs.astype(np.float32),
        "advantages": normal(rows, scale=2.0) + np.float32(0.3),
        "returns": returns,
        "values": returns + normal(rows, scale=0.4),
        "valid": valid,
    }


def autograd(
    model: ActorCritic, hp: LossConfig, flat: Tensor, batch: dict[str, Any], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return gradient and metric sums by torch, the rows that do not count dropped."""
    keep = batch["valid"] > 0
    mb = Minibatch(**{name: torch.from_numpy(array[keep]).to(dtype) for name, array in batch.items()})
    return eager_gradient(model, hp, flat.to(dtype), 1.0 / mb.valid.sum(), mb)


def parts(model: ActorCritic, vector: Tensor) -> dict[str, Tensor]:
    return {name: view.detach() for name, view in model.unflatten(vector).items()}


def snapshot(learner: PPOLearner) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in {"flat": learner.flat, **learner.state()}.items()}


# --- gradients -------------------------------------------------------------------------------------------------------
def check_gradient(model: ActorCritic, rows: int, simd: str = "", **options: Any) -> None:
    """Hold gradient and metrics to the 2x rule over random batches and parameters: at least 32, and 512 rows."""
    learner = make_learner(model, num_envs=1, num_steps=rows, minibatch_size=rows, simd=simd, **options)
    gradients, metrics = TwoTimesRule(), TwoTimesRule()
    for seed in range(max(32, 512 // rows)):  # a single row of a large ratio must not decide
        flat = training.random_parameters(model, seed)
        batch = random_batch(model, flat, seed, rows)
        learner.flat.copy_(flat)
        gradient, sums = learner.gradient(batch, np.random.default_rng(seed).permutation(rows))
        single, single_sums = autograd(model, learner.hp, flat, batch, torch.float32)
        double, double_sums = autograd(model, learner.hp, flat, batch, torch.float64)
        gradients.add(*(parts(model, g) for g in (gradient, single, double)))
        assert sums[4:].tolist() == [pytest.approx(double_sums[4]), double_sums[5], 0, 0]  # clipped rows, rows
        metrics.add(*({"sums": s[:4]} for s in (sums, single_sums, double_sums)))
    gradients.check()
    metrics.check()


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("clip_vloss", [False, True])
@pytest.mark.parametrize("norm_adv", ["none", "minibatch"])
@pytest.mark.parametrize("ent_coef", [0.0, 0.01])
def test_gradient_of_every_loss_is_as_exact_as_eager(
    activation: str, clip_vloss: bool, norm_adv: str, ent_coef: float
) -> None:
    model = replace(MODEL, activation=activation)
    check_gradient(model, 64, clip_vloss=clip_vloss, norm_adv=norm_adv, ent_coef=ent_coef)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("hidden_sizes", [(7,), (17, 33), (64, 64), (100, 50, 20), (1,), (130, 16)])
def test_gradient_of_every_shape_is_as_exact_as_eager(activation: str, hidden_sizes: tuple[int, ...]) -> None:
    check_gradient(ActorCritic(13, 5, hidden_sizes, activation), 50, clip_vloss=True, ent_coef=0.01)


@pytest.mark.parametrize("simd", LEVELS)
@pytest.mark.parametrize(("obs_dim", "act_dim"), [(1, 1), (105, 8), (376, 17)])
def test_gradient_on_every_simd_level_is_as_exact_as_eager(simd: str, obs_dim: int, act_dim: int) -> None:
    check_gradient(ActorCritic(obs_dim, act_dim), 61, simd, clip_vloss=True, ent_coef=0.01)


@pytest.mark.parametrize("rows", [1, 2, 3, 15, 16, 17, 129])
@pytest.mark.parametrize("norm_adv", ["none", "minibatch"])
def test_gradient_of_any_number_of_rows_is_as_exact_as_eager(rows: int, norm_adv: str) -> None:
    check_gradient(MODEL, rows, norm_adv=norm_adv)


@hypothesis.settings(max_examples=30)
@hypothesis.given(
    st.integers(1, 40), st.integers(1, 20), st.lists(st.integers(1, 40), min_size=1, max_size=3), st.integers(1, 40),
    st.sampled_from(ACTIVATIONS), st.sampled_from(LEVELS),
)  # fmt: skip
def test_gradient_of_any_shape_is_near_autograd(
    obs_dim: int, act_dim: int, hidden_sizes: list[int], rows: int, activation: str, simd: str
) -> None:
    model = ActorCritic(obs_dim, act_dim, tuple(hidden_sizes), activation)
    flat = training.random_parameters(model, rows)
    batch = random_batch(model, flat, rows, rows)
    learner = make_learner(model, flat, num_envs=1, num_steps=rows, minibatch_size=rows, norm_adv="none", simd=simd)
    gradient, _ = learner.gradient(batch, np.arange(rows))
    exact, _ = autograd(model, learner.hp, flat, batch, torch.float64)
    # Not accuracy (the 2x rule above) but indexing: one wrong or missing entry is an error of the order of the norm.
    assert float((gradient - exact).norm()) <= 1e-4 * float(exact.norm())


@pytest.mark.parametrize("simd", LEVELS)
def test_a_row_has_the_same_gradient_wherever_it_stands_and_whoever_stands_beside_it(simd: str) -> None:
    flat = training.random_parameters(MODEL, 3)
    batch = random_batch(MODEL, flat, 3, 40, reset_rows=0.0)
    learner = make_learner(MODEL, flat, num_envs=1, num_steps=40, minibatch_size=40, norm_adv="none", simd=simd)
    # With an advantage of 0 every other row adds an exact 0 to the actor's gradient; what is left is row 7, divided by
    # the number of rows: exactly, if that is a power of two.
    alone = learner.gradient(batch, np.array([7]))[0]
    batch["advantages"][np.arange(40) != 7] = 0.0
    actor = slice(0, sum(p.numel() for name, p in MODEL.unflatten(flat).items() if name.startswith("actor")))
    for count in (2, 4, 8, 16, 32):
        for position in {0, 1, count // 2, count - 1}:
            others = np.random.default_rng(count).permutation(np.delete(np.arange(40), 7))[: count - 1]
            gradient = learner.gradient(batch, np.insert(others, position, 7))[0]
            assert torch.equal(gradient[actor] * count, alone[actor]), (count, position)


# --- SIMD levels -----------------------------------------------------------------------------------------------------
def update_digest(simd: str) -> str:
    """Return a hash of everything that some updates leave behind, over all activations."""
    digest = hashlib.sha256()
    for i, activation in enumerate(ACTIVATIONS):
        model = ActorCritic(training.OBS_DIM, training.ACT_DIM, (64, 64) if i % 2 else (33, 17, 8), activation)
        flat = training.random_parameters(model, i)
        options = {"minibatch_size": 32, "update_epochs": 3, "clip_vloss": True, "ent_coef": 0.01}
        learner = make_learner(model, flat, simd=simd, **options)
        rollout = training.random_rollout(MODEL, training.random_parameters(MODEL, i), i)
        metrics = learner.update(rollout)
        digest.update(repr(sorted(metrics.items())).encode())
        for value in snapshot(learner).values():
            digest.update(value)
    return digest.hexdigest()


@pytest.mark.skipif(len(FUSED) < 2, reason="this processor has not both AVX-512 and AVX2")
def test_avx512_and_avx2_give_equal_bits() -> None:
    assert update_digest("avx512") == update_digest("avx2")
    assert update_digest("avx512") != update_digest("baseline")  # the control arm: the digest does see rounding


@pytest.mark.parametrize("simd", LEVELS)
def test_environment_variable_forces_a_level(simd: str) -> None:
    code = "from ppo_fast import _core; print(_core.simd_level())"
    environment = {**os.environ, "PPO_FAST_SIMD": simd}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == simd


def test_an_argument_beats_the_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PPO_FAST_SIMD", LEVELS[0])
    assert make_learner(simd="baseline").simd == "baseline"
    assert make_learner().simd == LEVELS[0]


def test_an_unknown_level_is_an_error_that_names_those_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendError, match=f"simd must be one of {', '.join(LEVELS)} .*got 'avx3'"):
        make_learner(simd="avx3")
    monkeypatch.setenv("PPO_FAST_SIMD", "mmx")
    with pytest.raises(BackendError, match=r"PPO_FAST_SIMD must be one of .*got 'mmx'"):
        make_learner()


# --- Adam and whole updates ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("simd", LEVELS)
def test_step_is_as_exact_as_torch_adam_given_equal_gradients(simd: str) -> None:
    rule, clipped = TwoTimesRule(), 0
    size, learning_rate = MODEL.num_params, 3e-4
    learner = make_learner(MODEL, torch.zeros(size), learning_rate=learning_rate, max_grad_norm=0.5, simd=simd)
    for seed in range(40):
        rng = np.random.default_rng(seed)
        t = int(rng.integers(1, 2000))
        arrays = (
            rng.normal(scale=10 ** rng.uniform(-4, -1), size=size),
            rng.normal(scale=0.01, size=size) * (seed % 4 > 0),
            rng.uniform(0, 1e-4, size=size) * (seed % 4 > 0),
        )
        gradient, exp_avg, exp_avg_sq = (torch.from_numpy(array.astype(np.float32)) for array in arrays)
        clipped += float(gradient.norm()) > 0.5
        expected = []
        for dtype in (torch.float32, torch.float64):
            parameter = torch.nn.Parameter(torch.zeros(size, dtype=dtype))
            optimizer = torch.optim.Adam([parameter], lr=learning_rate, betas=(0.9, 0.999), eps=1e-5)
            moments = {"exp_avg": exp_avg.to(dtype, copy=True), "exp_avg_sq": exp_avg_sq.to(dtype, copy=True)}
            optimizer.state[parameter] = {"step": torch.tensor(float(t - 1)), **moments}
            parameter.grad = gradient.to(dtype, copy=True)
            norm = torch.nn.utils.clip_grad_norm_([parameter], 0.5)
            optimizer.step()
            expected.append({"flat": parameter.detach(), **moments, "norm": norm})
        learner.flat.zero_()  # so that what is compared is the step and not the rounding of a sum with it
        learner.load({"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq, "counters": torch.tensor([t - 1, 0])})
        norm = learner.step(gradient)
        assert learner.adam_steps == t
        ours = {"flat": learner.flat, "exp_avg": learner.exp_avg, "exp_avg_sq": learner.exp_avg_sq, "norm": norm}
        rule.add({name: torch.as_tensor(value).numpy() for name, value in ours.items()}, *expected)
    assert 8 <= clipped <= 32
    rule.check()


@pytest.mark.parametrize("simd", LEVELS)
def test_a_gradient_whose_squares_overflow_is_clipped_like_another(simd: str) -> None:
    flat = training.random_parameters(MODEL, 3)
    huge, large = (make_learner(MODEL, flat, simd=simd) for _ in range(2))
    gradient = torch.randn(MODEL.num_params, generator=torch.Generator().manual_seed(3))
    norm = float(gradient.double().norm())
    assert huge.step(gradient * 2.0**70) == pytest.approx(norm * 2.0**70, rel=2.0**-23)
    assert large.step(gradient * 2.0**20) == pytest.approx(norm * 2.0**20, rel=1e-6)
    torch.testing.assert_close(huge.flat, large.flat, rtol=0, atol=1e-8)
    assert not torch.equal(huge.flat, flat)


@pytest.mark.parametrize("norm_adv", ["none", "batch", "minibatch"])
def test_whole_update_agrees_with_eager_step_by_step(norm_adv: str) -> None:
    # Teacher-forced: both start every update of one step from the same parameters and moments, those of eager.
    flat = training.random_parameters(MODEL, 5)
    options = {"minibatch_size": 32, "norm_adv": norm_adv, "clip_vloss": True, "ent_coef": 0.01, "learning_rate": 1e-3}
    teacher = TorchLearner(MODEL, flat, make_config(update="eager", **options), CPU)
    ours = make_learner(MODEL, flat, **options)
    rule = TwoTimesRule()
    for step in range(40):
        rollout = training.random_rollout(MODEL, flat, step % 5)
        valid = rollout.valid.reshape(-1)
        order = kernels.permutation(128, seed=1, stream=step)
        valid[np.delete(order, np.s_[32 * (step % 4) : 32 * (step % 4) + 32])] = False  # one minibatch is left
        ours.flat.copy_(teacher.flat)
        ours.load(teacher.state())
        start, state = teacher.flat.clone(), teacher.state()
        theirs = teacher.update(rollout)
        metrics = ours.update(rollout)
        assert ours.state()["counters"].tolist() == teacher.state()["counters"].tolist() == [step + 1, step + 1]
        # The oracle of that step: float64 from the same state.
        batch = teacher.stage(rollout)
        gradient, _ = autograd(MODEL, ours.hp, start, batch, torch.float64)
        gradient *= min(1.0, 0.5 / (float(gradient.norm()) + 1e-6))
        m = 0.9 * state["exp_avg"].double() + 0.1 * gradient
        v = 0.999 * state["exp_avg_sq"].double() + 0.001 * gradient**2
        t = step + 1
        moved = -1e-3 / (1 - 0.9**t) * m / ((v / (1 - 0.999**t)).sqrt() + 1e-5)
        exact = {"m": m, "v": v, "flat": start.double() + moved}
        rule.add(*({"m": x.exp_avg, "v": x.exp_avg_sq, "flat": x.flat} for x in (ours, teacher)), exact)
        assert metrics == pytest.approx(
            theirs, rel=1e-4, abs=1e-5
        )  # that they are the same numbers; not their accuracy
    rule.check()


def test_epoch_equals_its_gradients_and_steps_to_the_bit() -> None:
    flat = training.random_parameters(MODEL, 6)
    rollout = training.random_rollout(MODEL, flat, 6)
    fused, apart = (make_learner(MODEL, flat, minibatch_size=32) for _ in range(2))
    fused.update(rollout)
    batch, order = apart.stage(rollout), kernels.permutation(128, seed=1, stream=0)
    for i in range(4):
        apart.step(apart.gradient(batch, order[32 * i : 32 * i + 32])[0])
    assert torch.equal(fused.flat, apart.flat)
    assert torch.equal(fused.exp_avg, apart.exp_avg)
    assert torch.equal(fused.exp_avg_sq, apart.exp_avg_sq)


@pytest.mark.parametrize("kind", ["gaussian", "categorical"])
@pytest.mark.parametrize("advantage", [1.0, -1.0])
@pytest.mark.parametrize("ratio", [0.5, 0.79, 0.81, 1.0, 1.19, 1.21, 2.0])
def test_the_surrogates_gradient_vanishes_exactly_where_clipping_says_so(
    ratio: float, advantage: float, kind: str
) -> None:
    # One row and the policy of parameters 0: a standard normal, or four actions of probability 1/4. Its gradient is 0
    # where the ratio has gone as far as it pays, to either side, and -A r times that of log π elsewhere.
    model = ActorCritic(2, 1, (4,), num_actions=0 if kind == "gaussian" else 4)
    options = {"norm_adv": "none", "max_grad_norm": 1e9, "num_envs": 1, "num_steps": 1, "minibatch_size": 1}
    learner = make_learner(model, torch.zeros(model.num_params), **options)
    action, log_prob = (1.5, -1.125 - 0.5 * math.log(2 * math.pi)) if kind == "gaussian" else (2.0, math.log(0.25))
    row = np.zeros(1, np.float32)
    batch = {
        "norm_obs": np.ones((1, 2), np.float32), "actions": np.full((1, 1), action, np.float32),
        "log_probs": row + np.float32(log_prob - math.log(ratio)), "advantages": row + np.float32(advantage),
        "returns": row, "values": row, "valid": row + 1,
    }  # fmt: skip
    gradient, _ = learner.gradient(batch, np.zeros(1, np.int64))
    clipped = ratio > 1.2 if advantage > 0 else ratio < 0.8
    if clipped:
        assert not gradient.any()
        return
    bias = model.unflatten(gradient)["actor.1.bias"]
    slope = torch.tensor([1.5]) if kind == "gaussian" else torch.tensor([-0.25, -0.25, 0.75, -0.25])
    torch.testing.assert_close(bias, -advantage * ratio * slope, rtol=4 * 2.0**-23, atol=0.0)


# --- masks -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("norm_adv", ["none", "batch", "minibatch"])
def test_nan_in_reset_rows_changes_not_one_bit(norm_adv: str) -> None:
    flat = training.random_parameters(MODEL, 7)
    results = []
    for poison in (False, True):
        rollout = training.random_rollout(MODEL, flat, 7)
        if poison:
            for name in ("norm_obs", "actions", "log_probs", "advantages", "returns", "values_all"):
                array = getattr(rollout, name)
                array[: len(rollout.valid)][~rollout.valid] = np.nan
        learner = make_learner(MODEL, flat, minibatch_size=32, update_epochs=3, norm_adv=norm_adv, clip_vloss=True)
        results.append((learner.update(rollout), snapshot(learner)))
    assert results[0] == results[1]


@pytest.mark.parametrize("name", ["norm_obs", "actions", "log_probs", "advantages", "returns", "values"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_nan_and_infinity_in_a_valid_row_show_at_once(name: str, bad: float, activation: str) -> None:
    model = replace(MODEL, activation=activation)
    flat = training.random_parameters(model, 7)
    rollout = training.random_rollout(MODEL, training.random_parameters(MODEL, 7), 7, reset_rows=0.0)
    getattr(rollout, name)[3, 4] = bad
    learner = make_learner(model, flat, minibatch_size=32, clip_vloss=True)
    metrics = learner.update(rollout)
    saturates = activation == "tanh" and name == "norm_obs" and bad == np.inf  # tanh of infinity is 1; inf * 0 is not
    assert not (np.isfinite(list(metrics.values())).all() and learner.is_finite()) or saturates


def test_a_learner_recovers_from_nan_when_good_state_is_loaded() -> None:
    flat = training.random_parameters(MODEL, 9)
    good, bad = (training.random_rollout(MODEL, flat, 9, reset_rows=0.0) for _ in range(2))
    bad.norm_obs[0, 0, 0] = np.inf
    fresh, hurt = (make_learner(MODEL, flat, minibatch_size=32) for _ in range(2))
    state = hurt.state()
    hurt.update(bad)
    assert not hurt.is_finite()
    hurt.flat.copy_(flat)
    hurt.load(state)
    assert hurt.update(good) == fresh.update(good)
    assert snapshot(hurt) == snapshot(fresh)


def test_a_minibatch_without_valid_rows_makes_no_step() -> None:
    flat = training.random_parameters(MODEL, 8)
    rollout = training.random_rollout(MODEL, flat, 8, reset_rows=0.0)
    order = kernels.permutation(128, seed=1, stream=0)
    rollout.valid.reshape(-1)[order[32:64]] = False
    learner = make_learner(MODEL, flat, minibatch_size=32)
    learner.update(rollout)
    assert learner.adam_steps == 3
    rollout.valid[:] = False
    before = snapshot(learner)
    metrics = learner.update(rollout)
    assert np.isfinite(list(metrics.values())).all()
    assert {**snapshot(learner), "counters": b""} == {**before, "counters": b""}
    assert learner.adam_steps == 3


# --- state -----------------------------------------------------------------------------------------------------------
def torch_learner(flat: Tensor, **options: Any) -> TorchLearner:
    return TorchLearner(MODEL, flat, make_config(update="eager", **options), CPU)


@pytest.mark.parametrize("make", [lambda flat, **o: make_learner(MODEL, flat, **o), torch_learner])
def test_a_state_of_either_learner_continues_in_the_native_one(make: Callable[..., PPOLearner]) -> None:
    flat = training.random_parameters(MODEL, 13)
    first, second = (training.random_rollout(MODEL, flat, seed) for seed in (13, 14))
    options = {"minibatch_size": 32, "update_epochs": 2}
    straight = make(flat, **options)
    straight.update(first)
    restored = make_learner(MODEL, straight.flat, **options)
    restored.load(straight.state())
    assert {name: (t.shape, t.dtype) for name, t in restored.state().items()} == {
        name: (t.shape, t.dtype) for name, t in straight.state().items()
    }
    assert snapshot(restored) == snapshot(straight)
    straight.update(second)
    restored.update(second)
    if isinstance(straight, NativeLearner):
        assert snapshot(straight) == snapshot(restored)
    else:
        moved = float((straight.flat - flat).norm())
        assert float((straight.flat - restored.flat).norm()) <= 1e-3 * moved  # eight steps: rounding, not yet chaos


def test_a_native_state_continues_in_torch() -> None:
    flat = training.random_parameters(MODEL, 13)
    rollout = training.random_rollout(MODEL, flat, 13)
    ours = make_learner(MODEL, flat)
    ours.update(rollout)
    theirs = torch_learner(ours.flat)
    theirs.load(ours.state())
    assert snapshot(theirs) == snapshot(ours)
    theirs.update(rollout)


def test_an_update_writes_to_nothing_in_the_rollout() -> None:
    flat = training.random_parameters(MODEL, 17)
    rollout, untouched = (training.random_rollout(MODEL, flat, 17) for _ in range(2))
    make_learner(MODEL, flat, norm_adv="minibatch").update(rollout)
    for name, array in vars(untouched).items():
        np.testing.assert_array_equal(getattr(rollout, name), array, err_msg=name)


@memory.seen
def test_ten_thousand_steps_allocate_nothing() -> None:
    flat = training.random_parameters(MODEL, 18)
    rollout = training.random_rollout(MODEL, flat, 18)
    learner = make_learner(MODEL, flat, minibatch_size=16, update_epochs=25)
    learner.update(rollout)
    before = memory.resident_bytes()
    for _ in range(50):  # x 25 epochs x 8 minibatches
        learner.update(rollout)
    assert learner.adam_steps == 51 * 200
    assert memory.resident_bytes() - before <= 2**19


# --- bad input -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "bad", "message"),
    [
        ("norm_obs", np.zeros((17, 8, 12), np.float32), r"norm_obs must have shape \(T\+1, N, D\) = \(17, 8, 11\)"),
        ("norm_obs", np.zeros((16, 8, 11), np.float32), r"norm_obs must have shape"),
        ("actions", np.zeros((16, 8, 3), np.float64), r"actions must be float32 and C-contiguous, got float64"),
        ("log_probs", np.zeros((8, 16), np.float32), r"log_probs must have shape \(T, N\) = \(16, 8\), got \(8, 16\)"),
        ("returns", np.zeros((8, 16), np.float32).T, r"returns must be float32 and C-contiguous"),
        ("valid", np.zeros((16, 8), np.uint8), r"valid must be bool"),
    ],
)
@pytest.mark.parametrize("make", [lambda: make_learner(), lambda: torch_learner(training.random_parameters(MODEL, 1))])
def test_a_rollout_of_another_shape_or_type_is_an_error(
    make: Callable[[], PPOLearner], name: str, bad: Any, message: str
) -> None:
    rollout = Rollout.allocate(16, 8, MODEL.obs_dim, MODEL.act_dim)
    setattr(rollout, name, bad)
    with pytest.raises(ShapeError, match=message):
        make().update(rollout)


def test_bad_arguments_of_gradient_and_step_are_errors() -> None:
    learner = make_learner(minibatch_size=32)
    batch = random_batch(MODEL, learner.flat, 0, 64)
    index = np.arange(32)
    for bad, message in (
        (index.astype(np.int32), "index must be int64"),
        (index.tolist(), "index must be a NumPy array, got list"),
        (index.tolist(), "index must be a NumPy array, got list"),
        (np.arange(33), "index must have shape"),
        (index + 64, r"index must lie in \[0, B\), got 64 at position 0"),
        (index - 1, "index must lie in"),
    ):
        with pytest.raises(ShapeError, match=message):
            learner.gradient(batch, bad)
    for name in batch:
        with pytest.raises(ShapeError, match="must"):
            learner.gradient({**batch, name: batch[name].astype(np.float64)}, index)
        with pytest.raises(ShapeError, match="must"):
            learner.gradient({**batch, name: batch[name][:63]}, index)
    choosing = ActorCritic(MODEL.obs_dim, 1, num_actions=3)
    chooser = make_learner(choosing, minibatch_size=32)
    chosen = chooser.stage(training.random_rollout(choosing, chooser.flat, 0))
    for wrong in (3.0, -1.0, 0.5, math.nan):
        actions = chosen["actions"].copy()
        actions[7] = wrong
        with pytest.raises(ShapeError, match=r"actions must be indices 0 \.\.\. 2, got"):
            chooser.gradient({**chosen, "actions": actions, "valid": np.ones_like(chosen["valid"])}, index)
    with pytest.raises(ShapeError, match="batch must have the fields"):
        learner.gradient({"valid": batch["valid"]}, index)
    assert learner.step(torch.zeros(MODEL.num_params, requires_grad=True)) == 0.0
    with pytest.raises(ShapeError, match="gradient must"):
        learner.step(torch.zeros(3))
    with pytest.raises(ShapeError, match="gradient must"):
        learner.step(torch.zeros(MODEL.num_params, dtype=torch.float64))
    with pytest.raises(ShapeError, match="flat must be"):
        make_learner(MODEL, torch.zeros(3))


def test_the_core_converts_nothing_and_checks_sizes() -> None:
    learner = make_learner(minibatch_size=32)
    flat = learner.flat.numpy()
    with pytest.raises(TypeError):
        learner.core.load(flat.astype(np.float64), flat, flat, 0)
    with pytest.raises(ValueError, match="length P"):
        learner.core.save(flat[:-1], flat, flat)


# --- which learner runs ----------------------------------------------------------------------------------------------
def chosen(**options: Any) -> tuple[PPOLearner, str]:
    return choose.make_learner(MODEL, training.random_parameters(MODEL, 1), make_config(**options), CPU)


def test_auto_takes_the_native_learner_and_torch_where_its_ways_are_named() -> None:
    assert isinstance(chosen()[0], NativeLearner)
    assert isinstance(chosen(learner="auto")[0], NativeLearner)
    learner, reason = chosen(learner="auto", update="eager")
    assert isinstance(learner, TorchLearner)
    assert reason == ""
    assert isinstance(chosen(learner="torch")[0], TorchLearner)
    assert isinstance(chosen(learner="native")[0], NativeLearner)


@pytest.mark.parametrize("update", ["eager", "compile"])
def test_native_with_a_way_of_torch_is_an_error(update: str) -> None:
    with pytest.raises(ConfigError, match=f"update '{update}' belongs to the torch learner"):
        make_config(learner="native", update=update)


def test_what_lacks_is_named_aloud_or_is_an_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(choose, "lacks", lambda *_: "no core, a test")
    with caplog.at_level(logging.WARNING, logger="ppo_fast"):
        learner, reason = chosen(learner="auto", total_timesteps=1000)
    assert isinstance(learner, TorchLearner)
    assert "no core, a test" in reason
    assert "no core, a test" in caplog.text
    with pytest.raises(BackendError, match="--learner native: no core, a test"):
        chosen(learner="native")


def test_a_gpu_is_nothing_for_the_native_learner() -> None:
    assert "cuda" in native.lacks(MODEL, torch.device("cuda"))
