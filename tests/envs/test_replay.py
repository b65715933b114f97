"""Environments that are replayed stand where the first ones stood, to the bit; what cannot be replayed says so."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import Any

import numpy as np
import pytest

from ppo_fast import envs
from ppo_fast.envs import exact
from ppo_fast.envs.envpool import EnvPoolVectorEnv
from ppo_fast.envs.envpool_stream import EnvPoolStream
from ppo_fast.envs.replay import EpisodeLog, start_envs
from ppo_fast.errors import EnvError, ShapeError

N, T = 6, 16


def sync(env_id: str) -> Any:
    return envs.make(env_id, N, seed=5, num_threads=2, backend="envpool")


def stream(env_id: str) -> Any:
    made = envs.make_stream(env_id, N, seed=5, num_threads=2, batch_size=2)
    assert isinstance(made, EnvPoolStream)
    return made


def rows_of(env: Any, actions: np.ndarray) -> dict[str, np.ndarray]:
    """Step all environments once, in whatever way ``env`` steps; return the rows in the order of the environments."""
    scaled = envs.base.ActionRescaler(env.spec, N)(actions).astype(np.float64)
    env.send(np.arange(N, dtype=np.int32), scaled)
    rows: dict[str, np.ndarray] = {
        "obs": np.full((N, env.spec.obs_dim), np.nan, np.float32),
        **{name: np.full(N, np.nan) for name in ("rewards", "terminated", "truncated", "valid")},
    }
    seen = 0
    while seen < N:
        arrivals = env.recv()
        for name, array in rows.items():
            array[arrivals.env_ids] = getattr(arrivals, name)
        seen += len(arrivals.env_ids)
    return rows


def roll(env: Any, log: EpisodeLog | None, rollouts: int, rng: np.random.Generator) -> list[dict[str, np.ndarray]]:
    out = []
    for _ in range(rollouts):
        actions = rng.uniform(-1.3, 1.3, (T, N, env.spec.act_dim)).astype(np.float32)
        rows = [rows_of(env, step) for step in actions]
        if log is not None:
            log.add(actions, np.stack([row["valid"] for row in rows]).astype(bool))
        out += rows
    return out


def assert_same(first: list[dict[str, np.ndarray]], second: list[dict[str, np.ndarray]]) -> None:
    for t, (a, b) in enumerate(zip(first, second, strict=True)):
        for name in a:
            assert a[name].tobytes() == b[name].tobytes(), (t, name)


@pytest.mark.parametrize("make", [sync, stream])
@pytest.mark.parametrize("env_id", envs.ENVPOOL_TASKS)
def test_replayed_environments_go_on_to_the_bit(env_id: str, make: Callable[[str], Any]) -> None:
    # 160 steps of random actions: all but the tasks that never fall early have been reset, Reacher by its time limit.
    rng = np.random.default_rng(1)
    with closing(make(env_id)) as first:
        log = EpisodeLog(N, first.spec.act_dim)
        first.reset(np.zeros((N, first.spec.obs_dim), np.float32))
        last = roll(first, log, 10, rng)[-1]["obs"]
        after = roll(first, None, 4, np.random.default_rng(2))
    if env_id in ("Hopper-v5", "Walker2d-v5", "Humanoid-v5", "InvertedPendulum-v5", "Reacher-v5"):
        assert (log.resets > 1).all()
    taken_up = EpisodeLog(N, log.act_dim)
    taken_up.load(log.state())
    with closing(make(env_id)) as second:
        obs = np.full((N, second.spec.obs_dim), np.nan, np.float32)
        start_envs(second, taken_up, obs)
        assert obs.tobytes() == last.tobytes()
        assert_same(after, roll(second, None, 4, np.random.default_rng(2)))


def test_what_was_saved_from_one_way_of_stepping_is_replayed_in_the_other() -> None:
    with closing(sync("Hopper-v5")) as first:
        log = EpisodeLog(N, first.spec.act_dim)
        first.reset(np.zeros((N, 11), np.float32))
        last = roll(first, log, 6, np.random.default_rng(1))[-1]["obs"]
    with closing(stream("Hopper-v5")) as second:
        obs = np.zeros((N, 11), np.float32)
        second.replay(log, obs)
    assert obs.tobytes() == last.tobytes()


def test_an_episode_that_ended_with_the_last_step_is_reset_by_the_next() -> None:
    with closing(sync("InvertedPendulum-v5")) as first:
        log = EpisodeLog(N, 1)
        first.reset(np.zeros((N, 4), np.float32))
        push = np.full((1, N, 1), 1.0, np.float32)
        for _ in range(100):
            row = rows_of(first, push[0])
            log.add(push, row["valid"][None].astype(bool))
            if row["terminated"].any():
                break
        ended = row["terminated"].astype(bool)
        following = rows_of(first, push[0])
        assert not following["valid"][ended].any()
    with closing(sync("InvertedPendulum-v5")) as second:
        second.replay(log, np.zeros((N, 4), np.float32))
        assert_same([following], [rows_of(second, push[0])])


# The log


def test_log_by_hand() -> None:
    # Two environments, five steps. Environment 1 is reset at step 2: its episode has the actions of steps 3 and 4.
    log = EpisodeLog(2, 1)
    actions = np.array([[[0], [10]], [[1], [11]], [[2], [12]], [[3], [13]], [[4], [14]]], np.float32)
    valid = np.ones((5, 2), bool)
    valid[2, 1] = False
    log.add(actions[:2], valid[:2])
    log.add(actions[2:], valid[2:])
    state = log.state()
    assert state["resets"].tolist() == [1, 2]
    assert state["lengths"].tolist() == [5, 2]
    assert state["actions"].ravel().tolist() == [0, 1, 2, 3, 4, 13, 14]
    # A reset in the last row: no action has been taken since.
    log.add(np.zeros((1, 2, 1), np.float32), np.array([[False, True]]))
    assert log.state()["resets"].tolist() == [2, 2]
    assert log.state()["actions"].ravel().tolist() == [13, 14, 0]


def test_log_of_nothing_is_one_reset() -> None:
    state = EpisodeLog(3, 2).state()
    assert (state["resets"].tolist(), state["lengths"].tolist(), state["actions"].shape) == ([1] * 3, [0] * 3, (0, 2))


def test_log_goes_on_after_it_was_taken_up() -> None:
    rng = np.random.default_rng(3)
    actions = rng.normal(size=(40, 5, 4, 2)).astype(np.float32)
    valid = rng.random((40, 5, 4)) > 0.1
    whole, broken = EpisodeLog(4, 2), EpisodeLog(4, 2)
    for a, v in zip(actions, valid, strict=True):
        whole.add(a, v)
        state = broken.state()
        broken = EpisodeLog(4, 2)
        broken.load(state)
        broken.add(a, v)
        for name, array in whole.state().items():
            np.testing.assert_array_equal(array, broken.state()[name])


def test_log_keeps_no_rollout_that_no_running_episode_needs() -> None:
    log = EpisodeLog(2, 1)
    for _ in range(1000):
        valid = np.ones((4, 2), bool)
        valid[3] = False
        log.add(np.zeros((4, 2, 1), np.float32), valid)
    assert not log._rollouts
    assert log.state()["resets"].tolist() == [1001, 1001]


def test_log_copies_what_it_is_given() -> None:
    log, actions = EpisodeLog(1, 1), np.ones((2, 1, 1), np.float32)
    log.add(actions, np.ones((2, 1), bool))
    actions[:] = 7
    assert log.state()["actions"].ravel().tolist() == [1, 1]


@pytest.mark.parametrize(
    "change",
    [
        {"resets": np.zeros(2, np.int64)},
        {"resets": np.ones(3, np.int64)},
        {"resets": np.ones(2)},
        {"lengths": np.array([3, -1])},
        {"lengths": np.array([1, 2])},
        {"actions": np.zeros((2, 2), np.float32)},
        {"actions": np.zeros((2, 1))},
        {"actions": np.array([[np.nan], [0]], np.float32)},
    ],
    ids=["no reset", "other N", "float resets", "negative", "sum", "other A", "float64", "NaN"],
)
def test_log_that_contradicts_itself_is_refused(change: dict[str, np.ndarray]) -> None:
    state = {"resets": np.ones(2, np.int64), "lengths": np.array([1, 1]), "actions": np.zeros((2, 1), np.float32)}
    EpisodeLog(2, 1).load(state)
    with pytest.raises(ShapeError):
        EpisodeLog(2, 1).load({**state, **change})


def test_rollout_of_another_shape_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"\(T, 2, 1\)"):
        EpisodeLog(2, 1).add(np.zeros((3, 3, 1), np.float32), np.ones((3, 3), bool))


# What cannot be replayed


def test_replay_comes_first_or_not_at_all() -> None:
    with closing(sync("Hopper-v5")) as env:
        obs = np.zeros((N, 11), np.float32)
        env.reset(obs)
        with pytest.raises(EnvError, match=r"replay\(\) refused"):
            env.replay(EpisodeLog(N, 3), obs)


def test_log_of_other_environments_is_refused() -> None:
    with closing(sync("Hopper-v5")) as env:
        with pytest.raises(ShapeError, match="6 environments x 3, got 7 x 3"):
            env.replay(EpisodeLog(7, 3), np.zeros((N, 11), np.float32))
        with pytest.raises(ShapeError, match="obs"):
            env.replay(EpisodeLog(N, 3), np.zeros((N, 12), np.float32))


def test_gymnasium_is_not_replayed() -> None:
    spec = envs.spec("CartPole-v1")
    assert "Gymnasium's environments cannot be replayed" in exact.why_not_exact(spec, 4)
    with closing(envs.make("CartPole-v1", 2, seed=1)) as env, pytest.raises(EnvError, match="cannot be replayed"):
        start_envs(env, EpisodeLog(2, 1), np.zeros((2, 4), np.float32))


def test_a_log_without_bound_is_not_kept() -> None:
    spec = envs.spec("Humanoid-v5")
    assert exact.why_not_exact(spec, 64) == ""
    assert "MiB" in exact.why_not_exact(spec, 65_536)


@pytest.mark.parametrize("env_id", envs.ENVPOOL_TASKS)
def test_every_task_of_envpool_passes_the_experiment(env_id: str) -> None:
    assert exact.replays_exactly(env_id)


@pytest.mark.parametrize("fault", ["a reset too few", "an action changed"])
def test_experiment_finds_a_simulator_whose_replay_differs(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    reset, step, calls = EnvPoolVectorEnv._replay_reset, EnvPoolVectorEnv._replay_step, [0]

    def count(self: Any, *args: Any) -> None:
        calls[0] += 1
        if calls[0] % 4:  # 1, 2: the resets of the first environments; 3, 4: those of the replay
            reset(self, *args)

    def change(self: Any, ids: Any, actions: np.ndarray, obs: Any) -> None:
        step(self, ids, actions * 0.99, obs)

    if fault == "a reset too few":
        monkeypatch.setattr(EnvPoolVectorEnv, "_replay_reset", count)
    else:
        monkeypatch.setattr(EnvPoolVectorEnv, "_replay_step", change)
    assert not exact.replays_exactly("HalfCheetah-v5")
    assert "did not give the same" in exact.why_not_exact(envs.spec("HalfCheetah-v5"), 4)
