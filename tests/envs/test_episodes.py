"""Episode returns and lengths, against a loop that follows one environment at a time."""

from __future__ import annotations

import fakes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from ppo_fast.envs.episodes import EpisodeTracker
from ppo_fast.errors import ShapeError


def rollout(
    env: fakes.FakeVectorEnv, num_steps: int
) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.bool_]]:
    """Step ``env``, reset before, and return (rewards, done, valid), each (T, N)."""
    n, spec = env.num_envs, env.spec
    obs, action = np.empty((n, spec.obs_dim), np.float32), np.zeros((n, spec.act_dim), np.float32)
    rewards = np.empty((num_steps, n), np.float32)
    terminated, truncated, valid = (np.empty((num_steps, n), np.bool_) for _ in range(3))
    for t in range(num_steps):
        env.step(action, obs, rewards[t], terminated[t], truncated[t], valid[t])
    return rewards, terminated | truncated, valid


def counting(**options: object) -> fakes.CountingEnv:
    env = fakes.CountingEnv(4, **options)  # type: ignore[arg-type]
    env.reset(np.empty((4, env.spec.obs_dim), np.float32))
    return env


def test_by_hand() -> None:
    rewards = np.array([[1, 10], [2, 20], [77, 30], [4, 40]], np.float32)
    done = np.array([[0, 0], [1, 0], [0, 1], [0, 0]], np.bool_)
    valid = np.array([[1, 1], [1, 1], [0, 1], [1, 0]], np.bool_)
    tracker = EpisodeTracker(2)
    returns, lengths = tracker.update(rewards, done, valid)
    # env 0: 1 + 2, then a reset row (its 77 counts for nothing), then 4 goes on; env 1: 10 + 20 + 30, then a reset row
    assert returns.tolist() == [3.0, 60.0]
    assert lengths.tolist() == [2, 3]
    assert returns.dtype == np.float64
    assert lengths.dtype == np.int64
    returns, lengths = tracker.update(
        np.array([[5, 6]], np.float32), np.array([[1, 1]], bool), np.array([[1, 1]], bool)
    )
    assert returns.tolist() == [9.0, 6.0]
    assert lengths.tolist() == [2, 1]


def test_counting_env_has_the_returns_it_says() -> None:
    env = counting()
    tracker = EpisodeTracker(4)
    for num_steps in (1, 6, 30, 2, 1, 1, 50):
        rewards, done, valid = rollout(env, num_steps)
        returns, lengths = tracker.update(rewards, done, valid)
        ended = np.argwhere(done)[:, 1]  # argwhere runs through (t, env)
        assert returns.tolist() == [env.episode_return(n) for n in ended]
        assert lengths.tolist() == [env.lengths[n] for n in ended]


@given(st.integers(1, 9), st.integers(1, 5), st.integers(0, 2**32 - 1), st.floats(0, 1), st.floats(0, 1))
def test_against_a_loop_and_wherever_it_is_cut(t: int, n: int, seed: int, ends: float, resets: float) -> None:
    rng = np.random.default_rng(seed)
    rewards = rng.integers(-9, 9, (t, n)).astype(np.float32)  # small integers: every order of summing is exact
    done, valid = rng.random((t, n)) < ends, rng.random((t, n)) >= resets
    running, steps = [0.0] * n, [0] * n
    expected = []
    for i in range(t):
        for k in range(n):
            if not valid[i, k]:
                continue
            running[k] += float(rewards[i, k])
            steps[k] += 1
            if done[i, k]:
                expected.append((running[k], steps[k]))
                running[k], steps[k] = 0.0, 0

    whole = EpisodeTracker(n)
    assert list(zip(*map(np.ndarray.tolist, whole.update(rewards, done, valid)), strict=True)) == expected
    cut = int(rng.integers(0, t + 1))
    first, second = EpisodeTracker(n), EpisodeTracker(n)
    parts = list(zip(*first.update(rewards[:cut], done[:cut], valid[:cut]), strict=True))
    second.load_state_dict(first.state_dict())
    parts += zip(*second.update(rewards[cut:], done[cut:], valid[cut:]), strict=True)
    assert parts == expected
    for tracker in (whole, second):
        assert tracker.state_dict()["returns"].tolist() == running
        assert tracker.state_dict()["lengths"].tolist() == steps


def test_nan_stays_in_its_episode_and_off_reset_rows() -> None:
    env = counting(nan_reward_at=(3, 0))
    rewards, done, valid = rollout(env, 12)
    rewards[~valid] = np.nan
    returns, _ = EpisodeTracker(4).update(rewards, done, valid)
    ended = np.argwhere(done)[:, 1].tolist()
    assert np.isnan(returns[ended.index(0)])
    assert np.isnan(returns).sum() == 1


def test_inputs_and_state_are_not_shared() -> None:
    env = counting()
    given_arrays = rollout(env, 9)
    copies = [array.copy() for array in given_arrays]
    tracker = EpisodeTracker(4)
    tracker.update(*given_arrays)
    for array, copy in zip(given_arrays, copies, strict=True):
        np.testing.assert_array_equal(array, copy)
    state = tracker.state_dict()
    state["returns"][:] = -1.0
    assert (tracker.state_dict()["returns"] != -1.0).all()


def test_shapes_are_checked() -> None:
    tracker = EpisodeTracker(3)
    rewards, flags = np.zeros((5, 3), np.float32), np.zeros((5, 3), np.bool_)
    for bad in (
        (rewards[0], flags[0], flags[0]),
        (rewards, flags[:4], flags),
        (rewards, flags, flags[:, :2]),
        (np.zeros((5, 2), np.float32), flags[:, :2], flags[:, :2]),
    ):
        with pytest.raises(ShapeError, match=r"must all be \(T, 3\)"):
            tracker.update(*bad)
    with pytest.raises(ShapeError, match=r"returns must be \(3,\) float64, finite, got \(2,\)"):
        tracker.load_state_dict(EpisodeTracker(2).state_dict())
