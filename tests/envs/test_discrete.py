"""Discrete action spaces behind the door: an action is the index of what is chosen, and nothing else passes.

Axes: T steps · N environments · D observation · K actions to choose from.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from ppo_fast import envs
from ppo_fast.envs.base import VectorEnv
from ppo_fast.errors import NonFiniteError, ShapeError
from ppo_fast.kernels import env_seeds

N = 3


class Names(gymnasium.Env[Any, Any]):
    """Writes down the actions that reach it, of the last environment made; K = 3, called -1, 0, 1."""

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 (Gymnasium's own declaration)
    received: list[Any]

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.action_space = spaces.Discrete(3, start=-1)
        Names.received = self.actions = []

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> Any:
        self.actions.append(action)
        return np.zeros(2, np.float32), float(action), False, False, {}


@pytest.fixture
def names() -> Iterator[str]:
    gymnasium.register("Names-v0", Names)
    yield "Names-v0"
    del gymnasium.registry["Names-v0"]


def answers(env: VectorEnv) -> tuple[np.ndarray, ...]:
    flags = (np.zeros(env.num_envs, np.bool_) for _ in range(3))
    return np.zeros((env.num_envs, env.spec.obs_dim), np.float32), np.zeros(env.num_envs, np.float32), *flags


def ready(env_id: str, num_envs: int = N, **options: Any) -> VectorEnv:
    env = envs.make(env_id, num_envs, seed=1, **options)
    env.reset(np.zeros((num_envs, env.spec.obs_dim), np.float32))
    return env


def test_spec_says_how_many_and_what_the_first_is_called(names: str) -> None:
    spec = envs.spec("CartPole-v1")
    assert (spec.num_actions, spec.first_action, spec.act_dim, spec.obs_dim) == (2, 0, 1, 4)
    assert (spec.action_low.tolist(), spec.action_high.tolist()) == ([-np.inf], [np.inf])
    assert (spec.backend, spec.max_episode_steps) == ("gymnasium", 500)
    spec = envs.spec(names)
    assert (spec.num_actions, spec.first_action) == (3, -1)
    assert envs.spec("Hopper-v5").num_actions == 0


def test_the_environment_is_given_the_action_by_its_own_name(names: str) -> None:
    env = ready(names, 1)
    out = answers(env)
    for index in (0, 2, 1):
        env.step(np.array([[index]], np.float32), *out)
        assert out[1][0] == index - 1
    env.close()
    assert Names.received == [-1, 1, 0]
    assert all(isinstance(action, np.integer) for action in Names.received)


def test_trajectories_are_those_of_gymnasium_itself() -> None:
    actions = np.random.default_rng(0).integers(2, size=(120, N))
    env = envs.make("CartPole-v1", N, seed=5)
    out = answers(env)
    env.reset(out[0])
    theirs = gymnasium.make_vec("CartPole-v1", N, vectorization_mode="sync")  # next-step autoreset is its default
    first, _ = theirs.reset(seed=env_seeds(5, 0, N).tolist())
    np.testing.assert_array_equal(out[0], first)
    ended = 0
    for action in actions:
        env.step(action[:, None].astype(np.float32), *out)
        obs, rewards, terminated, truncated, _ = theirs.step(action)
        for ours, expected in zip(out, (obs, rewards, terminated, truncated), strict=False):
            np.testing.assert_array_equal(ours, expected.astype(ours.dtype))
        ended += int(terminated.sum())
    assert ended > 5
    env.close()
    theirs.close()


@pytest.mark.parametrize("bad", [0.5, -1.0, 3.0, 2.0**24])
def test_what_is_no_index_is_refused_and_nothing_is_stepped(names: str, bad: float) -> None:
    env = ready(names)
    out = answers(env)
    actions = np.array([[0.0], [2.0], [bad]], np.float32)
    said = rf"Names-v0 \(gymnasium\): actions must be indices 0 \.\.\. 2, got {bad!r} of environment 2; nothing was"
    with pytest.raises(ShapeError, match=said):
        env.step(actions, *out)
    with pytest.raises(ShapeError, match=said):
        env.send(np.arange(N, dtype=np.int32), actions.astype(np.float64))  # type: ignore[attr-defined]
    assert not Names.received
    actions[2] = 1.0  # the environments have not been touched, so that one may go on
    env.step(actions, *out)
    assert out[1].tolist() == [-1.0, 1.0, 0.0]
    env.close()


def test_nan_is_refused_as_everywhere(names: str) -> None:
    env = ready(names)
    with pytest.raises(NonFiniteError, match=r"actions of environments \[1\] are not finite"):
        env.step(np.array([[0.0], [np.nan], [1.0]], np.float32), *answers(env))
    env.close()
