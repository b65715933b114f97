"""Collection: every field in its (t, env) slot, one policy and one set of statistics per rollout, carried over seams.

Axes: T steps · N envs · D observation · A action. Both workers are held to it. ``CountingEnv`` says in every
observation and reward which environment and what time it is, so what a rollout must hold is known beforehand.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import training
from fakes import BOTH, TERMINATES, TRUNCATES, CountingEnv
from training import TwoTimesRule, one_thread  # noqa: F401

from ppo_fast import envs, kernels
from ppo_fast.batch import Rollout
from ppo_fast.envs.base import CheckedVectorEnv
from ppo_fast.errors import NonFiniteError
from ppo_fast.learners import torch_learner
from ppo_fast.learners.native import NativeLearner
from ppo_fast.learners.ppo_base import PPOLearner
from ppo_fast.learners.ppo_step import STATS, Minibatch, Optimizer, ppo_loss
from ppo_fast.models import ActorCritic
from ppo_fast.normalizers import ObsNormalizer
from ppo_fast.reference import losses
from ppo_fast.reference.rng import normals, uniforms
from ppo_fast.rollout import NativeRolloutWorker, RolloutWorker, Worker
from ppo_fast.timing import PhaseTimer

LENGTHS = (5, 3, 1, 7)
ENDINGS = (TERMINATES, TRUNCATES, BOTH)
N = 6
MakeWorker = Callable[..., Worker]
STREAMS = ("obs", "actions", "log_probs", "rewards", "terminated", "truncated", "done", "valid")


def new_worker(
    actor: str,
    env: CheckedVectorEnv,
    num_steps: int,
    *,
    model: ActorCritic | None = None,
    norm_obs: bool = False,
    seed: int = 1,
) -> Worker:
    spec = env.spec
    model = model or ActorCritic(spec.obs_dim, spec.act_dim, (3,), "relu", num_actions=spec.num_actions)
    normalizer = ObsNormalizer(env.spec.obs_dim, clip=10.0, enabled=norm_obs)
    options: dict[str, Any] = {"num_steps": num_steps, "seed": seed, "timer": PhaseTimer()}
    if actor == "native":
        return NativeRolloutWorker(env, model, normalizer, **options)
    return RolloutWorker(env, model, normalizer, device=torch.device("cpu"), **options)


@pytest.fixture
def make_worker(stack: dict[str, Any]) -> MakeWorker:
    """The maker of workers of either kind."""
    return functools.partial(new_worker, stack["actor"])


def counting_env(num_envs: int = N, **options: Any) -> CountingEnv:
    return CountingEnv(num_envs, episode_lengths=LENGTHS, endings=ENDINGS, **options)


def expected_streams(first: int, num_steps: int) -> dict[str, np.ndarray]:
    """Return what steps first ... first + num_steps - 1 of the counting environments hold, from their definition.

    An episode of L steps fills L + 1 observations: times 0 ... L; the transition out of time L is the reset row. So at
    step k an environment is in episode k // (L + 1) at time k % (L + 1).
    """
    obs = np.zeros((num_steps + 1, N, 3), np.float32)
    rewards = np.zeros((num_steps, N), np.float32)
    terminated, truncated, valid = (np.zeros((num_steps, N), bool) for _ in range(3))
    for env in range(N):
        length = LENGTHS[env % 4]
        for t in range(num_steps + 1):
            episode, time = divmod(first + t, length + 1)
            obs[t, env] = env, episode, time
            if t == num_steps:
                continue
            arrives_at = time + 1 if time < length else 0
            valid[t, env] = arrives_at != 0
            rewards[t, env] = 1000 * env + arrives_at if valid[t, env] else 0
            if arrives_at == length:
                how = ENDINGS[(env + episode) % 3]
                terminated[t, env], truncated[t, env] = how != TRUNCATES, how != TERMINATES
    return {
        "obs": obs, "rewards": rewards, "terminated": terminated, "truncated": truncated,
        "done": terminated | truncated, "valid": valid,
    }  # fmt: skip


def copies(rollout: Rollout) -> dict[str, np.ndarray]:
    return {name: array.copy() for name, array in vars(rollout).items() if isinstance(array, np.ndarray)}


# Slots


def test_every_field_lands_in_its_step_and_environment_and_crosses_the_seam_between_rollouts(
    make_worker: MakeWorker,
) -> None:
    env = counting_env()
    worker = make_worker(env, 7)
    flat = torch.zeros(worker.model.num_params)
    for rollout_index in range(5):
        rollout = worker.collect(flat)
        for name, array in expected_streams(7 * rollout_index, 7).items():
            np.testing.assert_array_equal(getattr(rollout, name), array, err_msg=f"{name}, rollout {rollout_index}")
        assert rollout.num_valid == expected_streams(7 * rollout_index, 7)["valid"].sum()
        assert worker.steps_done == 7 * (rollout_index + 1)
        # The environment was sent the action of its slot, clipped; the unclipped one is kept.
        sent = np.stack(env.received[-7:])
        np.testing.assert_array_equal(sent, np.clip(rollout.actions, -1, 1))
        assert (np.abs(rollout.actions) > 1).any()


def test_actions_are_mean_plus_std_times_the_noise_of_seed_environment_and_step(make_worker: MakeWorker) -> None:
    worker = make_worker(counting_env(), 5, seed=9)
    flat = torch.zeros(worker.model.num_params)  # μ = 0, σ = 1: the action is the noise
    parts = worker.model.unflatten(flat)
    for rollout_index in range(3):
        actions = worker.collect(flat).actions
        for t in range(5):
            steps = np.full(N, 5 * rollout_index + t)
            np.testing.assert_array_equal(actions[t], normals(9, np.arange(N), steps, 2).astype(np.float32))
    parts["actor.1.bias"][:] = torch.tensor([0.5, -2.0])
    parts["actor.log_std"][:] = math.log(0.25)  # σ = 1/4 up to the rounding of exp
    actions = worker.collect(flat).actions
    noise = normals(9, np.arange(N), np.full(N, 15), 2)
    # One rounding each of log σ, exp, the product and the sum, of numbers below 4.
    np.testing.assert_allclose(actions[0], [0.5, -2.0] + 0.25 * noise, rtol=0, atol=4 * 4 * 2.0**-24)


def choosing_env(num_actions: int) -> CountingEnv:
    return counting_env(act_dim=1, action_range=(-math.inf, math.inf), num_actions=num_actions)


def test_choices_are_those_of_the_uniforms_of_seed_environment_and_step(make_worker: MakeWorker) -> None:
    # Logits of 0: all weights 1, so that a = #{k < K - 1 : k + 1 <= K u} = floor(K u).
    env = choosing_env(5)
    worker = make_worker(env, 7, seed=9)
    flat = torch.zeros(worker.model.num_params)
    for rollout_index in range(3):
        rollout = worker.collect(flat)
        for t in range(7):
            u = uniforms(9, np.arange(N), np.full(N, 7 * rollout_index + t), 1)
            np.testing.assert_array_equal(rollout.actions[t], np.floor(5 * u))
        np.testing.assert_array_equal(np.stack(env.received[-7:]), rollout.actions)  # an index is not rescaled
        # log 1/5, two roundings of numbers below 2
        np.testing.assert_allclose(rollout.log_probs, math.log(0.2), rtol=0, atol=2 * 2.0**-23)


def test_choices_see_the_observation_of_their_own_step(make_worker: MakeWorker) -> None:
    # Logits 0 and 50 · (env - 2.5): certain but for e^-25; environments 0 to 2 take action 0, the others action 1.
    env = choosing_env(2)
    worker = make_worker(env, 6)
    flat = torch.zeros(worker.model.num_params)
    parts = worker.model.unflatten(flat)
    parts["actor.0.weight"][0, 0] = 50.0
    parts["actor.1.weight"][1, 0], parts["actor.1.bias"][1] = 1.0, -125.0
    actions = worker.collect(flat).actions
    np.testing.assert_array_equal(actions[..., 0], np.broadcast_to([0, 0, 0, 1, 1, 1], (6, N)))


def test_mean_sees_the_observation_of_its_own_step(make_worker: MakeWorker) -> None:
    worker = make_worker(counting_env(), 6)
    flat = torch.zeros(worker.model.num_params)
    parts = worker.model.unflatten(flat)
    parts["actor.0.weight"][:] = torch.eye(3)  # relu of numbers >= 0: the hidden layer is the observation
    parts["actor.1.weight"][:] = torch.tensor([[100.0, 10.0, 1.0], [0.0, 0.0, 0.0]])
    parts["actor.log_std"][:] = -80.0  # σ = 1.8e-35, lost beside any mean but 0
    rollout = worker.collect(flat)
    expected = 100 * rollout.obs[:-1, :, 0] + 10 * rollout.obs[:-1, :, 1] + rollout.obs[:-1, :, 2]
    large = expected > 0
    np.testing.assert_array_equal(rollout.actions[..., 0][large], expected[large])


def test_two_short_rollouts_are_one_long_one(make_worker: MakeWorker) -> None:
    for make in (
        counting_env,
        lambda: envs.make("Hopper-v5", N, seed=3, backend="gymnasium"),
        lambda: envs.make("Hopper-v5", N, seed=3),
    ):
        streams = []
        for num_steps, rollouts in ((20, 2), (40, 1)):
            env = make()
            worker = make_worker(env, num_steps, model=ActorCritic(env.spec.obs_dim, env.spec.act_dim))
            flat = training.random_parameters(worker.model, 1)
            parts = [copies(worker.collect(flat)) for _ in range(rollouts)]
            env.close()
            streams.append({k: np.concatenate([p[k][:num_steps] for p in parts]) for k in (*STREAMS, "norm_obs")})
        assert streams[0]["done"].any()
        for name in streams[0]:
            np.testing.assert_array_equal(streams[0][name], streams[1][name], err_msg=name)


@pytest.mark.parametrize("env_backend", ["gymnasium", "auto"])
def test_row_after_a_done_is_invalid_and_across_rollouts_too(make_worker: MakeWorker, env_backend: str) -> None:
    env = envs.make("Hopper-v5", 4, seed=1, backend=env_backend)
    worker = make_worker(env, 25, model=ActorCritic(11, 3))
    flat = worker.model.init(1, 0.5)
    done, valid = [], []
    for _ in range(8):
        rollout = worker.collect(flat)
        done.append(rollout.done.copy())
        valid.append(rollout.valid.copy())
        assert not (rollout.done & ~rollout.valid).any()
        assert not rollout.rewards[~rollout.valid].any()
    env.close()
    done, valid = np.concatenate(done), np.concatenate(valid)
    np.testing.assert_array_equal(valid[1:], ~done[:-1])
    assert valid[0].all()
    assert done[24::25].any()  # an end in the last row of a rollout was met


# Values


def value_that_reads_the_observation(model: ActorCritic) -> torch.Tensor:
    """Return parameters with V = 100 · env + 10 · episode + time, exact in float32."""
    flat = torch.zeros(model.num_params)
    parts = model.unflatten(flat)
    parts["critic.0.weight"][:] = torch.eye(3)
    parts["critic.1.weight"][:] = torch.tensor([[100.0, 10.0, 1.0]])
    return flat


def test_values_are_those_of_the_observations_and_next_values_of_the_true_final_ones(make_worker: MakeWorker) -> None:
    worker = make_worker(counting_env(), 11)
    flat = value_that_reads_the_observation(worker.model)
    met = 0
    for first in (0, 11, 22):
        rollout = worker.collect(flat)
        expected = expected_streams(first, 11)
        env, episode, time = np.moveaxis(expected["obs"], -1, 0)
        np.testing.assert_array_equal(rollout.values_all, 100 * env + 10 * episode + time)
        np.testing.assert_array_equal(rollout.values, rollout.values_all[:-1])
        # After an end, V(s_{t+1}) is that of time L in the same episode, not that of time 0 in the next one.
        for t, e in np.argwhere(rollout.done):
            length = LENGTHS[e % 4]
            episode_index = (first + t) // (length + 1)
            assert rollout.next_values[t, e] == 100 * e + 10 * episode_index + length
            met += bool(rollout.truncated[t, e] and not rollout.terminated[t, e] and t == 10)
    assert met  # an end by time limit in the last row of a rollout was among them


def test_values_and_next_values_are_contiguous_views_of_one_buffer(make_worker: MakeWorker) -> None:
    rollout = make_worker(counting_env(), 4).buffers
    for view in (rollout.values, rollout.next_values):
        assert view.flags.c_contiguous
        assert np.shares_memory(view, rollout.values_all)


# Log-probabilities


def test_log_probs_are_those_of_the_unclipped_actions(make_worker: MakeWorker) -> None:
    model = ActorCritic(11, 3)
    env = envs.make("Hopper-v5", 8, seed=2)
    worker = make_worker(env, 32, model=model, norm_obs=True)
    rule, outside = TwoTimesRule(), 0
    for seed in range(32):
        flat = training.random_parameters(model, seed)
        model.unflatten(flat)["actor.log_std"][:] += 0.5  # σ near 1: many actions beyond the bounds
        rollout = worker.collect(flat)
        outside += int((np.abs(rollout.actions) > 1).any(-1).sum())
        expected = []
        for dtype in (torch.float32, torch.float64):
            net = training.reference_net(model, flat, dtype)
            x, actions = (
                torch.from_numpy(a.reshape(256, -1)).to(dtype) for a in (rollout.norm_obs[:-1], rollout.actions)
            )
            with torch.no_grad():
                expected.append({"log_probs": losses.gaussian_log_prob(net.actor(x), net.log_std, actions).numpy()})
        rule.add({"log_probs": rollout.log_probs.reshape(-1)}, *expected)
        worker.normalizer.update(rollout.obs[:-1], rollout.valid)
    env.close()
    assert outside > 1000
    rule.check()


def test_values_and_log_probs_of_choices_are_as_exact_as_the_reference(make_worker: MakeWorker) -> None:
    model = ActorCritic(4, 1, shared_trunk=True, num_actions=2)
    env = envs.make("CartPole-v1", 8, seed=2)
    worker = make_worker(env, 32, model=model, norm_obs=True)
    rule = TwoTimesRule()
    for seed in range(32):
        flat = training.random_parameters(model, seed)
        rollout = worker.collect(flat)
        expected = []
        for dtype in (torch.float32, torch.float64):
            net = training.reference_net(model, flat, dtype)
            with torch.no_grad():
                head, values = net(torch.from_numpy(rollout.norm_obs[:-1].reshape(256, -1)).to(dtype))
                log_probs = net.log_prob(head, torch.from_numpy(rollout.actions.reshape(256, 1)))
            expected.append({"log_probs": log_probs.numpy(), "values": values.numpy()})
        rule.add({"log_probs": rollout.log_probs.reshape(-1), "values": rollout.values.reshape(-1)}, *expected)
        worker.normalizer.update(rollout.obs[:-1], rollout.valid)
    env.close()
    rule.check()


# Frozen statistics: the first ratio is 1


def native_ratios(learner: NativeLearner, batch: dict[str, np.ndarray], rows: np.ndarray) -> np.ndarray:
    """Return the ratio of each of these rows as the core computes it, exactly: minus the loss under an advantage of 1.

    From 1 + clip_coef on it is the clipped one.
    """
    ones = {**batch, "advantages": np.ones_like(batch["advantages"])}
    assert not learner.hp.norm_adv_minibatch
    sums = [learner.gradient(ones, np.array([row]))[1] for row in rows]
    return -np.array([float(s[STATS.index("policy_loss")]) for s in sums])


@pytest.fixture
def first_minibatches(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, float]]:
    """Record (max |ratio - 1|, |approx_kl|) of the first minibatch of every update, before its step."""
    seen: list[tuple[float, float]] = []
    pending = [True]
    step, update = torch_learner.minibatch_step, PPOLearner.update

    def spy(model: ActorCritic, hp: Any, compiled: bool, opt: Optimizer, scalars: torch.Tensor, mb: Minibatch) -> None:
        if pending[0]:
            net = training.reference_net(model, opt.flat, torch.float32)
            with torch.no_grad():
                log_probs = net.log_prob(net(mb.norm_obs)[0], mb.actions)
            log_ratio = (log_probs - mb.log_probs)[mb.valid > 0].double()
            _, sums = ppo_loss(model, hp, opt.flat, scalars[0], mb)
            kl = float(sums[STATS.index("approx_kl")] / sums[STATS.index("rows")])
            seen.append((float((log_ratio.exp() - 1).abs().max()), abs(kl)))
            pending[0] = False
        step(model, hp, compiled, opt, scalars, mb)

    def begin(self: Any, rollout: Rollout) -> Any:
        pending[0] = True
        if isinstance(self, NativeLearner):
            batch, cfg = self.stage(rollout), self.cfg
            first = kernels.permutation(cfg.batch_size, seed=cfg.seed, stream=self.epochs_done)[: cfg.minibatch_size]
            _, sums = self.gradient(batch, first)
            ratios = native_ratios(self, batch, first[batch["valid"][first] > 0])
            assert len(ratios) == sums[STATS.index("rows")]
            seen.append((float(np.abs(ratios - 1).max()), abs(float(sums[STATS.index("approx_kl")])) / len(ratios)))
        return update(self, rollout)

    monkeypatch.setattr(torch_learner, "minibatch_step", spy)
    monkeypatch.setattr(PPOLearner, "update", begin)
    return seen


RATIO_RUN: dict[str, Any] = {
    "total_timesteps": 3000, "learning_rate": 3e-3, "anneal_lr": False, "norm_adv": "batch"
}  # fmt: skip
WORKERS: dict[str, Any] = {"torch": RolloutWorker, "native": NativeRolloutWorker}


@pytest.mark.parametrize("shared_trunk", [False, True])
@pytest.mark.parametrize("env", ["Hopper-v5", "Ant-v5", "CartPole-v1"])
def test_first_ratio_is_one_although_the_statistics_move_in_every_iteration(
    tmp_path: Any,
    stack: dict[str, Any],
    env: str,
    shared_trunk: bool,
    first_minibatches: list[tuple[float, float]],
) -> None:
    options = {**RATIO_RUN, "env": env, "shared_trunk": shared_trunk, **stack}
    run = training.train(training.config(tmp_path / "run", **options))
    assert len(first_minibatches) == len(run.rows) >= 10
    assert min(row["approx_kl"] for row in run.rows) > 1e-4  # the policy did move within each update
    exact = stack["actor"] == "native"  # actor and learner are the same code
    assert max(ratio for ratio, _ in first_minibatches) <= (0 if exact else 1e-5)
    assert max(kl for _, kl in first_minibatches) <= (0 if exact else 1e-8)


@pytest.mark.parametrize(("actor", "learner"), [("native", "torch"), ("torch", "native")])
@pytest.mark.usefixtures("native_core")
def test_first_ratio_is_one_up_to_rounding_between_torch_and_the_core(
    tmp_path: Any, actor: str, learner: str, first_minibatches: list[tuple[float, float]]
) -> None:
    options: dict[str, Any] = {"actor": actor, "learner": learner, "update": "auto", "env": "Ant-v5"}
    run = training.train(training.config(tmp_path / "run", **RATIO_RUN, **options))
    assert len(first_minibatches) == len(run.rows) >= 10
    assert 0 < max(ratio for ratio, _ in first_minibatches) <= 1e-5
    assert max(kl for _, kl in first_minibatches) <= 1e-8


def test_rows_normalised_by_other_statistics_than_were_acted_on_break_that(
    tmp_path: Any,
    monkeypatch: pytest.MonkeyPatch,
    stack: dict[str, Any],
    first_minibatches: list[tuple[float, float]],
) -> None:
    worker = WORKERS[stack["actor"]]
    collect = worker.collect

    def collect_and_normalise_anew(self: Worker, flat: torch.Tensor) -> Rollout:
        rollout = collect(self, flat)
        newer = ObsNormalizer(self.model.obs_dim, clip=10.0)
        newer.moments.load({name: array.copy() for name, array in self.normalizer.moments.state().items()})
        newer.update(rollout.obs[:-1], rollout.valid)
        newer.normalize(rollout.obs, out=rollout.norm_obs)
        return rollout

    monkeypatch.setattr(worker, "collect", collect_and_normalise_anew)
    training.train(training.config(tmp_path / "run", **RATIO_RUN, **stack))
    assert len(first_minibatches) >= 10
    assert min(ratio for ratio, _ in first_minibatches) > 1e-5
    assert min(kl for _, kl in first_minibatches) > 1e-8


def test_normalised_rows_are_those_that_were_acted_on(make_worker: MakeWorker) -> None:
    # V reads the normalised observation; so do the means. Statistics change after the rollout, its rows must not.
    worker = make_worker(counting_env(), 9, norm_obs=True)
    flat = value_that_reads_the_observation(worker.model)
    worker.normalizer.update(worker.collect(flat).obs[:-1], worker.buffers.valid)
    expected_rows = worker.normalizer.normalize(expected_streams(9, 9)["obs"])
    rollout = worker.collect(flat)
    worker.normalizer.update(rollout.obs[:-1], rollout.valid)
    np.testing.assert_array_equal(rollout.norm_obs, expected_rows)


# What must not get in


def test_nan_reward_stops_collection_and_names_step_and_environment(make_worker: MakeWorker) -> None:
    worker = make_worker(counting_env(nan_reward_at=(9, 4)), 6)
    flat = torch.zeros(worker.model.num_params)
    worker.collect(flat)
    with pytest.raises(NonFiniteError, match=r"rewards.*\(step 9, env 4\)"):
        worker.collect(flat)


def test_nan_reward_of_a_reset_row_is_no_reward(make_worker: MakeWorker) -> None:
    # Environment 2 has episodes of one step: its call 1 is a reset row.
    worker = make_worker(counting_env(nan_reward_at=(1, 2)), 6)
    rollout = worker.collect(torch.zeros(worker.model.num_params))
    np.testing.assert_array_equal(rollout.rewards, expected_streams(0, 6)["rewards"])


@pytest.mark.parametrize("make", [counting_env, lambda: choosing_env(3)], ids=["gaussian", "categorical"])
def test_nan_policy_stops_before_the_environments_are_stepped(make: Any, make_worker: MakeWorker) -> None:
    env = make()
    worker = make_worker(env, 6)
    with pytest.raises(NonFiniteError, match=r"action.* not finite"):
        worker.collect(torch.full((worker.model.num_params,), math.nan))
    assert not env.received


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_observation_stops_collection(make_worker: MakeWorker, bad: float) -> None:
    class Breaking(CountingEnv):
        def _observe(self, obs: np.ndarray) -> None:
            super()._observe(obs)
            if self.steps == 5:  # the observation that the last action of the rollout leads to: nothing acts on it
                obs[3, 1] = bad

    worker = make_worker(Breaking(N, episode_lengths=LENGTHS, endings=ENDINGS), 6, norm_obs=True)
    with pytest.raises(NonFiniteError, match=r"obs.*\(step 5, env 3\)"):
        worker.collect(torch.zeros(worker.model.num_params))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_first_observation_stops_collection(make_worker: MakeWorker, bad: float) -> None:
    class Broken(CountingEnv):
        def _observe(self, obs: np.ndarray) -> None:
            super()._observe(obs)
            if not self.received:  # from reset() only
                obs[3, 1] = bad

    worker = make_worker(Broken(N, episode_lengths=LENGTHS, endings=ENDINGS), 6, norm_obs=True)
    with pytest.raises(NonFiniteError):
        worker.collect(training.random_parameters(worker.model, 1))


@pytest.mark.filterwarnings("error")
def test_large_finite_rewards_are_no_error(make_worker: MakeWorker) -> None:
    class Rich(CountingEnv):
        def _reward(self) -> np.ndarray:
            return np.full(self.num_envs, 3e38)  # finite in float32, though the sum of two is not

    worker = make_worker(Rich(N, episode_lengths=LENGTHS, endings=ENDINGS), 6)
    assert np.isfinite(worker.collect(torch.zeros(worker.model.num_params)).rewards).all()


def test_what_waits_for_the_environments_is_timed_as_physics(make_worker: MakeWorker) -> None:
    class Slow(CountingEnv):
        def _reward(self) -> np.ndarray:
            time.sleep(0.02)
            return super()._reward()

    worker = make_worker(Slow(N, episode_lengths=LENGTHS, endings=ENDINGS), 3)
    worker.timer.take()
    worker.collect(torch.zeros(worker.model.num_params))
    seconds = worker.timer.take()
    assert set(seconds) == {"act", "physics"}
    assert seconds["physics"] >= 3 * 0.02
    assert seconds["act"] > 0
