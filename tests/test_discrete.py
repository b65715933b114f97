"""Discrete actions from the command line to the film: training, evaluation, checkpoints, resume, the same run again.

Axes: N environments · D observation · K actions to choose from · P parameters.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
import training
from commands import call
from fakes import CountingEnv
from training import Run, config, one_thread  # noqa: F401

from ppo_fast import checkpoint, play
from ppo_fast.checkpoint import Checkpoint
from ppo_fast.envs.base import EnvSpec
from ppo_fast.errors import ConfigError, NonFiniteError
from ppo_fast.evaluation import Policy, evaluate, load_policy, policy_from, spec_from_json, spec_to_json
from ppo_fast.models import ActorCritic
from ppo_fast.normalizers import ObsNormalizer
from ppo_fast.trainer import Trainer


def run(path: Path, **options: Any) -> Run:
    defaults: dict[str, Any] = {"env": "CartPole-v1", "shared_trunk": True, "ent_coef": 0.01}
    return training.train(config(path, **{**defaults, **options}))


# It learns


LEARNING: dict[str, Any] = {
    "num_envs": 8, "num_steps": 128, "minibatch_size": 128, "update_epochs": 4, "learning_rate": 1e-3,
    "total_timesteps": 50_000, "eval_episodes": 20,
}  # fmt: skip


@pytest.mark.parametrize("shared_trunk", [False, True])
def test_balances_the_pole(tmp_path: Path, shared_trunk: bool) -> None:
    # A random policy holds it for about 22 steps, 500 is the most there is. Seeds 1 to 6 reached 500 each with a shared
    # trunk, and 346 to 500, mean 470, with separate networks.
    assert run(tmp_path / "run", shared_trunk=shared_trunk, **LEARNING).result.final.mean >= 250


# The same run again


@pytest.fixture(scope="module")
def baseline(stack: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(tmp_path_factory.mktemp("baseline") / "run", **stack)


def test_same_seed_gives_the_same_run_and_another_seed_another(
    baseline: Run, stack: dict[str, Any], tmp_path: Path
) -> None:
    again, other = run(tmp_path / "again", **stack), run(tmp_path / "other", seed=2, **stack)
    assert len(again.rows) >= 4
    assert again.fingerprint() == baseline.fingerprint()
    assert again.result.final.returns.tolist() == baseline.result.final.returns.tolist()
    assert other.fingerprint()["parameters"] != baseline.fingerprint()["parameters"]


def test_kernel_backend_does_not_matter(baseline: Run, stack: dict[str, Any], tmp_path: Path, backend: str) -> None:
    assert run(tmp_path / "run", kernels=backend, **stack).fingerprint() == baseline.fingerprint()


def test_entropy_begins_at_that_of_an_even_choice_and_falls(baseline: Run) -> None:
    # The head's rows are orthogonal with norm 0.01 and |h| <= 8: the logits differ by d <= 0.12, so that H is within
    # d² / 8 = 0.002 of ln 2 before the first update; its eight steps may take as much again, several times.
    assert baseline.rows[0]["entropy"] == pytest.approx(np.log(2), abs=0.01)
    assert baseline.rows[-1]["entropy"] < baseline.rows[0]["entropy"]


# What is left behind


def test_policy_acts_by_the_environment_s_own_names(baseline: Run) -> None:
    policy = load_policy(baseline.result.run_dir)
    env = gymnasium.make("CartPole-v1")  # with Gymnasium's checks of what it is given
    obs, _ = env.reset(seed=1)
    for _ in range(5):
        action = policy(obs)
        assert env.action_space.contains(action)
        obs, *_ = env.step(action)
    env.close()
    rows = np.stack([obs, -obs])
    assert policy(rows).shape == (2,)
    assert policy(rows).dtype == np.int64
    assert policy(rows)[0] == policy(obs)


def test_policy_takes_the_most_likely_action_and_counts_from_the_first_one_s_name() -> None:
    model = ActorCritic(2, 1, (2,), "relu", num_actions=3)
    flat = torch.zeros(model.num_params)
    views = model.unflatten(flat)
    views["actor.0.weight"][:] = torch.eye(2)
    views["actor.1.weight"][1, 0], views["actor.1.weight"][2, 1] = 1.0, 1.0  # logits: 0, x, y
    spec = EnvSpec("Any-v0", "fake", 2, 1, np.array([-np.inf]), np.array([np.inf]), None, 3, first_action=-1)
    policy = Policy(model, flat, ObsNormalizer(2, clip=10.0, enabled=False), spec)
    obs = np.array([[0.0, 0.0], [2.0, 1.0], [1.0, 2.0]])
    assert policy.mode(obs).tolist() == [[0.0], [1.0], [2.0]]
    assert policy(obs).tolist() == [-1, 0, 1]
    assert policy(obs[2]) == 1
    views["actor.1.bias"][1] = np.nan
    with pytest.raises(NonFiniteError, match="Any-v0: the policy's logits are not finite"):
        Policy(model, flat, ObsNormalizer(2, clip=10.0, enabled=False), spec)(obs)


def test_play_evaluates_it(baseline: Run, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = call(play.main, capsys, str(baseline.result.run_dir), "--episodes", "3", "--seed", "7")
    expected = evaluate(load_policy(baseline.result.run_dir), "CartPole-v1", episodes=3, seed=7)
    assert outcome.code == 0
    assert f"return {expected.mean:.1f} +-" in outcome.out


def test_spec_survives_json() -> None:
    spec = EnvSpec("Any-v0", "fake", 2, 1, np.array([-np.inf]), np.array([np.inf]), 9, 3, first_action=-1)
    back = spec_from_json(spec_to_json(spec))
    assert spec_to_json(back) == spec_to_json(spec)
    assert (back.num_actions, back.first_action, back.max_episode_steps) == (3, -1, 9)


# Going on


def test_resume_goes_on_from_the_same_parameters(stack: dict[str, Any], tmp_path: Path) -> None:
    first = run(tmp_path / "run", **stack)
    options: dict[str, Any] = {"env": "CartPole-v1", "shared_trunk": True, "ent_coef": 0.01, **stack}
    cfg = config(tmp_path / "run", resume="auto", total_timesteps=2400, **options)
    resumed = Trainer(cfg)
    assert torch.equal(resumed.learner.flat, first.trainer.learner.flat)
    assert resumed.state == replace(first.result.state, env_purpose=resumed.state.env_purpose)
    assert resumed.state.env_purpose > 0  # Gymnasium's environments start new episodes
    del resumed  # it holds the run directory
    second = training.train(cfg)
    assert second.rows[0]["iteration"] == first.rows[-1]["iteration"] + 1
    assert second.result.state.env_steps >= 2400
    assert not torch.equal(second.trainer.learner.flat, first.trainer.learner.flat)


def test_resume_cannot_change_the_trunk(baseline: Run) -> None:
    cfg = config(baseline.result.run_dir, env="CartPole-v1", resume="auto", total_timesteps=2400)
    with pytest.raises(ConfigError, match=r"shared_trunk was True in .*, and cannot become False on resume"):
        Trainer(cfg)


def older(saved: Checkpoint, directory: Path) -> Path:
    """Write ``saved`` as a version that knew neither shared trunks nor discrete actions did."""
    config = {name: value for name, value in saved.state["config"].items() if name != "shared_trunk"}
    spec = {k: v for k, v in saved.state["env_spec"].items() if k not in ("num_actions", "first_action")}
    state = {**saved.state, "config": config, "env_spec": spec}
    assert len(config) == len(saved.state["config"]) - 1
    assert len(spec) == len(saved.state["env_spec"]) - 2
    return checkpoint.save(directory, state["env_steps"], model=saved.model, train=saved.train, state=state, keep=3)


def test_checkpoints_from_before_are_played_and_resumed(tmp_path: Path) -> None:
    now = training.train(config(tmp_path / "now"))  # Hopper: separate networks, continuous actions
    older(checkpoint.locate(now.result.run_dir), tmp_path / "then" / "checkpoints")
    policy, expected = policy_from(checkpoint.locate(tmp_path / "then")), load_policy(now.result.run_dir)
    obs = np.random.default_rng(0).normal(size=(5, 11))
    np.testing.assert_array_equal(policy(obs), expected(obs))
    (tmp_path / "then" / "metrics.jsonl").write_text("")
    resumed = training.train(config(tmp_path / "then", resume="auto", total_timesteps=2000))
    assert resumed.result.state.env_steps >= 2000


# What is refused


def test_initial_sigma_is_refused_where_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="log_std_init belongs to continuous actions, and CartPole-v1 has 2 discrete"):
        Trainer(config(tmp_path / "run", env="CartPole-v1", log_std_init=-1.0))


def test_a_policy_that_became_nan_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stack: dict[str, Any]
) -> None:
    def make(num_envs: int) -> CountingEnv:
        return CountingEnv(num_envs, act_dim=1, action_range=(-np.inf, np.inf), num_actions=3)

    made = training.use_fake_envs(monkeypatch, make)
    trainer = Trainer(config(tmp_path / "run", env="Any-v0", **stack))
    trainer.model.unflatten(trainer.learner.flat)["actor.2.bias"][1] = np.nan
    with pytest.raises(NonFiniteError, match="action"):
        trainer.run()
    assert not any(env.received for env in made)  # type: ignore[attr-defined]
