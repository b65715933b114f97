"""The native actor: its numbers against float64 and against its twins to the bit, and no trace of who came back when.

Axes: T steps · N envs · D observation · A action · P parameters. What holds for both workers is in ``test_rollout.py``,
what the core does with bad arrays in ``test_native_actor_core.py``.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import training
from fakes import FakePool, MemoryEnv, PlaybackStream
from training import LEVELS, TwoTimesRule, one_thread  # noqa: F401

from ppo_fast import envs, kernels
from ppo_fast.batch import Rollout
from ppo_fast.config import Config
from ppo_fast.envs.base import ActionRescaler, EnvSpec
from ppo_fast.envs.envpool_stream import EnvPoolStream
from ppo_fast.envs.envpool_task import PoolTask
from ppo_fast.envs.stream import StreamEnv
from ppo_fast.errors import BackendError, NonFiniteError
from ppo_fast.learners.native import NativeLearner
from ppo_fast.learners.ppo_step import STATS
from ppo_fast.models import ActorCritic
from ppo_fast.native import ACTIVATIONS
from ppo_fast.normalizers import ObsNormalizer
from ppo_fast.reference.policy import choose
from ppo_fast.reference.rng import normals, uniforms
from ppo_fast.rollout import NativeRolloutWorker
from ppo_fast.timing import PhaseTimer

pytestmark = pytest.mark.usefixtures("native_core", "one_thread")

FUSED = [level for level in LEVELS if level != "baseline"]  # those with a fused multiply-add
RECORDED = (
    "obs",
    "norm_obs",
    "actions",
    "log_probs",
    "values_all",
    "rewards",
    "terminated",
    "truncated",
    "done",
    "valid",
)
MODELS = [
    ActorCritic(11, 3),
    ActorCritic(1, 1, (1,), "elu"),
    ActorCritic(13, 5, (7,), "relu"),
    ActorCritic(17, 17, (17, 33), "silu"),
    ActorCritic(105, 8, (100, 50, 20), "elu"),
    ActorCritic(8, 2, (33, 16, 8, 5), "tanh", shared_trunk=True),
    ActorCritic(5, 1, (24,), "silu", num_actions=3),
    ActorCritic(4, 1, (9, 19), "relu", shared_trunk=True, num_actions=18),
]


def moved_normalizer(dim: int, seed: int = 0, *, enabled: bool = True) -> ObsNormalizer:
    """Return one whose statistics are those of 50 rows, with a clip that a good part of normal rows exceeds."""
    normalizer = ObsNormalizer(dim, clip=1.5, enabled=enabled)
    rows = np.random.default_rng(seed).normal(0.3, 1.3, size=(50, 1, dim)).astype(np.float32)
    normalizer.update(rows, np.ones((50, 1), np.bool_))
    return normalizer


def playback(model: ActorCritic, num_envs: int, num_steps: int, *, seed: int = 0, **options: Any) -> PlaybackStream:
    """Return environments with ``num_steps`` random answers; episodes end at random."""
    dtype = options.pop("dtype", np.float64)
    obs = np.random.default_rng(seed).normal(size=(num_steps + 1, num_envs, model.obs_dim)).astype(dtype)
    bounds = {"action_low": [-math.inf], "action_high": [math.inf], "num_actions": model.num_actions}
    if not model.num_actions:
        bounds = {"action_low": [-1.0] * model.act_dim, "action_high": [1.0] * model.act_dim}
    return PlaybackStream(obs, **{**bounds, **options})


def make_worker(env: StreamEnv, model: ActorCritic, num_steps: int, **options: Any) -> NativeRolloutWorker:
    normalizer = options.pop("normalizer", None) or moved_normalizer(model.obs_dim)
    defaults: dict[str, Any] = {"num_steps": num_steps, "seed": 1, "timer": PhaseTimer()}
    return NativeRolloutWorker(env, model, normalizer, **{**defaults, **options})


def parameters(model: ActorCritic, seed: int, log_std: float = 0.0) -> torch.Tensor:
    """Return random parameters whose actions go beyond the bounds, or with another log σ."""
    flat = training.random_parameters(model, seed)
    if not model.num_actions:
        model.unflatten(flat)["actor.log_std"][:] += log_std
    return flat


def copied(rollout: Rollout) -> dict[str, np.ndarray]:
    return {name: getattr(rollout, name).copy() for name in RECORDED}


def digest(worker: NativeRolloutWorker, *, rollouts: int = 3) -> str:
    """Return a hash of all that some rollouts hold; parameters and statistics move between them."""
    found = hashlib.sha256()
    for i in range(rollouts):
        rollout = worker.collect(parameters(worker.model, i))
        for name in RECORDED:
            found.update(getattr(rollout, name).tobytes())
        worker.normalizer.update(rollout.obs[:-1], rollout.valid)
    return found.hexdigest()


def noise_of(worker: NativeRolloutWorker, draw: Callable[..., np.ndarray]) -> np.ndarray:
    """Return the reference's noise of the rollout before, (T·N, A) float64."""
    t, n = worker.num_steps, worker.env.num_envs
    steps = np.repeat(np.arange(worker.steps_done - t, worker.steps_done), n)
    return draw(worker.seed, np.tile(np.arange(n), t), steps, worker.model.act_dim)


# --- exactness -------------------------------------------------------------------------------------------------------
def check_rollouts(model: ActorCritic, simd: str) -> None:
    """Hold what actor and critic make of the normalised rows to the 2x rule, over 32 rollouts of 24 rows."""
    env = playback(model, 6, 32 * 4, order=1)
    worker = make_worker(env, model, 4, simd=simd)
    rule, sampled = TwoTimesRule(), TwoTimesRule()
    for seed in range(32):
        flat = parameters(model, seed)
        rollout = worker.collect(flat)
        x = rollout.norm_obs.reshape(-1, model.obs_dim)
        actions = rollout.actions.reshape(-1, model.act_dim)
        noise = noise_of(worker, uniforms if model.num_actions else normals)
        found, drawn = [], []
        for dtype in (torch.float32, torch.float64):
            net = training.reference_net(model, flat, dtype)
            with torch.no_grad():
                head, values = net(torch.from_numpy(x).to(dtype))
                head = head[: len(actions)]
                log_probs = net.log_prob(head, torch.from_numpy(actions).to(dtype))
                found.append({"values": values.numpy(), "log_probs": log_probs.numpy()})
                if model.num_actions:
                    np.testing.assert_array_equal(choose(head, noise).numpy(), actions)
                else:
                    moved = head + torch.exp(net.log_std) * torch.from_numpy(noise).to(dtype)
                    drawn.append({"actions": moved.numpy()})
        rule.add({"values": rollout.values_all.reshape(-1), "log_probs": rollout.log_probs.reshape(-1)}, *found)
        if drawn:
            sampled.add({"actions": actions}, *drawn)
    rule.check()
    if not model.num_actions:
        sampled.check()


@pytest.mark.parametrize("model", MODELS, ids=str)
@pytest.mark.parametrize("simd", LEVELS)
def test_rollouts_are_as_exact_as_torch(model: ActorCritic, simd: str) -> None:
    check_rollouts(model, simd)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("hidden_sizes", [(64, 64), (5, 31)])
def test_rollouts_of_every_activation_are_as_exact_as_torch(activation: str, hidden_sizes: tuple[int, ...]) -> None:
    check_rollouts(ActorCritic(11, 3, hidden_sizes, activation), "")


@pytest.mark.parametrize("simd", LEVELS)
def test_means_are_as_exact_as_torch(simd: str) -> None:
    model = MODELS[0]
    worker = make_worker(playback(model, 6, 32 * 4), model, 4, simd=simd)
    rule = TwoTimesRule()
    for seed in range(32):
        flat = parameters(model, seed, -80.0)  # σ = 1e-35 is lost beside any mean: the action is the mean
        rollout = worker.collect(flat)
        x = torch.from_numpy(rollout.norm_obs[:-1].reshape(-1, model.obs_dim))
        nets = [training.reference_net(model, flat, dtype) for dtype in (torch.float32, torch.float64)]
        with torch.no_grad():
            rule.add(
                {"mean": rollout.actions.reshape(-1, 3)}, *({"mean": n.actor(x.to(n.log_std.dtype))} for n in nets)
            )
    rule.check()


@pytest.mark.parametrize("seed", [0, 7, 2**64 - 1])
@pytest.mark.parametrize("steps_done", [0, 5, 2**33 + 7])
def test_noise_is_that_of_seed_environment_and_step_also_after_a_resume(seed: int, steps_done: int) -> None:
    model = ActorCritic(3, 5)
    worker = make_worker(playback(model, 131, 6, order=2), model, 3, seed=seed)
    worker.steps_done = steps_done  # as the trainer sets it
    flat = torch.zeros(model.num_params)  # μ = 0, σ = 1: the action is the noise
    for _ in range(2):
        actions = worker.collect(flat).actions
        np.testing.assert_array_equal(actions.reshape(-1, 5), noise_of(worker, normals).astype(np.float32))
    assert worker.steps_done == steps_done + 6


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("obs_dim", [1, 3, 16, 17, 105])
@pytest.mark.parametrize("simd", LEVELS)
def test_normalised_rows_are_those_of_the_normaliser(simd: str, obs_dim: int, enabled: bool, dtype: Any) -> None:
    model = ActorCritic(obs_dim, 2, (3,))
    env = playback(model, 9, 8, order=3, dtype=dtype)
    worker = make_worker(env, model, 4, simd=simd, normalizer=moved_normalizer(obs_dim, enabled=enabled))
    for rollout_index in range(2):
        rollout = worker.collect(parameters(model, 0))
        raw = env.obs[4 * rollout_index : 4 * rollout_index + 5].astype(np.float32)
        np.testing.assert_array_equal(rollout.obs, raw)
        np.testing.assert_array_equal(rollout.norm_obs, worker.normalizer.normalize(raw))
        clipped = np.abs(rollout.norm_obs) == np.float32(1.5)
        assert clipped.any() == enabled
        worker.normalizer.update(rollout.obs[:-1], rollout.valid)


@pytest.mark.parametrize("simd", LEVELS)
def test_environments_get_the_actions_of_the_rescaler(simd: str) -> None:
    low, high = [-0.4, -1e-3, -math.inf, 0.0, -2.0, -math.inf], [0.4, 7.3, math.inf, 0.1, math.inf, 3.0]
    model = ActorCritic(4, 6)
    env = playback(model, 40, 25, order=4, action_low=low, action_high=high)
    rollout = make_worker(env, model, 25, simd=simd).collect(parameters(model, 3, 0.7))
    rescale = ActionRescaler(env.spec, 40)
    for t in range(25):
        np.testing.assert_array_equal(env.received[t], rescale(rollout.actions[t]).astype(np.float64))
    for component in (0, 1, 3):  # bounded, and clipped on both sides
        assert (env.received[..., component] == np.float32(low[component])).any()
        assert (env.received[..., component] == np.float32(high[component])).any()
    for component in (2, 4, 5):
        assert np.abs(env.received[..., component]).max() > 1.5  # passed as they are


def test_indices_of_discrete_actions_reach_the_environment_as_they_are() -> None:
    model = ActorCritic(4, 1, num_actions=5)
    env = playback(model, 30, 20, order=4)
    rollout = make_worker(env, model, 20).collect(parameters(model, 3))
    np.testing.assert_array_equal(env.received, rollout.actions)
    assert set(np.unique(rollout.actions)) == {0, 1, 2, 3, 4}


# --- nobody sees who came back when ----------------------------------------------------------------------------------
SIZES = [(1, 1), (1, 6), (6, 1), (7, 5), (128, 2), (129, 3), (300, 2)]  # (N, T); the core works in slices of 128 rows


@pytest.mark.parametrize(("num_envs", "num_steps"), SIZES)
@pytest.mark.parametrize("simd", LEVELS)
def test_order_and_size_of_arrivals_change_not_one_bit(simd: str, num_envs: int, num_steps: int) -> None:
    for model in (MODELS[2], MODELS[5], MODELS[6]):
        digests = set()
        for order in (None, *range(12 if num_envs < 100 else 3)):
            env = playback(model, num_envs, 3 * num_steps, order=order)
            digests.add(digest(make_worker(env, model, num_steps, simd=simd)))
            assert not np.isnan(env.received).any()  # every environment had its T steps in each rollout
        assert len(digests) == 1, (model, len(digests))


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_a_row_is_the_same_whoever_else_is_there(model: ActorCritic) -> None:
    few, many = (playback(model, 300, 2) for _ in range(2))
    few.num_envs, few.obs = 3, few.obs[:, :3]  # the first three of them
    flat = parameters(model, 4)
    small, large = (copied(make_worker(env, model, 2).collect(flat)) for env in (few, many))
    for name in RECORDED:
        np.testing.assert_array_equal(small[name], large[name][:, :3], err_msg=name)


@pytest.mark.skipif(len(FUSED) < 2, reason="this processor has not both AVX-512 and AVX2")
@pytest.mark.parametrize("model", MODELS, ids=str)
def test_avx512_and_avx2_give_equal_bits(model: ActorCritic) -> None:
    of_level = {level: digest(make_worker(playback(model, 19, 9, order=5), model, 3, simd=level)) for level in LEVELS}
    assert of_level["avx512"] == of_level["avx2"]
    assert of_level["avx512"] != of_level["baseline"]  # the control arm: the digest does see rounding


MEMORY = EnvSpec("FakePool-v0", "fake", 4, 2, -np.ones(2), np.ones(2), None)


def remembered(actions: np.ndarray) -> dict[str, np.ndarray]:
    """Return what environments that remember their actions (S, N, A) must answer, one after the other."""
    obs = np.empty((len(actions) + 1, actions.shape[1], 4), np.float32)
    valid = np.empty(actions.shape[:2], np.bool_)
    for n in range(actions.shape[1]):
        env = MemoryEnv(n)
        obs[0, n] = env.answer(actions[0, n], reset=True)["obs"]
        for t, action in enumerate(np.clip(actions[:, n], -1, 1).astype(np.float64)):
            row = env.answer(action)
            obs[t + 1, n], valid[t, n] = row["obs"], row["elapsed_step"] > 0
    return {"obs": obs, "valid": valid}


@pytest.mark.parametrize(("num_envs", "batch_size"), [(2, 1), (5, 4), (9, 3), (64, 32), (140, 139)])
def test_asynchronous_rollouts_are_the_same_in_any_simulated_time(num_envs: int, batch_size: int) -> None:
    model = ActorCritic(4, 2, (8,))
    found = []
    for num_workers, seed in itertools.product((1, 2, 16, 64), range(3)):
        pool = FakePool(num_envs + batch_size - 1, batch_size, num_workers, seed=seed)
        worker = make_worker(EnvPoolStream(PoolTask(MEMORY), pool, num_envs, batch_size), model, 7)
        rollouts = [copied(worker.collect(parameters(model, i))) for i in range(3)]
        joined = {name: np.concatenate([r[name][:7] for r in rollouts]) for name in RECORDED}
        found.append({**joined, "last": rollouts[-1]["obs"][-1:]})
    for other in found[1:]:
        for name, array in found[0].items():
            np.testing.assert_array_equal(other[name], array, err_msg=name)
    expected = remembered(found[0]["actions"])  # each action went to its environment at its time
    np.testing.assert_array_equal(np.concatenate([found[0]["obs"], found[0]["last"]]), expected["obs"])
    np.testing.assert_array_equal(found[0]["valid"], expected["valid"])
    assert not expected["valid"].all()


def test_two_short_rollouts_are_one_long_one_of_asynchronous_environments() -> None:
    model = ActorCritic(4, 2, (8,))
    joined = []
    for num_steps, rollouts in ((10, 2), (20, 1)):
        worker = make_worker(EnvPoolStream(PoolTask(MEMORY), FakePool(11, 4, 3), 8, 4), model, num_steps)
        parts = [copied(worker.collect(parameters(model, 1))) for _ in range(rollouts)]
        joined.append({name: np.concatenate([part[name][:num_steps] for part in parts]) for name in RECORDED})
    for name in RECORDED:
        np.testing.assert_array_equal(joined[0][name], joined[1][name], err_msg=name)


@pytest.mark.parametrize("env_id", ["Hopper-v5", "InvertedPendulum-v5"])
def test_threads_and_batch_size_of_envpool_change_not_one_bit(env_id: str) -> None:
    spec = envs.spec(env_id, "envpool")
    model = ActorCritic(spec.obs_dim, spec.act_dim)
    found = {}
    for batch_size, num_threads in itertools.product((1, 3, 4, 8), (1, 2, 5)):
        env = envs.make_stream(env_id, 8, seed=3, num_threads=num_threads, batch_size=batch_size)
        assert env.mode == ("synchronous" if batch_size == 8 else f"asynchronous, {batch_size} of 8")
        worker = make_worker(env, model, 30)
        found[batch_size, num_threads] = digest(worker, rollouts=4)
        assert not worker.buffers.valid.all()  # past the ends of episodes
        env.close()
    assert len(set(found.values())) == 1, found


# --- the first ratio -------------------------------------------------------------------------------------------------
def ratios(model: ActorCritic, rollout: Rollout, flat: torch.Tensor, simd: str) -> np.ndarray:
    """Return the ratio of each row as the native learner computes it: minus the loss under an advantage of 1.

    From 1 + clip_coef on it is the clipped one.
    """
    t, n = rollout.rewards.shape
    cfg = Config(num_envs=n, num_steps=t, minibatch_size=t * n, norm_adv="none", total_timesteps=t * n + 1)
    learner = NativeLearner(model, flat, cfg, simd=simd)
    rollout.advantages[:], rollout.valid[:] = 1.0, True
    batch = learner.stage(rollout)
    loss = [learner.gradient(batch, np.array([row]))[1][STATS.index("policy_loss")] for row in range(t * n)]
    together = learner.gradient(batch, kernels.permutation(t * n, seed=0, stream=0))[1]
    assert math.isclose(together[STATS.index("policy_loss")], sum(loss), rel_tol=1e-12)
    if all(value == -1.0 for value in loss):
        assert together[STATS.index("approx_kl")] == together[STATS.index("clip_frac")] == 0.0
    return -np.array(loss)


@pytest.mark.parametrize("model", MODELS, ids=str)
@pytest.mark.parametrize("simd", LEVELS)
def test_ratio_of_unchanged_parameters_is_exactly_one(model: ActorCritic, simd: str) -> None:
    worker = make_worker(playback(model, 7, 15, order=6), model, 5, simd=simd)
    for i in range(3):  # while parameters and statistics move
        flat = parameters(model, i)
        rollout = worker.collect(flat)
        assert (ratios(model, rollout, flat, simd) == 1.0).all()
        worker.normalizer.update(rollout.obs[:-1], rollout.valid)


def test_ratio_of_other_rows_parameters_or_roundings_is_not_one() -> None:
    model = MODELS[0]
    worker = make_worker(playback(model, 7, 5), model, 5)
    flat = parameters(model, 0)
    rollout = worker.collect(flat)
    assert (ratios(model, rollout, flat, "") == 1.0).all()
    if FUSED:
        other = ratios(model, rollout, flat, "baseline")
        assert 0 < np.abs(other - 1).max() < 1e-5
    assert np.abs(ratios(model, rollout, flat * 1.001, "") - 1).max() > 1e-5
    worker.normalizer.update(rollout.obs[:-1], rollout.valid)
    worker.normalizer.normalize(rollout.obs, out=rollout.norm_obs)  # with statistics that were not acted on
    assert np.abs(ratios(model, rollout, flat, "") - 1).max() > 1e-5


# --- what must not get in --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("t", "message"), [(3, r"obs.*\(step 7, env 5\)"), (5, r"obs.*\(step 9, env 5\)")])
def test_a_non_finite_observation_stops_the_rollout_in_which_it_comes(
    bad: float, activation: str, t: int, message: str
) -> None:
    model = ActorCritic(3, 2, (4,), activation)
    env = playback(model, 8, 10, order=7)
    env.obs[5 + t, 5, 1] = bad  # answer to step 4 + t; with t = 5 nothing acts on it
    worker = make_worker(env, model, 5)
    worker.collect(parameters(model, 0))
    with pytest.raises(NonFiniteError, match=message):
        worker.collect(parameters(model, 0))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_non_finite_reward_of_a_valid_row_stops_the_rollout(bad: float) -> None:
    model = ActorCritic(3, 2, (4,))
    env = playback(model, 8, 10, order=8)
    rewards, _, _, valid = env.transitions
    rewards[2, 1], valid[2, 1] = bad, False
    worker = make_worker(env, model, 5)
    assert worker.collect(parameters(model, 0)).rewards[2, 1] == 0.0  # a reset row's reward is none
    rewards[8, 6], valid[8, 6] = bad, True
    with pytest.raises(NonFiniteError, match=r"rewards.*\(step 8, env 6\)"):
        worker.collect(parameters(model, 0))


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_parameters_that_are_nan_send_nothing(model: ActorCritic) -> None:
    env = playback(model, 8, 5)
    worker = make_worker(env, model, 5)
    with pytest.raises(NonFiniteError, match="action of environment 0 is not finite, at a step from 0 on"):
        worker.collect(torch.full((model.num_params,), torch.nan))
    assert np.isnan(env.received).all()


def test_a_worker_recovers_from_nan_parameters() -> None:
    model = MODELS[3]
    fresh, hurt = (make_worker(playback(model, 8, 15, order=9), model, 5) for _ in range(2))
    with pytest.raises(NonFiniteError):
        hurt.collect(torch.full((model.num_params,), torch.nan))
    assert digest(hurt) == digest(fresh)


# --- the level -------------------------------------------------------------------------------------------------------
def levels_of(names: Sequence[str]) -> list[str]:
    return [make_worker(playback(MODELS[0], 2, 1), MODELS[0], 1, simd=name).simd for name in names]


def test_the_level_is_the_one_asked_for_else_that_of_the_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    assert levels_of(LEVELS) == LEVELS
    assert levels_of([""]) == LEVELS[:1]
    monkeypatch.setenv("PPO_FAST_SIMD", "baseline")
    assert levels_of(["", LEVELS[0]]) == ["baseline", LEVELS[0]]
    with pytest.raises(BackendError, match=r"simd must be one of .*got 'avx3'"):
        levels_of(["avx3"])
