"""Several discrete actions at once: one categorical policy over all combinations, and the environment gets each choice.

Axes: N environments · C choices at once · K combinations.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import training
from commands import call
from gymnasium import spaces
from training import config, one_thread  # noqa: F401

from ppo_fast import envs, graph, verify
from ppo_fast.envs.as_gymnasium import GymnasiumEnvs
from ppo_fast.errors import ShapeError
from ppo_fast.evaluation import evaluate, load_policy, spec_from_json, spec_to_json
from ppo_fast.kernels import env_seeds
from ppo_fast.lockstep import learners
from ppo_fast.reference import __main__ as command
from ppo_fast.reference.ppo import PPO, Settings

CHOICES = (2, 3)
LENGTH = 10


class Match(gymnasium.Env[Any, Any]):
    """Show two numbers, which tell which of 2 and which of 3 to choose; 1 for each right."""

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 (Gymnasium's own declaration)
    received: list[Any] = []  # noqa: RUF012 (of all environments; emptied by the fixture)

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.action_space = spaces.MultiDiscrete(CHOICES)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return self._draw(), {}

    def step(self, action: Any) -> Any:
        Match.received.append(action)
        reward = float(np.sum(action == self.wanted))
        self.steps += 1
        return self._draw(), reward, False, self.steps == LENGTH, {}

    def _draw(self) -> Any:
        self.wanted = self.np_random.integers(CHOICES)
        return (self.wanted - np.array([0.5, 1.0])).astype(np.float32)


@pytest.fixture
def match() -> Iterator[str]:
    gymnasium.register("Match-v0", Match)
    Match.received = []
    yield "Match-v0"
    del gymnasium.registry["Match-v0"]


def test_the_environment_is_given_a_choice_of_each(match: str) -> None:
    env = envs.make(match, 1, seed=1)
    assert (env.spec.num_actions, env.spec.act_dim, env.spec.choices) == (6, 1, CHOICES)
    obs, rewards = np.zeros((1, 2), np.float32), np.zeros(1, np.float32)
    flags = [np.zeros(1, np.bool_) for _ in range(3)]
    env.reset(obs)
    for index in range(6):
        env.step(np.array([[index]], np.float32), obs, rewards, *flags)
    with pytest.raises(ShapeError, match=r"actions must be indices 0 \.\.\. 5, got 6\.0 of environment 0"):
        env.step(np.array([[6]], np.float32), obs, rewards, *flags)
    env.close()
    assert [tuple(action) for action in Match.received] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]


def test_indices_and_choices_are_each_other_s_inverse(match: str) -> None:
    spec = envs.spec(match)
    indices = np.arange(6)
    named = spec.name_actions(indices)
    assert named.shape == (6, 2)
    assert all(spaces.MultiDiscrete(CHOICES).contains(row) for row in named)
    np.testing.assert_array_equal(spec.index_actions(named), indices)
    np.testing.assert_array_equal(spec.index_actions(np.array([[2, 0], [0, -1], [0, 3], [1, 2]])), [-1, -1, -1, 5])
    np.testing.assert_array_equal(spec.index_actions(np.array([[0.5, 0], [1, np.nan], [1.0, 2.0]])), [-1, -1, 5])


def test_the_adapter_is_gymnasium_s_own_vector_environment(match: str) -> None:
    ours = GymnasiumEnvs(match, 3, seed=5)
    theirs = gymnasium.make_vec(match, 3, vectorization_mode="sync")
    assert (ours.action_space, ours.single_action_space) == (theirs.action_space, theirs.single_action_space)
    theirs.reset(seed=env_seeds(5, 0, 3).tolist())
    ours.reset()
    for _ in range(2 * LENGTH):
        actions = ours.action_space.sample()
        for got, expected in zip(ours.step(actions)[:4], theirs.step(actions)[:4], strict=True):
            np.testing.assert_array_equal(got, expected)
    with pytest.raises(ShapeError, match="actions must be indices"):
        ours.step(np.array([[0, 0], [0, 3], [0, 0]]))
    ours.close()
    theirs.close()


LEARNING: dict[str, Any] = {"num_envs": 8, "num_steps": 32, "minibatch_size": 64, "update_epochs": 4}


@pytest.mark.parametrize("learner", ["torch", "native"])
def test_both_learners_learn_every_choice(match: str, tmp_path: Path, learner: str, request: Any) -> None:
    # By chance it is 10 (1/2 + 1/3) = 8.3, at most 20; seeds 1 to 5 reached 20 with either learner.
    if learner == "native":
        request.getfixturevalue("native_core")
    options = {**LEARNING, "learning_rate": 3e-3, "total_timesteps": 8000, "eval_episodes": 20, "learner": learner,
               "update": "eager" if learner == "torch" else "auto"}  # fmt: skip
    run = training.train(config(tmp_path / "run", env=match, **options))
    assert run.result.final.mean >= 18
    policy = load_policy(tmp_path / "run")
    assert policy.spec.choices == CHOICES
    stats = evaluate(policy, match, episodes=20, seed=1)
    np.testing.assert_array_equal(stats.returns, run.result.final.returns)
    one, several = policy(np.zeros(2, np.float32)), policy(np.zeros((4, 2), np.float32))
    assert (one.shape, several.shape, one.dtype) == ((2,), (4, 2), np.int64)

    # The exported file chooses the same.
    obs = np.random.default_rng(1).normal(size=(500, 2)).astype(np.float32)
    _, run_file = graph.runtime(graph.build(policy).SerializeToString())
    given = run_file(obs)
    assert (given.dtype, given.shape) == (np.int64, (500, 2))
    assert (given == policy(obs)).all(axis=1).mean() > 0.99
    assert len({tuple(row) for row in given}) == 6
    worst, allowed = graph.worst_difference(policy, run_file)
    assert worst <= allowed
    policy.flat.copy_(-policy.flat)
    assert graph.worst_difference(policy, run_file)[0] > allowed
    broken = np.full((1, 2), np.nan, np.float32)
    np.testing.assert_array_equal(run_file(broken), [[-1, -1]])


def test_what_a_checkpoint_says_of_it_comes_back_and_may_be_missing(match: str) -> None:
    spec = envs.spec(match)
    values = spec_to_json(spec)
    assert values["choices"] == [2, 3]
    assert spec_from_json(values).choices == CHOICES
    del values["choices"]
    assert spec_from_json(values).choices == ()


def test_the_reference_and_the_fast_path_agree(
    match: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = ["--iterations=1", "--num-envs=4", "--num-steps=16", "--minibatch-size=16"]
    monkeypatch.delitem(learners.LEARNERS, "torch compile")  # a minute
    done = call(verify.main, capsys, f"--env={match}", *small)
    assert (done.code, done.err) == (0, ""), done.out


def test_the_reference_learns_it(match: str) -> None:
    command.check_env(match)
    options: dict[str, Any] = {**LEARNING, "learning_rate": 3e-3, "hidden_sizes": (32,)}
    ppo = PPO(Settings(env=match, total_timesteps=5000, **options))
    ppo.run(lambda row: None)
    assert ppo.evaluate().mean() >= 16
