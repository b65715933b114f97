"""The training loop: what it counts, schedules, writes and refuses; time limits; how it stops and goes on.

Axes: T steps · N envs · D observation · A action.
"""

from __future__ import annotations

import copy
import itertools
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import training
from fakes import ChainEnv, CountingEnv
from training import Recorder, Run, config, one_thread, use_fake_envs  # noqa: F401

from ppo_fast import checkpoint, examiner, kernels, reference, trainer
from ppo_fast.batch import Rollout
from ppo_fast.errors import ConfigError, LostError, NonFiniteError
from ppo_fast.evaluation import EpisodeStats, load_policy
from ppo_fast.learners.ppo_base import PPOLearner
from ppo_fast.rollout import NativeRolloutWorker, RolloutWorker, Worker
from ppo_fast.trainer import Trainer

PROMISED = {"env_steps", "wall_s", "sps", "episode_return", "episode_length", "approx_kl"}  # names that others build on
COUNTING_LENGTHS = (5, 3, 1, 7)


def counting_env(num_envs: int, **options: Any) -> CountingEnv:
    return CountingEnv(num_envs, episode_lengths=COUNTING_LENGTHS, **options)


def valid_rows_of_counting_envs(steps_per_env: int, num_envs: int) -> int:
    """Return how many of the first transitions are real: of every L + 1 all but the last, which is the reset."""
    lengths = [COUNTING_LENGTHS[env % 4] for env in range(num_envs)]
    return sum(steps_per_env - steps_per_env // (length + 1) for length in lengths)


# Time limits


class CutIsAnEnd(ChainEnv):
    """The ring with the mistake built in: the time limit is reported as a termination."""

    def _ends(self) -> tuple[np.ndarray, np.ndarray]:
        ends, cuts = super()._ends()
        return ends | cuts, np.zeros_like(cuts)


def learned_values(
    make: Any, path: Path, patch: pytest.MonkeyPatch, *, num_states: int = 4, **options: Any
) -> np.ndarray:
    """Train on an environment whose observation is a one-hot state, and return V of each state in raw reward units."""
    use_fake_envs(patch, make)
    defaults: dict[str, Any] = {
        "num_envs": 16, "num_steps": 32, "minibatch_size": 128, "update_epochs": 10, "total_timesteps": 25_000,
        "gamma": 0.9, "learning_rate": 3e-3, "norm_obs": False, "norm_reward": False, "max_grad_norm": 10.0,
    }  # fmt: skip
    run = training.train(config(path, **{**defaults, **options}))
    model = run.trainer.model
    with torch.no_grad():
        return model.value(model.params(run.trainer.learner.flat), torch.eye(num_states)).numpy()


def test_constant_reward_under_a_time_limit_learns_the_value_without_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stack: dict[str, Any]
) -> None:
    # A reward of 1 for ever: V = 1/(1 - γ) = 10 in every state, although every episode is cut after 10 steps. Each
    # iteration that fits its targets shrinks the error to γ (1 - λ)/(1 - γλ) = 0.31 of it or less, so 50 of them leave
    # what float32 and Adam leave: seeds 1 to 5 end within 1e-5; the bound is 1e-3.
    values = learned_values(lambda n: ChainEnv(n, time_limit=10), tmp_path / "run", monkeypatch, **stack)
    np.testing.assert_allclose(values, [10.0] * 4, rtol=0, atol=1e-3)


def test_time_limit_taken_for_an_end_learns_a_value_that_is_wrong_by_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stack: dict[str, Any]
) -> None:
    # The control arm. 33 steps are three episodes of 10 with their reset rows, so nothing is cut by the rollout's end.
    # With k = 1 ... 10 steps left, equally often in every state, the λ-return of a constant V is a_k + b_k V:
    #   a_1 = 1, b_1 = 0;   a_k = 1 + γλ a_(k-1),  b_k = γ (1 - λ) + γλ b_(k-1);   V = mean a / (1 - mean b) = 4.283
    gamma, gae_lambda = 0.9, 0.95
    a, b = [1.0], [0.0]
    for _ in range(9):
        a.append(1 + gamma * gae_lambda * a[-1])
        b.append(gamma * (1 - gae_lambda) + gamma * gae_lambda * b[-1])
    wrong = np.mean(a) / (1 - np.mean(b))
    assert wrong == pytest.approx(4.283, abs=5e-4)
    values = learned_values(
        lambda n: CutIsAnEnd(n, time_limit=10), tmp_path / "run", monkeypatch, num_steps=33, minibatch_size=132, **stack
    )
    # The targets vary, and minibatches are samples of them: seeds 1 to 5 end within 0.005; the bound is 0.02.
    np.testing.assert_allclose(values, [wrong] * 4, rtol=0, atol=0.02)


def test_true_ends_are_worth_nothing_with_a_time_limit_beside_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stack: dict[str, Any]
) -> None:
    # A walk of 4 states that terminates, cut after 3 steps: V(s) = (1 - γ^(4-s))/(1 - γ) = 3.439, 2.71, 1.9, 1.
    values = learned_values(lambda n: ChainEnv(n, time_limit=3, terminal=True), tmp_path / "run", monkeypatch, **stack)
    np.testing.assert_allclose(values, [3.439, 2.71, 1.9, 1.0], rtol=0, atol=1e-3)


# Reset rows, through the whole loop


@pytest.mark.parametrize("norm_adv", ["none", "batch", "minibatch"])
def test_nan_in_reset_rows_changes_not_one_bit_of_a_whole_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stack: dict[str, Any], norm_adv: str
) -> None:
    use_fake_envs(monkeypatch, counting_env)
    options: dict[str, Any] = {"norm_adv": norm_adv, "clip_vloss": True, "total_timesteps": 1000, **stack}
    clean = training.train(config(tmp_path / "clean", **options))

    worker: Any = {"torch": RolloutWorker, "native": NativeRolloutWorker}[stack["actor"]]
    collect, update, poisoned_rows = worker.collect, PPOLearner.update, [0]

    def collect_poisoned(self: Worker, flat: torch.Tensor) -> Rollout:
        rollout = collect(self, flat)
        for array in (rollout.actions, rollout.log_probs, rollout.rewards):
            array[~rollout.valid] = np.nan
        return rollout

    def update_poisoned(self: PPOLearner, rollout: Rollout) -> dict[str, float]:
        # The NaN rewards have gone through scaling and GAE: they stand in the same rows, and in no other.
        for array in (rollout.scaled_rewards, rollout.advantages, rollout.returns):
            np.testing.assert_array_equal(np.isnan(array), ~rollout.valid)
        poisoned_rows[0] += int((~rollout.valid).sum())
        return update(self, rollout)

    monkeypatch.setattr(worker, "collect", collect_poisoned)
    monkeypatch.setattr(PPOLearner, "update", update_poisoned)
    poisoned = training.train(config(tmp_path / "poisoned", **options))
    assert poisoned_rows[0] > 100
    assert poisoned.fingerprint() == clean.fingerprint()


def test_rows_that_count_are_counted_once_and_reset_rows_never(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_fake_envs(monkeypatch, counting_env)
    run = training.train(config(tmp_path / "run", total_timesteps=2000))
    # 8 environments, 32 steps an iteration, the warm-up rollout before the first of them.
    expected = [valid_rows_of_counting_envs(32 * (k + 2), 8) for k in range(len(run.rows))]
    assert [row["env_steps"] for row in run.rows] == expected
    assert run.result.state.env_steps == expected[-1]
    assert run.trainer.normalizer.moments.count[0] == expected[-1]
    assert run.trainer.scaler.moments.count[0] == expected[-1]
    assert run.result.state.worker_steps == 32 * (len(run.rows) + 1)


def test_observation_statistics_are_those_of_all_valid_observations_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_fake_envs(monkeypatch, counting_env)
    run = training.train(config(tmp_path / "run", total_timesteps=1000))
    rows = []
    for env in range(8):
        length = COUNTING_LENGTHS[env % 4]
        for step in range(32 * (len(run.rows) + 1)):
            episode, at = divmod(step, length + 1)
            if at < length:  # the observation at time L is followed by the reset row, whose action nobody takes
                rows.append((env, episode, at))
    moments = run.trainer.normalizer.moments
    # Whole numbers below 1000: means and variances in float64 agree to its rounding times the number of rows.
    np.testing.assert_allclose(moments.mean, np.mean(rows, axis=0), rtol=1e-12)
    np.testing.assert_allclose(moments.var, np.var(rows, axis=0), rtol=1e-11)


def test_episode_statistics_are_means_of_raw_returns_of_the_last_hundred_episodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_fake_envs(monkeypatch, counting_env)
    run = training.train(config(tmp_path / "run", total_timesteps=1000))
    env = counting_env(8)
    ends = []  # (step, env) of every end, in the order of time
    for step in range(32 * (len(run.rows) + 1)):
        ends += [(step, e) for e in range(8) if step % (int(env.lengths[e]) + 1) == env.lengths[e] - 1]
    for k, row in enumerate(run.rows):
        seen = [e for step, e in ends if step < 32 * (k + 2)][-100:]
        assert row["episode_return"] == pytest.approx(np.mean([env.episode_return(e) for e in seen]), rel=1e-12)
        assert row["episode_length"] == pytest.approx(np.mean([env.lengths[e] for e in seen]), rel=1e-12)
        assert row["episodes"] == sum(32 * (k + 1) <= step < 32 * (k + 2) for step, _ in ends)


def test_no_episode_yet_is_null_and_not_nan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_fake_envs(monkeypatch, lambda n: ChainEnv(n, time_limit=90))
    run = training.train(config(tmp_path / "run", total_timesteps=1000))
    assert [row["episode_return"] for row in run.rows] == [None, pytest.approx(90.0), pytest.approx(90.0)]
    assert [row["episode_length"] for row in run.rows] == [None, 90.0, 90.0]


# Length and schedules


@pytest.mark.parametrize("total_timesteps", [1000, 1500])
def test_run_ends_with_the_first_iteration_that_reaches_total_timesteps(tmp_path: Path, total_timesteps: int) -> None:
    run = training.train(config(tmp_path / "run", total_timesteps=total_timesteps))
    assert run.rows[-1]["env_steps"] >= total_timesteps > run.rows[-2]["env_steps"]
    assert [row["iteration"] for row in run.rows] == list(range(1, len(run.rows) + 1))
    assert run.result.state.env_steps == run.rows[-1]["env_steps"]
    assert len(run.evaluations) == 1


def test_learning_rate_falls_linearly_with_the_steps_taken_before_the_iteration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_fake_envs(monkeypatch, counting_env)
    run = training.train(config(tmp_path / "annealed", total_timesteps=1500, learning_rate=2e-3))
    for k, row in enumerate(run.rows):
        steps_before = valid_rows_of_counting_envs(32 * (k + 1), 8)  # the warm-up included
        assert row["learning_rate"] == 2e-3 * (1 - steps_before / 1500)
    constant = training.train(config(tmp_path / "constant", learning_rate=2e-3, anneal_lr=False))
    assert {row["learning_rate"] for row in constant.rows} == {2e-3}


def test_kl_above_its_target_ends_updates_after_their_first_epoch(tmp_path: Path) -> None:
    options: dict[str, Any] = {"update_epochs": 4, "learning_rate": 3e-3, "anneal_lr": False}
    free = training.train(config(tmp_path / "free", **options))
    assert {row["epochs"] for row in free.rows} == {4.0}
    stopped = training.train(config(tmp_path / "stopped", target_kl=1e-9, **options))
    assert {row["epochs"] for row in stopped.rows} == {1.0}
    lenient = training.train(config(tmp_path / "lenient", target_kl=1e9, **options))
    assert lenient.fingerprint() == free.fingerprint()


@pytest.fixture
def at_update(monkeypatch: pytest.MonkeyPatch) -> list[tuple[dict[str, Any], Rollout]]:
    """Record statistics, counters and rollout, copied, at the moment when each update begins."""
    seen: list[tuple[dict[str, Any], Rollout]] = []
    trainers: list[Trainer] = []
    begin, update = Trainer._begin, PPOLearner.update

    def remember(self: Trainer) -> None:
        trainers.append(self)
        begin(self)

    def record(self: PPOLearner, rollout: Rollout) -> dict[str, float]:
        parts = {name: getattr(trainers[-1], name) for name in ("normalizer", "scaler", "state")}
        seen.append(copy.deepcopy((parts, rollout)))
        return update(self, rollout)

    monkeypatch.setattr(Trainer, "_begin", remember)
    monkeypatch.setattr(PPOLearner, "update", record)
    return seen


def test_observation_statistics_at_an_update_are_those_of_the_rollouts_before(
    tmp_path: Path, stack: dict[str, Any], at_update: list[tuple[dict[str, Any], Rollout]]
) -> None:
    training.train(config(tmp_path / "run", **stack))
    assert len(at_update) >= 4
    for parts, rollout in at_update:
        assert parts["normalizer"].moments.count[0] == parts["state"].env_steps
        np.testing.assert_array_equal(rollout.norm_obs, parts["normalizer"].normalize(rollout.obs))


def test_rewards_are_scaled_by_statistics_that_include_their_own_rollout(
    tmp_path: Path, stack: dict[str, Any], at_update: list[tuple[dict[str, Any], Rollout]]
) -> None:
    training.train(config(tmp_path / "run", **stack))
    for parts, rollout in at_update:
        assert parts["scaler"].moments.count[0] == parts["state"].env_steps + rollout.num_valid
        expected = parts["scaler"].scale(rollout.rewards, out=np.empty_like(rollout.rewards))
        np.testing.assert_array_equal(rollout.scaled_rewards, expected)


def test_update_learns_from_the_reference_advantages_of_its_rollout(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stack: dict[str, Any],
    at_update: list[tuple[dict[str, Any], Rollout]],
) -> None:
    use_fake_envs(monkeypatch, counting_env)  # ends of all three kinds
    training.train(config(tmp_path / "run", gamma=0.9, gae_lambda=0.7, learning_rate=1e-2, **stack))
    for _, rollout in at_update:
        values, next_values = rollout.values_all[:-1], rollout.values_all[1:]
        advantages, returns = reference.gae(
            rollout.scaled_rewards, values, next_values, rollout.terminated, rollout.done, gamma=0.9, gae_lambda=0.7
        )
        np.testing.assert_array_equal(rollout.advantages, advantages)
        np.testing.assert_array_equal(rollout.returns, returns)
        np.testing.assert_array_equal(rollout.done, rollout.terminated | rollout.truncated)
        assert (rollout.truncated & ~rollout.terminated).any()
        assert rollout.terminated.any()


# What is written


def test_a_row_tells_what_the_critic_explained_of_its_rollout_and_where_its_time_went(
    tmp_path: Path, stack: dict[str, Any], at_update: list[tuple[dict[str, Any], Rollout]]
) -> None:
    run = training.train(config(tmp_path / "run", **stack))
    for (_, rollout), row in zip(at_update, run.rows, strict=True):
        keep = rollout.valid
        returns, left = rollout.returns[keep].astype(float), (rollout.returns - rollout.values)[keep].astype(float)
        assert row["explained_var"] == pytest.approx(1 - left.var() / returns.var(), abs=1e-5)
    for before, row in itertools.pairwise(run.rows):
        seconds = {name: value for name, value in row.items() if name.startswith("time/")}
        assert set(seconds) == {"time/physics", "time/act", "time/advantage", "time/update"}
        assert min(seconds.values()) > 0
        assert sum(seconds.values()) <= row["wall_s"] - before["wall_s"] + 1e-5  # nothing is counted twice


def test_metrics_rows_have_the_promised_names_and_are_json(tmp_path: Path) -> None:
    run = training.train(config(tmp_path / "run"))
    rows = training.jsonl(tmp_path / "run" / "metrics.jsonl")
    assert rows == json.loads(json.dumps(run.rows))
    for row in rows:
        assert set(row) >= PROMISED
        assert all(value is None or math.isfinite(value) for value in row.values())
    wall = [row["wall_s"] for row in rows]
    assert wall == sorted(wall)
    assert wall[0] > 0
    assert ["startup_s" in row for row in rows] == [True] + [False] * (len(rows) - 1)
    (evaluation,) = training.jsonl(tmp_path / "run" / "evaluations.jsonl")
    assert set(evaluation) >= {"env_steps", "wall_s", "returns"}
    assert evaluation["returns"] == run.result.final.returns.tolist()
    assert evaluation["env_steps"] == rows[-1]["env_steps"]


@pytest.mark.draws
def test_run_directory_holds_config_checkpoint_and_picture(tmp_path: Path) -> None:
    cfg = config(tmp_path / "run")
    result = Trainer(cfg).run()
    assert json.loads((tmp_path / "run" / "config.json").read_text()) == cfg.to_dict()
    assert (tmp_path / "run" / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    (only,) = (tmp_path / "run" / "checkpoints").iterdir()
    assert only.name == f"step_{result.state.env_steps:012d}"


def test_loaded_policy_acts_as_the_trained_one_did(tmp_path: Path) -> None:
    run = training.train(config(tmp_path / "run"))
    obs = np.random.default_rng(0).normal(size=(50, 11))
    np.testing.assert_array_equal(load_policy(tmp_path / "run")(obs), run.result.policy(obs))


def test_evaluations_and_checkpoints_come_when_due_and_at_the_end(tmp_path: Path) -> None:
    options: dict[str, Any] = {"eval_every": 500, "checkpoint_every": 700, "keep_checkpoints": 100}
    run = training.train(config(tmp_path / "run", total_timesteps=2000, **options))
    steps = [row["env_steps"] for row in run.rows]
    first_after = lambda every: [next(s for s in steps if s >= k * every) for k in range(1, 2000 // every + 1)]  # noqa: E731
    assert [e["env_steps"] for e in run.evaluations] == sorted({*first_after(500), steps[-1]})
    means = [np.mean(e["returns"]) for e in run.evaluations]
    best = [e["env_steps"] for i, e in enumerate(run.evaluations) if all(means[i] > m for m in means[:i])]
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == [f"step_{s:012d}" for s in sorted({*first_after(700), *best, steps[-1]})]


class Clock:
    """The clock of the trainer, which tests can push forward."""

    def __init__(self) -> None:
        self.pushed = 0.0

    def perf_counter(self) -> float:
        return time.perf_counter() + self.pushed


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    fake = Clock()
    monkeypatch.setattr(trainer, "time", fake)
    return fake


def test_wall_clock_excludes_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    def slow(*args: Any, **options: Any) -> EpisodeStats:
        clock.pushed += 1000.0
        return EpisodeStats(np.zeros(1), np.zeros(1, np.int64))

    monkeypatch.setattr(examiner, "evaluate", slow)
    run = training.train(config(tmp_path / "run", eval_every=300))
    assert clock.pushed >= 4000
    assert run.rows[-1]["wall_s"] < 500
    assert run.evaluations[-1]["wall_s"] < 500
    assert min(row["sps"] for row in run.rows) > 200 / 500


def test_wall_clock_includes_checkpoints_and_compilation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    save = checkpoint.save

    def slow(*args: Any, **options: Any) -> Path:
        clock.pushed += 1000.0
        return save(*args, **options)

    monkeypatch.setattr(checkpoint, "save", slow)
    recorder = Recorder()
    subject = Trainer(config(tmp_path / "run", total_timesteps=1500, checkpoint_every=600), [recorder])
    subject.learner.compile_s = 77.0  # as if its making had taken that long
    clock.pushed += 5000.0 + 77.0  # until the first step: start-up, and the compilation, which start-up does not count
    subject.run()
    first, *_, last = recorder.rows
    assert 77 < first["wall_s"] < 77 + 500
    assert 1077 + 1000 * (clock.pushed // 1000 - 5 - 3) < last["wall_s"] < 5000
    assert first["sps"] < first["env_steps"] / 77
    assert 5000 < first["startup_s"] < 5500


def test_sps_is_the_real_steps_of_the_iteration_over_its_own_time(tmp_path: Path) -> None:
    rows = training.train(config(tmp_path / "run", total_timesteps=1500)).rows
    # wall_s is rounded to microseconds, an iteration takes 10 ms or more, sps is rounded to 1/1000.
    for before, row in zip([{"env_steps": 0, "wall_s": 0.0}, *rows], rows, strict=False):
        expected = (row["env_steps"] - before["env_steps"]) / (row["wall_s"] - before["wall_s"])
        assert row["sps"] == pytest.approx(expected, rel=1e-3)


# Sinks


class Broken(Recorder):
    def __init__(self, where: str) -> None:
        super().__init__()
        self.where, self.calls = where, 0

    def __getattribute__(self, name: str) -> Any:
        if name in ("start", "log", "evaluation", "close") and name == object.__getattribute__(self, "where"):
            self.calls += 1
            raise OSError("disk full")
        return object.__getattribute__(self, name)


@pytest.mark.parametrize("where", ["start", "log", "evaluation", "close"])
def test_failing_sink_is_reported_once_and_never_stops_a_run(
    tmp_path: Path, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    sink, healthy = Broken(where), Recorder()
    run = training.train(config(tmp_path / "run", total_timesteps=800), sink, healthy)
    assert healthy.rows == run.rows
    assert len(training.jsonl(tmp_path / "run" / "metrics.jsonl")) == len(run.rows)
    messages = [r.getMessage() for r in caplog.records if "disk full" in r.getMessage()]
    assert len(messages) == 1
    assert "Broken" in messages[0]


# NaN


def state_of(subject: Trainer) -> dict[str, bytes]:
    return {
        "flat": subject.learner.flat.numpy().tobytes(),
        **{f"obs {k}": v.tobytes() for k, v in subject.normalizer.moments.state().items()},
        **{f"reward {k}": v.tobytes() for k, v in subject.scaler.state().items()},
        **{f"learner {k}": v.numpy().tobytes() for k, v in subject.learner.state().items()},
        **{f"episodes {k}": v.tobytes() for k, v in subject.parts.episodes.state_dict().items()},
    }


def interrupted(cfg: Any, *, match: str) -> tuple[Trainer, Recorder, dict[str, bytes]]:
    """Run until NonFiniteError; return the trainer, its rows, and its state after the last good iteration."""
    last: dict[str, bytes] = {}
    recorder = Recorder(lambda row: last.update(state_of(subject)))
    subject = Trainer(cfg, [recorder])
    with pytest.raises(NonFiniteError, match=match):
        subject.run()
    return subject, recorder, last


def test_nan_reward_stops_the_run_with_a_report_and_nothing_takes_it_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Warm-up is steps 0-31; step 170 is in the fifth iteration. Environment 3 has 7 steps an episode: 170 % 8 = 2.
    made = use_fake_envs(monkeypatch, lambda n: counting_env(n, nan_reward_at=(170, 3)))
    closed = []
    monkeypatch.setattr(CountingEnv, "_close", lambda self, *, interrupted: closed.append(self))
    cfg = config(tmp_path / "run", total_timesteps=5000, checkpoint_every=400)
    subject, recorder, last = interrupted(cfg, match=r"rewards.*\(step 170, env 3\)")
    assert len(recorder.rows) == 4
    assert state_of(subject) == last
    report = json.loads((tmp_path / "run" / "nonfinite.json").read_text())
    assert "(step 170, env 3)" in report["error"]
    assert report["state"]["iteration"] == 4
    assert report["arrays"]["rewards"]["non_finite"] == 1
    assert len(training.jsonl(tmp_path / "run" / "metrics.jsonl")) == 4
    saved = checkpoint.load_newest(tmp_path / "run" / "checkpoints")  # every byte verified
    assert saved.state["env_steps"] <= recorder.rows[-1]["env_steps"]
    assert not list((tmp_path / "run" / "checkpoints").glob(".tmp*"))
    assert all(torch.isfinite(tensor).all() for tensor in saved.model.values())
    assert made[-1] in closed


def test_nan_reward_in_the_warm_up_stops_the_run_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_fake_envs(monkeypatch, lambda n: counting_env(n, nan_reward_at=(0, 0)))
    subject, recorder, _ = interrupted(config(tmp_path / "run"), match=r"\(step 0, env 0\)")
    assert not recorder.rows
    assert subject.normalizer.moments.count[0] == subject.scaler.moments.count[0] == 0
    assert (tmp_path / "run" / "nonfinite.json").exists()


def test_nan_action_stops_the_run_with_a_report_and_nothing_takes_it_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_fake_envs(monkeypatch, counting_env)
    draw, calls = RolloutWorker._draw_noise, [0]

    def noisy(self: RolloutWorker) -> np.ndarray:
        noise = draw(self)
        calls[0] += 1
        if calls[0] == 4:
            noise[5, 2] = np.nan
        return noise

    monkeypatch.setattr(RolloutWorker, "_draw_noise", noisy)
    cfg = config(tmp_path / "run", total_timesteps=5000, actor="torch")
    subject, recorder, last = interrupted(cfg, match=r"actions.*\[2\]")
    assert len(recorder.rows) == 2
    assert state_of(subject) == last
    assert json.loads((tmp_path / "run" / "nonfinite.json").read_text())["arrays"]["actions"]["non_finite"] == 2


def test_infinite_action_stops_the_run_of_either_actor_and_nothing_takes_it_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stack: dict[str, Any]
) -> None:
    made = use_fake_envs(monkeypatch, counting_env)
    worker: Any = {"torch": RolloutWorker, "native": NativeRolloutWorker}[stack["actor"]]
    collect, calls = worker.collect, [0]

    def explore_without_bounds(self: Worker, flat: torch.Tensor) -> Rollout:
        calls[0] += 1
        if calls[0] == 4:
            flat = flat.clone()
            self.model.unflatten(flat)["actor.log_std"][0] = 200.0  # e^200 is infinite in float32
        return collect(self, flat)

    monkeypatch.setattr(worker, "collect", explore_without_bounds)
    cfg = config(tmp_path / "run", total_timesteps=5000, **stack)
    subject, recorder, last = interrupted(cfg, match=r"action.*environment.*not finite")
    assert len(recorder.rows) == 2
    assert state_of(subject) == last
    assert len(made[0].received) == 3 * 32  # the warm-up and two iterations
    report = json.loads((tmp_path / "run" / "nonfinite.json").read_text())
    assert report["arrays"]["actions"]["non_finite"] == 8  # one component of each environment


@pytest.mark.parametrize("what", ["a metric", "a parameter"])
def test_non_finite_update_stops_the_run_before_it_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stack: dict[str, Any], what: str
) -> None:
    update, calls = PPOLearner.update, [0]

    def diverge(self: PPOLearner, rollout: Rollout) -> dict[str, float]:
        metrics = update(self, rollout)
        calls[0] += 1
        if calls[0] == 3:
            if what == "a metric":
                metrics["value_loss"] = math.inf
            else:
                self.flat[7] = math.nan
        return metrics

    monkeypatch.setattr(PPOLearner, "update", diverge)
    match = "value_loss" if what == "a metric" else "parameters"
    cfg = config(tmp_path / "run", total_timesteps=5000, checkpoint_every=1, **stack)
    _, recorder, _ = interrupted(cfg, match=match)
    assert len(recorder.rows) == 2
    saved = checkpoint.load_newest(tmp_path / "run" / "checkpoints")
    assert saved.state["env_steps"] == recorder.rows[-1]["env_steps"]
    assert all(torch.isfinite(tensor).all() for tensor in saved.model.values())


@pytest.mark.parametrize("name", ["values_all", "log_probs", "advantages", "returns"])
def test_nan_in_what_is_learned_from_stops_the_run_and_the_networks_do_not_see_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stack: dict[str, Any], name: str
) -> None:
    gae, calls = kernels.gae, [0]

    def spoilt(*args: Any, out: tuple[np.ndarray, np.ndarray], **kwargs: Any) -> None:
        gae(*args, out=out, **kwargs)
        calls[0] += 1
        if calls[0] == 3:
            target = {"advantages": out[0], "returns": out[1]}.get(name)
            rollout = subject.worker.buffers
            (getattr(rollout, name) if target is None else target)[5, 2] = np.nan

    monkeypatch.setattr(kernels, "gae", spoilt)
    before: dict[str, bytes] = {}
    subject = Trainer(
        config(tmp_path / "run", total_timesteps=5000, **stack),
        [Recorder(lambda row: before.update(state_of(subject)))],
    )
    # Warm-up is steps 0-31, and the third iteration begins at 96.
    what = name.removesuffix("_all")
    with pytest.raises(NonFiniteError, match=rf"{what} has 1 non-finite rows, the first at \(step 101, env 2\)"):
        subject.run()
    after = state_of(subject)
    untouched = [key for key in after if key.startswith(("flat", "obs", "learner", "episodes"))]
    assert {key: after[key] for key in untouched} == {key: before[key] for key in untouched}
    report = json.loads((tmp_path / "run" / "nonfinite.json").read_text())
    assert (report["steps"], report["env_ids"]) == ([101], [2])
    assert report["arrays"][name]["non_finite"] == 1
    assert report["parameters"]["actor.0.weight"]["non_finite"] == 0


def test_nan_in_adam_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stack: dict[str, Any]) -> None:
    update, calls = PPOLearner.update, [0]

    def spoilt(self: PPOLearner, rollout: Rollout) -> dict[str, float]:
        metrics = update(self, rollout)
        calls[0] += 1
        if calls[0] == 3:
            self.exp_avg_sq[7] = math.inf  # its parameter stands still for ever, and nothing else shows it
        return metrics

    monkeypatch.setattr(PPOLearner, "update", spoilt)
    _, recorder, _ = interrupted(config(tmp_path / "run", total_timesteps=5000, **stack), match="parameters")
    assert len(recorder.rows) == 2


# Rollback


def spoil_updates(patch: pytest.MonkeyPatch, when: Callable[[int], bool]) -> list[float]:
    """Have the n-th update leave NaN in a parameter where ``when(n)``; return the learning rates of all updates."""
    update, rates = PPOLearner.update, []

    def spoilt(self: PPOLearner, rollout: Rollout) -> dict[str, float]:
        rates.append(self.learning_rate)
        metrics = update(self, rollout)
        if when(len(rates)):
            self.flat[7] = math.nan
        return metrics

    patch.setattr(PPOLearner, "update", spoilt)
    return rates


ROLLBACK: dict[str, Any] = {
    "total_timesteps": 3000, "checkpoint_every": 700, "on_nan": "rollback", "anneal_lr": False, "learning_rate": 1e-3
}  # fmt: skip


def test_rollback_goes_on_from_the_last_checkpoint_at_half_the_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stack: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    rates = spoil_updates(monkeypatch, lambda n: n == 5)
    run = training.train(config(tmp_path / "run", **ROLLBACK, **stack))
    # Checkpoints are due after the first iteration (to have one) and at 700, which the second one passes.
    saved_at = run.rows[1]["env_steps"]
    assert 700 <= saved_at < 1400
    assert rates[:5] == [1e-3] * 5
    assert rates[5:] == [5e-4] * len(rates[5:])
    assert f"rolled back to step {saved_at} at 0.5 of the learning rate, rollback 1 of 3" in caplog.text
    assert (run.result.state.rollbacks, run.result.state.lr_scale) == (1, 0.5)
    assert run.result.state.env_steps >= 3000
    on_disk = training.jsonl(tmp_path / "run" / "metrics.jsonl")
    assert [row["iteration"] for row in on_disk] == list(range(1, len(on_disk) + 1))
    assert [row["learning_rate"] for row in on_disk[:3]] == [1e-3, 1e-3, 5e-4]  # the third iteration was made again
    assert json.loads((tmp_path / "run" / "nonfinite.json").read_text())["parameters"]["actor.0.weight"]["non_finite"]
    assert all(torch.isfinite(t).all() for t in checkpoint.locate(tmp_path / "run").model.values())


def test_rollback_replays_the_environments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stack: dict[str, Any]
) -> None:
    # With NaN in the fifth update the run makes the third and the fourth twice, the second time as a run that was told
    # to go slower from there.
    with monkeypatch.context() as patch:
        spoil_updates(patch, lambda n: n == 5)
        rolled = training.train(config(tmp_path / "a", **ROLLBACK, **stack))
    with monkeypatch.context() as patch:
        advance = Trainer._advance

        def slower(self: Trainer, *args: Any) -> None:
            advance(self, *args)
            if self.state.iteration == 2:
                self.state.lr_scale = 0.5

        patch.setattr(Trainer, "_advance", slower)
        plain = training.train(config(tmp_path / "b", **ROLLBACK, **stack))
    assert rolled.trainer.learner.flat.equal(plain.trainer.learner.flat)


def test_the_fourth_rollback_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stack: dict[str, Any]) -> None:
    rates = spoil_updates(monkeypatch, lambda n: n >= 4)
    with pytest.raises(NonFiniteError, match="parameters"):
        training.train(config(tmp_path / "run", **ROLLBACK, **stack))
    assert rates[3:] == [1e-3, 5e-4, 2.5e-4, 1.25e-4]


def test_rollbacks_are_remembered_by_a_run_that_is_taken_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        spoil_updates(patch, lambda n: n == 4)
        training.train(config(tmp_path / "run", **ROLLBACK))
    longer = config(tmp_path / "run", **{**ROLLBACK, "total_timesteps": 4000, "resume": "auto"})
    rates = spoil_updates(monkeypatch, lambda n: False)
    training.train(longer)
    assert rates == [5e-4] * len(rates)


def test_a_rollback_is_not_forgotten_by_a_stop_before_the_next_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        spoil_updates(patch, lambda n: n == 5)
        restore = Trainer._restore

        def stop_too(self: Trainer, *args: Any) -> None:
            restore(self, *args)
            self.stop("a test")

        patch.setattr(Trainer, "_restore", stop_too)
        result = Trainer(config(tmp_path / "run", **ROLLBACK)).run()
        assert (result.stopped, result.state.rollbacks) == ("a test", 1)
    again = Trainer(config(tmp_path / "run", **ROLLBACK, resume="auto"))
    assert (again.state.rollbacks, again.state.lr_scale) == (1, 0.5)


def test_rollback_without_a_checkpoint_to_go_back_to_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil_updates(monkeypatch, lambda n: n == 1)
    with pytest.raises(NonFiniteError):
        training.train(config(tmp_path / "run", **ROLLBACK))
    with pytest.raises(ConfigError, match="on_nan 'rollback' needs checkpoints"):
        config(tmp_path / "run", **{**ROLLBACK, "checkpoint_every": 0})


# A disk that refuses


@pytest.mark.draws
@pytest.mark.parametrize("refused", ["checkpoint", "rows", "report", "picture"])
def test_a_disk_that_refuses_stops_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, refused: str
) -> None:
    error = OSError(28, "No space left on device")

    def full(*args: Any, **kwargs: Any) -> Any:
        raise error

    cfg = config(tmp_path / "run", total_timesteps=2000, checkpoint_every=500)
    expected = training.train(config(tmp_path / "whole", total_timesteps=2000, checkpoint_every=500))
    recorder = Recorder()

    def fill(row: dict[str, Any]) -> None:
        if row["iteration"] != 4:
            return
        if refused == "checkpoint":
            monkeypatch.setattr(checkpoint, "write_synced", full)
        elif refused == "rows":
            subject.sinks._sinks[0]._files["metrics"]._file = Full(subject.sinks._sinks[0]._files["metrics"]._file)
        elif refused == "picture":
            monkeypatch.setattr("ppo_fast.plotting.draw_learning_curve", full)
        elif refused == "report":
            monkeypatch.setattr("ppo_fast.files.write_atomic", full)
            subject.learner.flat[0] = math.nan

    class Full:
        def __init__(self, file: Any) -> None:
            self.file = file

        def write(self, data: bytes) -> int:
            raise error

        def fileno(self) -> int:
            return int(self.file.fileno())

        def close(self) -> None:
            self.file.close()

    recorder = Recorder(fill)
    subject = Trainer(cfg, [recorder])
    if refused == "checkpoint":
        with pytest.raises(LostError, match="No space left on device; the end of the run is not saved") as lost:
            subject.run()
        assert lost.value.exit_code == 3
        assert caplog.text.count("TRAINING GOES ON") == 1  # and not in every iteration
        assert len(recorder.rows) == len(expected.rows)
        saved = checkpoint.load_newest(tmp_path / "run" / "checkpoints")
        assert saved.state["iteration"] <= 4  # the one before is whole
        assert recorder.evaluations  # the result is shown, though it cannot be kept
    elif refused == "report":
        with pytest.raises(NonFiniteError):  # and no OSError in its place
            subject.run()
        assert "nonfinite.json could not be written" in caplog.text
    else:
        assert subject.run().state == expected.result.state.__class__(
            **{**vars(expected.result.state), "wall_s": subject.state.wall_s}
        )
        assert "No space left on device" in caplog.text
    if refused == "rows":
        assert "lacks its last" in caplog.text
        assert len(training.jsonl(tmp_path / "run" / "metrics.jsonl")) == 4


# Resume


class Killed(BaseException):
    pass


def kill_at(path: Path, iteration: int, **options: Any) -> tuple[Trainer, list[dict[str, Any]]]:
    """Start a run and stop it dead in the middle of ``iteration``."""
    recorder = Recorder()
    subject = Trainer(config(path, **options), [recorder])
    with pytest.MonkeyPatch.context() as patch:
        advance = Trainer._advance

        def stop(self: Trainer, *args: Any) -> None:
            if self.state.iteration == iteration - 1:
                raise Killed
            advance(self, *args)

        patch.setattr(Trainer, "_advance", stop)
        with pytest.raises(Killed):
            subject.run()
    return subject, recorder.rows


RESUMED: dict[str, Any] = {"total_timesteps": 3000, "checkpoint_every": 700}


def test_resumed_run_goes_on_with_counters_schedule_adam_and_statistics(tmp_path: Path, stack: dict[str, Any]) -> None:
    path = tmp_path / "run"
    _, before = kill_at(path, 8, **RESUMED, **stack)
    saved = checkpoint.load_newest(path / "checkpoints")
    at = saved.state["env_steps"]
    kept = [row for row in before if row["env_steps"] <= at]
    assert 0 < len(kept) < len(before)  # rows were written after the checkpoint

    recorder = Recorder()
    subject = Trainer(config(path, resume="auto", **RESUMED, **stack), [recorder])
    # Everything is as it was saved ...
    assert vars(subject.state) == {name: saved.state[name] for name in vars(subject.state)}
    assert subject.state.iteration == len(kept)
    for name, tensor in subject.learner.state().items():
        assert torch.equal(tensor, saved.train[f"learner.{name}"]), name
    assert subject.learner.state()["counters"].tolist() == [len(kept) * 2 * 4, len(kept) * 2]  # 2 epochs, 4 minibatches
    for name, array in subject.normalizer.moments.state().items():
        np.testing.assert_array_equal(array, saved.model[f"obs_normalizer.{name}"].numpy())
    for name in ("count", "mean", "m2"):
        np.testing.assert_array_equal(subject.scaler.state()[name], saved.train[f"reward_scaler.{name}"].numpy())
    for name, view in subject.model.unflatten(subject.learner.flat).items():
        assert torch.equal(view, saved.model[name]), name

    # ... and goes on from there.
    subject.run()
    rows = recorder.rows
    assert rows[0]["iteration"] == kept[-1]["iteration"] + 1
    assert rows[0]["learning_rate"] == 1e-3 * (1 - at / 3000)
    assert rows[0]["wall_s"] > kept[-1]["wall_s"]
    assert at < rows[0]["env_steps"] <= at + 256
    assert rows[-1]["env_steps"] >= 3000

    # The file holds each iteration once, in order: those up to the checkpoint, then the new ones.
    on_disk = training.jsonl(path / "metrics.jsonl")
    assert on_disk == json.loads(json.dumps(kept + rows))
    assert [row["iteration"] for row in on_disk] == list(range(1, len(on_disk) + 1))
    steps = [row["env_steps"] for row in on_disk]
    assert steps == sorted(set(steps))


def test_resumed_run_draws_new_noise_and_new_minibatch_orders(tmp_path: Path, stack: dict[str, Any]) -> None:
    path = tmp_path / "run"
    kill_at(path, 8, **RESUMED, **stack)
    subject = Trainer(config(path, resume="auto", **RESUMED, **stack))
    done = subject.state.iteration
    assert subject.state.worker_steps == 32 * (done + 1)
    subject.run()
    # The keys of noise and order, step and epoch, go on from where the checkpoint was.
    assert subject.worker.steps_done == subject.state.worker_steps == 32 * (subject.state.iteration + 1)
    assert subject.learner.epochs_done == 2 * subject.state.iteration > 2 * done


def test_resume_of_one_checkpoint_by_path_goes_on_from_that_one(tmp_path: Path) -> None:
    path = tmp_path / "run"
    first = training.train(config(path, **RESUMED))
    oldest = min(p for p in (path / "checkpoints").iterdir())
    at = checkpoint.load(oldest).state["env_steps"]
    assert at < first.result.state.env_steps
    second = training.train(config(path, resume=str(oldest), **RESUMED))
    assert second.rows[0]["env_steps"] > at
    on_disk = training.jsonl(path / "metrics.jsonl")
    assert [row["iteration"] for row in on_disk] == list(range(1, len(on_disk) + 1))
    evaluations = [row["env_steps"] for row in training.jsonl(path / "evaluations.jsonl")]
    assert evaluations == [second.result.state.env_steps]


def test_resume_auto_of_a_directory_without_a_checkpoint_is_a_fresh_start(tmp_path: Path) -> None:
    fresh = training.train(config(tmp_path / "fresh"))
    kill_at(tmp_path / "run", 3)  # rows, but no checkpoint yet
    assert len(training.jsonl(tmp_path / "run" / "metrics.jsonl")) == 2
    again = training.train(config(tmp_path / "run", resume="auto"))
    assert again.fingerprint() == fresh.fingerprint()
    assert len(training.jsonl(tmp_path / "run" / "metrics.jsonl")) == len(fresh.rows)


def test_resume_of_a_finished_run_adds_no_row_and_takes_no_step(tmp_path: Path) -> None:
    first = training.train(config(tmp_path / "run"))
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    again = training.train(config(tmp_path / "run", resume="auto"))
    assert not again.rows
    assert again.result.state.env_steps == first.result.state.env_steps
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
    assert again.result.final.returns.tolist() == first.result.final.returns.tolist()


def test_run_can_be_made_longer(tmp_path: Path) -> None:
    training.train(config(tmp_path / "run", total_timesteps=1000))
    longer = training.train(config(tmp_path / "run", total_timesteps=2000, resume="auto"))
    assert longer.rows[-1]["env_steps"] >= 2000


@pytest.mark.parametrize(
    "change", [{"env": "Ant-v5"}, {"hidden_sizes": (32,)}, {"activation": "relu"}, {"norm_obs": False}]
)
def test_resume_under_another_network_or_task_is_refused_by_name(tmp_path: Path, change: dict[str, Any]) -> None:
    training.train(config(tmp_path / "run"))
    with pytest.raises(ConfigError, match=next(iter(change))):
        Trainer(config(tmp_path / "run", resume="auto", **change))


def test_directory_of_another_run_is_not_written_over(tmp_path: Path) -> None:
    run = training.train(config(tmp_path / "run"))
    with pytest.raises(ConfigError, match="already holds a run"):
        Trainer(config(tmp_path / "run"))
    assert len(training.jsonl(tmp_path / "run" / "metrics.jsonl")) == len(run.rows)
