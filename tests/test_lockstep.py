"""The fast path in lock-step with the reference: it holds, and one thing broken at a time is found where it is.

Axes: T steps · N envs · B = T·N rows · M rows of a minibatch.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from torch import Tensor
from training import one_thread  # noqa: F401

from ppo_fast import kernels, native
from ppo_fast.batch import Rollout
from ppo_fast.envs import gymnasium as adapter
from ppo_fast.envs.base import ActionRescaler
from ppo_fast.errors import BackendError, ConfigError, EnvError
from ppo_fast.learners import ppo_step
from ppo_fast.learners.ppo_base import PPOLearner
from ppo_fast.learners.torch_learner import TorchLearner
from ppo_fast.lockstep import actors, learners, rules, teacher
from ppo_fast.lockstep.numerics import Backend
from ppo_fast.lockstep.report import Report
from ppo_fast.lockstep.rules import Equal, TwoRoundings, TwoTimesRule
from ppo_fast.lockstep.run import make_config, run
from ppo_fast.models import ActorCritic, Categorical, Gaussian
from ppo_fast.normalizers import ObsNormalizer, RewardScaler
from ppo_fast.reference.ppo import PPO, Settings
from ppo_fast.rollout.torch_worker import RolloutWorker

Cell = tuple[str, str, str]


def compare(env: str = "InvertedPendulum-v5", iterations: int = 1, **options: Any) -> Report:
    """Run a small lock-step: 4 environments x 16 steps twice, and the 64 minibatches of 16 that a user's has."""
    defaults: dict[str, Any] = {"num_envs": 4, "num_steps": 16, "minibatch_size": 16, "seed": 1}
    return run(make_config(iterations, env=env, **{**defaults, **options}), iterations)


def failures_before_learning(env: str = "InvertedPendulum-v5") -> set[Cell]:
    """Return which checks fail, those of the learners left out, which get a single minibatch."""
    cfg = make_config(1, env=env, num_envs=4, num_steps=16, minibatch_size=64, seed=1)
    found = run(dataclasses.replace(cfg, update_epochs=1), 1).failures()
    return {cell for cell in found if cell[0] != "learners"}


@pytest.fixture
def torch_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave one actor and one learner, which saves time where the fault is in none of the others."""
    monkeypatch.setattr(actors, "ACTORS", {"torch": actors.ACTORS["torch"]})
    monkeypatch.setattr(learners, "LEARNERS", {"torch eager": learners.LEARNERS["torch eager"]})


# The rules, by hand


def test_equal_counts_what_differs_and_by_how_much() -> None:
    rule = Equal()
    assert rule.complaint() == "nothing was compared"
    rule.add(np.array([1.0, np.nan]), np.array([1.0, np.nan]))
    assert (rule.shown(), rule.complaint()) == ("equal", "")
    rule.add(np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.5, np.nan]))
    assert rule.shown() == "2 differ"
    assert rule.complaint() == "2 of 5 numbers differ, by up to nan"
    rule = Equal()
    rule.add(np.array([1, 4, 7]), np.array([1, 2, 6]))
    assert rule.complaint() == "2 of 3 numbers differ, by up to 2.0e+00"


def test_equal_sees_one_unit_in_the_last_place() -> None:
    rule = Equal()
    rule.add(np.array([np.nextafter(np.float32(1), np.float32(2))]), np.array([np.float32(1)]))
    assert rule.complaint() == "1 of 1 numbers differ, by up to 1.2e-07"  # 2**-23


def test_two_roundings_are_allowed_and_three_are_not() -> None:
    rule = TwoRoundings()
    assert rule.complaint() == "nothing was compared"
    rule.add(np.array([1 + 2.0**-23, 0.0], np.float32), np.array([1.0, 0.0]))
    assert (rule.shown(), rule.complaint()) == ("1.2e-07", "")
    rule.add(np.array([1 + 2 * 2.0**-23], np.float32), np.array([1 + 0.4 * 2.0**-23]))  # 1.6 * 2**-23 off
    assert rule.complaint() == "relative error 1.9e-07, above 2**-23"
    for wrong in (np.nan, np.float32(1e-30)):
        rule = TwoRoundings()
        rule.add(np.array([wrong], np.float32), np.array([0.0]))
        assert rule.complaint()


def test_the_two_times_rule_pools_small_tensors_and_asks_for_32_batches() -> None:
    rule = TwoTimesRule()
    exact = {"a": np.zeros(300), "b": np.zeros(4), "c": np.zeros(2)}
    for _ in range(31):
        # RMS errors: a 3 against 2; b and c together sqrt((4·1 + 2·16) / 6) against sqrt((4·4 + 2·1) / 6).
        ours = {"a": np.full(300, 3.0), "b": np.full(4, 1.0), "c": np.full(2, 4.0)}
        theirs = {"a": np.full(300, 2.0), "b": np.full(4, 2.0), "c": np.full(2, 1.0)}
        rule.add(ours, theirs, exact)
    assert rule.complaint() == "31 batches were pooled, at least 32 are needed"
    rule.add(ours, theirs, exact)
    assert rule.ratios() == pytest.approx({"a": 1.5, "small tensors": np.sqrt(36 / 18)})
    assert (rule.shown(), rule.complaint()) == ("1.50x", "")
    rule.add({**ours, "c": np.full(2, 40.0)}, theirs, exact, batches=2)
    assert rule.batches == 34
    assert rule.complaint().startswith("small tensors: error")


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_the_two_times_rule_does_not_overlook_nan(wrong: float) -> None:
    rule = TwoTimesRule()
    rule.add({"x": wrong, "y": 1.0}, {"x": 1.0, "y": 1.0}, {"x": 0.0, "y": 0.0}, batches=32)
    assert "small tensors" in rule.complaint()
    assert rule.shown() in ("nanx", "infx")


# It holds


@pytest.mark.parametrize(
    ("env", "options"),
    [
        ("InvertedPendulum-v5", {}),
        ("CartPole-v1", {"shared_trunk": True, "hidden_sizes": (32, 16)}),
        ("Pendulum-v1", {"activation": "elu", "minibatch_size": 64, "num_envs": 8}),
    ],
)
def test_everything_that_is_here_holds(env: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    everything = dict(learners.LEARNERS)
    del everything["torch compile"]  # takes its time; the command's own test has it
    monkeypatch.setattr(learners, "LEARNERS", everything)
    report = compare(env, **options)
    assert report.failures() == {}
    shown = {group.title: set(group.columns) | set(group.missing) for group in report.groups}
    assert shown == {
        "environments": {"gymnasium", "envpool"},
        "kernels": {"cpp", "numba", "reference"},
        "actors": set(actors.ACTORS),
        "learners": set(everything),
    }
    assert report.num_checks == sum(len(group.stages) * len(group.columns) for group in report.groups)
    assert report.transitions + report.resets == 2 * 16 * options.get("num_envs", 4)
    assert report.minibatches >= 64


def test_masks_and_both_sides_of_clipping_are_met_on_the_way(torch_alone: None) -> None:
    report = run(make_config(1, env="InvertedPendulum-v5", num_envs=4, num_steps=16, minibatch_size=16), 1)
    assert report.failures() == {}
    assert report.minibatches == 2 * rules.MIN_BATCHES
    assert 0.02 < report.clipped_ratios < 0.5
    assert 0.1 < report.clipped_gradients < 0.9
    assert report.resets > 0


def test_the_teacher_is_the_reference_and_watching_changes_nothing(torch_alone: None) -> None:
    settings = Settings(num_envs=4, num_steps=16, minibatch_size=16, update_epochs=2, total_timesteps=10_000)
    results = []
    for watchers in ([], [learners_of(settings)]):
        ppo = teacher.Teacher(settings)
        ppo.watchers = [make(ppo) for make in watchers]
        ppo.warm_up()
        for _ in range(2):
            batch = ppo.rollout()
            ppo.judge(batch)
            ppo.learn(batch)
        ppo.envs.close()
        results.append([p.detach().numpy().tobytes() for p in ppo.net.parameters()])
    assert results[0] == results[1]


def learners_of(settings: Settings) -> Callable[[teacher.Teacher], teacher.Watcher]:
    cfg = make_config(1, env=settings.env, num_envs=4, num_steps=16, minibatch_size=16)
    cfg = dataclasses.replace(cfg, update_epochs=1)
    return lambda ppo: learners.Learners(ppo, ActorCritic(ppo.obs_dim, ppo.act_dim), cfg)


def test_the_kernel_backend_that_was_selected_is_selected_again(torch_alone: None) -> None:
    before = kernels.active()
    for name in [name for name, there in kernels.available().items() if there]:
        kernels.use(name)
        assert failures_before_learning() == set()
        assert kernels.active() == name
    kernels.use(before)


# One thing broken at a time


def wrap(patch: pytest.MonkeyPatch, owner: Any, name: str, change: Callable[..., Any]) -> None:
    """Replace ``owner.name`` by ``change(original, *args, **kwargs)``."""
    original = getattr(owner, name)

    def broken(*args: Any, **kwargs: Any) -> Any:
        return change(original, *args, **kwargs)

    patch.setattr(owner, name, broken)


def one_ulp(array: np.ndarray) -> None:
    array.flat[5] = np.nextafter(array.flat[5], array.dtype.type(np.inf))


def break_gae(original: Any, *args: Any) -> None:
    original(*args)
    one_ulp(args[-2])


def break_normals(original: Any, env_ids: Any, steps: Any, seed: int, out: Any) -> None:
    original(env_ids, steps, seed, out)
    one_ulp(out)


def break_permutation(original: Any, out: Any, seed: int, stream: int) -> None:
    original(out, seed, stream + 1)


def break_gather(original: Any, source: Any, index: Any, out: Any) -> None:
    original(source, index[::-1].copy(), out)


def break_moments(original: Any, count: Any, mean: Any, m2: Any, rows: Any, valid: Any) -> None:
    original(count, mean, m2, rows, valid)
    one_ulp(m2.reshape(-1)) if m2.size > 5 else m2.__imul__(1 + 2.0**-52)


@pytest.mark.parametrize("backend", ["cpp", "numba", "reference"], indirect=True)
@pytest.mark.parametrize(
    ("function", "change", "stages"),
    [
        ("gae_into", break_gae, {"GAE"}),
        ("normals_into", break_normals, {"action noise"}),
        ("permutation_into", break_permutation, {"minibatch order"}),
        ("gather_into", break_gather, {"gather"}),
        ("moments_into", break_moments, {"observation moments", "return moments"}),
    ],
)
def test_a_broken_kernel_is_found_in_its_backend(
    function: str, change: Any, stages: set[str], backend: str, torch_alone: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = "reference" if backend != "reference" else "numba"
    kernels.use(other if kernels.available()[other] else backend)  # on which actors and learners run
    wrap(monkeypatch, importlib.import_module(f"ppo_fast.kernels._{backend}"), function, change)
    assert failures_before_learning() == {("kernels", stage, backend) for stage in stages}


def scaled_gradient(original: Any, *args: Any) -> Any:
    gradient, sums = original(*args)
    return gradient * (1 + 1e-5), sums


def shifted_kl(original: Any, self: PPOLearner, rollout: Rollout) -> dict[str, float]:
    metrics = original(self, rollout)
    return {**metrics, "approx_kl": metrics["approx_kl"] * (1 + 1e-4)}


def shifted_value_loss(original: Any, self: PPOLearner, rollout: Rollout) -> dict[str, float]:
    metrics = original(self, rollout)
    return {**metrics, "value_loss": metrics["value_loss"] + 1e-5}


def leaking_masks(original: Any, self: PPOLearner, rollout: Rollout) -> Any:
    actions = rollout.actions.reshape(-1, rollout.actions.shape[-1])
    return {**original(self, rollout), "actions": actions}


def constant_rate(original: Any, self: PPOLearner, progress: float) -> None:
    original(self, progress * 0.9)


def other_seed(original: Any, self: ActorCritic, seed: int, log_std_init: float) -> Tensor:
    return original(self, seed + 1, log_std_init)


EAGER = "torch eager"


@pytest.mark.parametrize(
    ("owner", "name", "change", "stages"),
    [
        (ppo_step, "eager_gradient", scaled_gradient, {"clipped gradient", "weights"}),
        (PPOLearner, "update", shifted_kl, {"KL"}),
        (PPOLearner, "update", shifted_value_loss, {"loss"}),
        (PPOLearner, "stage", leaking_masks, {"clipped gradient", "Adam", "weights"}),
        (PPOLearner, "set_progress", constant_rate, {"Adam", "weights"}),
        (ActorCritic, "init", other_seed, {"first weights"}),
    ],
)
def test_a_broken_learner_is_found(
    owner: Any, name: str, change: Any, stages: set[str], torch_alone: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrap(monkeypatch, owner, name, change)
    assert set(compare().failures()) == {("learners", stage, EAGER) for stage in stages}


@pytest.mark.parametrize("betas", [(0.9001, 0.999), (0.9, 0.9991)])
def test_an_adam_with_another_beta_is_found(
    betas: tuple[float, float], torch_alone: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ppo_step, "ADAM_BETAS", betas)
    found = set(compare().failures())
    assert {("learners", "Adam", EAGER), ("learners", "weights", EAGER)} <= found
    assert {group for group, _, _ in found} == {"learners"}


def test_an_adam_with_another_epsilon_is_found(torch_alone: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(model: ActorCritic, flat: Tensor, cfg: Any) -> PPOLearner:
        cfg = dataclasses.replace(cfg, update="eager", adam_eps=1.01e-5)
        return TorchLearner(model, flat, cfg, torch.device("cpu"))

    monkeypatch.setattr(learners, "LEARNERS", {"mine": make})
    assert set(compare().failures()) == {("learners", "Adam", "mine"), ("learners", "weights", "mine")}


def test_a_broken_native_learner_is_found_on_its_level_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    make = learners.LEARNERS["native baseline"]

    class Broken:
        """A learner whose loss has another clip range."""

        def __new__(cls, model: ActorCritic, flat: Tensor, cfg: Any) -> Any:
            return make(model, flat, dataclasses.replace(cfg, clip_coef=0.201))

    monkeypatch.setattr(actors, "ACTORS", {"torch": actors.ACTORS["torch"]})
    monkeypatch.setattr(learners, "LEARNERS", {"native baseline": make, "broken": Broken})
    if reason := native.lacks(ActorCritic(4, 1)):
        pytest.skip(reason)
    found = compare().failures()
    assert ("learners", "clipped gradient", "broken") in found
    assert {implementation for _, _, implementation in found} == {"broken"}


def scaled_log_prob(original: Any, self: Gaussian, actions_: Tensor) -> Tensor:
    return original(self, actions_) * (1 + 1e-5)


def shifted_sample(original: Any, self: Gaussian, noise: Tensor) -> Tensor:
    return original(self, noise) + 1e-5


def wide_clip(original: Any, self: ObsNormalizer, obs: Any, out: Any = None) -> Any:
    result = original(self, obs, out=out)
    result *= np.float32(1 + 1e-5)
    return result


def wrong_reward(original: Any, self: RolloutWorker, flat: Tensor) -> Rollout:
    rollout = original(self, flat)
    one_ulp(rollout.rewards)
    return rollout


@pytest.mark.parametrize(
    ("owner", "name", "change", "stage"),
    [
        (Gaussian, "log_prob", scaled_log_prob, "log-probabilities"),
        (Gaussian, "sample", shifted_sample, "sampled actions"),
        (ObsNormalizer, "normalize", wide_clip, "normalised rows"),
        (RolloutWorker, "collect", wrong_reward, "stored rows"),
    ],
)
def test_a_broken_actor_is_found(
    owner: Any, name: str, change: Any, stage: str, torch_alone: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrap(monkeypatch, owner, name, change)
    assert failures_before_learning() == {("actors", stage, "torch")}


def test_a_broken_native_actor_is_found_on_its_level_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    make = actors.ACTORS["native baseline"]

    def other_noise(env: Any, model: ActorCritic, normalizer: ObsNormalizer, cfg: Any) -> Any:
        return make(env, model, normalizer, dataclasses.replace(cfg, seed=cfg.seed + 1))

    monkeypatch.setattr(actors, "ACTORS", {"native baseline": make, "broken": other_noise})
    monkeypatch.setattr(learners, "LEARNERS", {EAGER: learners.LEARNERS[EAGER]})
    if reason := native.lacks(ActorCritic(4, 1)):
        pytest.skip(reason)
    assert failures_before_learning() == {("actors", "sampled actions", "broken")}


def test_an_actor_whose_values_are_another_networks_is_found(
    torch_alone: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def off(original: Any, self: ActorCritic, params: Any, norm_obs: Tensor) -> Tensor:
        return original(self, params, norm_obs) * (1 + 1e-5)

    wrap(monkeypatch, ActorCritic, "value", off)
    assert failures_before_learning() == {("actors", "values", "torch")}


def test_statistics_that_are_updated_twice_are_found(torch_alone: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def twice(original: Any, self: ObsNormalizer, obs: Any, valid: Any) -> None:
        original(self, obs, valid)
        original(self, obs, valid)

    wrap(monkeypatch, ObsNormalizer, "update", twice)
    backends = {name for name, there in kernels.available().items() if there}
    assert failures_before_learning() == {("kernels", "observation moments", backend) for backend in backends}


@pytest.mark.parametrize(
    ("name", "change", "stage"),
    [
        (
            "update",
            lambda original, self, rewards, done, valid: original(self, rewards, done, np.ones_like(valid)),
            "return moments",
        ),
        (
            "scale",
            lambda original, self, rewards, out: original(self, rewards * np.float32(1 + 3e-7), out),
            "scaled rewards",
        ),
    ],
)
def test_a_broken_reward_scaler_is_found(
    name: str, change: Any, stage: str, torch_alone: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrap(monkeypatch, RewardScaler, name, change)
    backends = {name for name, there in kernels.available().items() if there}
    assert failures_before_learning() == {("kernels", stage, backend) for backend in backends}


@pytest.mark.parametrize("option", ["gamma", "gae_lambda"])
def test_another_discount_is_found(option: str, torch_alone: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def off(original: Any, *args: Any, **kwargs: Any) -> Any:
        return original(*args, **{**kwargs, option: kwargs[option] * (1 - 1e-6)})

    wrap(monkeypatch, kernels, "gae", off)
    backends = {name for name, there in kernels.available().items() if there}
    assert failures_before_learning() == {("kernels", "GAE", backend) for backend in backends}


def test_an_adapter_with_other_seeds_is_found(torch_alone: None, monkeypatch: pytest.MonkeyPatch) -> None:
    wrap(monkeypatch, adapter, "env_seeds", lambda original, *args: original(*args) + 1)
    found = failures_before_learning()
    assert ("environments", "observations", "gymnasium") in found
    assert {group for group, _, _ in found} == {"environments"}


def test_actions_stretched_to_another_range_are_found(torch_alone: None, monkeypatch: pytest.MonkeyPatch) -> None:
    wrap(monkeypatch, ActionRescaler, "__call__", lambda original, *args: original(*args) * np.float32(1 + 1e-6))
    found = failures_before_learning()
    assert ("environments", "observations", "gymnasium") in found
    assert ("actors", "actions to the env", "torch") in found


def test_a_discrete_action_that_is_another_is_found(torch_alone: None, monkeypatch: pytest.MonkeyPatch) -> None:
    wrap(monkeypatch, Categorical, "sample", lambda original, self, noise: original(self, 1.0 - noise))
    assert failures_before_learning("CartPole-v1") == {("actors", "sampled actions", "torch")}


def test_a_stage_that_is_never_reached_is_a_failure(torch_alone: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Backend, "judged", lambda self, ppo: None)
    found = compare().failures()
    assert {stage for _, stage, _ in found} == {"GAE"}
    assert set(found.values()) == {"nothing was compared"}


# What cannot be had, and bad input


def test_what_cannot_be_had_is_listed_with_its_reason(torch_alone: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(*_: Any) -> Any:
        raise BackendError("no such processor")

    monkeypatch.setattr(learners, "LEARNERS", {**learners.LEARNERS, "a": cannot, "b": cannot})
    monkeypatch.setattr(actors, "ACTORS", {**actors.ACTORS, "c": cannot})
    monkeypatch.setattr(kernels, "why_not", lambda: {"cpp": "no compiler"})
    monkeypatch.setattr(kernels, "available", lambda: {"cpp": False, "numba": True, "reference": True})
    report = compare()
    assert report.failures() == {}
    groups = {group.title: group for group in report.groups}
    assert groups["learners"].missing_by_reason() == {"no such processor": ["a", "b"]}
    assert groups["actors"].missing == {"c": "no such processor"}
    assert groups["kernels"].missing == {"cpp": "no compiler"}
    assert list(groups["kernels"].columns) == ["numba", "reference"]


def test_too_few_steps_for_the_rule_are_refused_and_enough_are_taken() -> None:
    with pytest.raises(ConfigError, match=r"num_steps must be at least 11 with 2 iterations, .* got 10"):
        make_config(2, num_steps=10, num_envs=2, minibatch_size=20)
    cfg = make_config(2, num_steps=11, num_envs=2, minibatch_size=22)
    assert 2 * cfg.update_epochs * cfg.num_minibatches >= 2 * rules.MIN_BATCHES


def test_an_environment_without_bounds_is_refused() -> None:
    class Unbounded(gymnasium.Env[Any, Any]):
        observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
        action_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)

        def reset(self, **_: Any) -> tuple[Any, dict[str, Any]]:
            return np.zeros(2, np.float32), {}

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            return np.zeros(2, np.float32), 0.0, False, False, {}

    gymnasium.register("Unbounded-v0", Unbounded)
    try:
        with pytest.raises(EnvError, match="Unbounded-v0: the reference trainer needs an action space with finite"):
            compare("Unbounded-v0")
    finally:
        del gymnasium.registry["Unbounded-v0"]


def test_the_reference_itself_is_left_alone() -> None:
    assert teacher.Teacher.loss is PPO.loss  # nothing of what is compared with is overridden
    assert teacher.Teacher.to_env is PPO.to_env
