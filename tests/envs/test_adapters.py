"""Our environments in the hands of others: Gymnasium's vector environments and wrappers, and Stable-Baselines3."""

from __future__ import annotations

import re
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecEnv, VecMonitor
from training import one_thread  # noqa: F401

from ppo_fast import envs
from ppo_fast.envs.as_gymnasium import GymnasiumEnvs
from ppo_fast.envs.sb3 import make_sb3
from ppo_fast.errors import BackendError, EnvError, ShapeError
from ppo_fast.kernels import env_seeds

N = 3


# Gymnasium


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Hopper-v5"])
def test_is_gymnasium_s_own_vector_environment_step_by_step(env_id: str) -> None:
    ours = GymnasiumEnvs(env_id, N, seed=5, backend="gymnasium")
    theirs = gymnasium.make_vec(env_id, N, vectorization_mode="sync")
    assert ours.metadata["autoreset_mode"] == theirs.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP
    assert (ours.action_space, ours.single_action_space) == (theirs.action_space, theirs.single_action_space)
    assert ours.observation_space.shape == theirs.observation_space.shape
    for seed in (5, 6):  # the second seeds it anew
        first, info = ours.reset(seed=seed)
        assert info == {}
        np.testing.assert_array_equal(first, theirs.reset(seed=env_seeds(seed, 0, N).tolist())[0].astype(np.float32))
        ours.action_space.seed(1)
        ended = 0
        for _ in range(60):
            actions = ours.action_space.sample()
            got, expected = ours.step(actions), theirs.step(actions)
            assert ours.observation_space.contains(got[0])
            for one, other, dtype in zip(got[:4], expected[:4], (np.float32, np.float32, bool, bool), strict=True):
                np.testing.assert_array_equal(one.astype(dtype), np.asarray(other).astype(dtype))
            ended += int((got[2] | got[3]).sum())
        assert ended > 2
    ours.close()
    ours.close()
    theirs.close()


@pytest.mark.parametrize(("env_id", "shape"), [("Hopper-v5", (N, 3)), ("CartPole-v1", (N,))])
def test_actions_of_another_shape_are_not_dealt_out_somehow(env_id: str, shape: tuple[int, ...]) -> None:
    ours = GymnasiumEnvs(env_id, N, seed=5, backend="gymnasium")
    ours.reset()
    for wrong in (np.zeros(3 * N), np.zeros((1, *shape)), np.zeros((N, 3, 1))):
        with pytest.raises(ShapeError, match=re.escape(f"actions must have the shape {shape}, got {wrong.shape}")):
            ours.step(wrong)
    if env_id == "CartPole-v1":
        with pytest.raises(ShapeError, match="actions must be indices"):
            ours.step(np.array([0, 0.7, 1]))
    ours.close()


def test_gymnasium_s_wrappers_take_it() -> None:
    env = GymnasiumEnvs("InvertedPendulum-v5", N, seed=1, num_threads=1)
    wrapped = gymnasium.wrappers.vector.RecordEpisodeStatistics(env)
    wrapped.reset()
    episodes: list[tuple[float, int]] = []
    for _ in range(80):
        info = wrapped.step(wrapped.action_space.sample())[-1]
        if "episode" in info:
            ended = info["_episode"]
            episodes += zip(info["episode"]["r"][ended].tolist(), info["episode"]["l"][ended].tolist(), strict=True)
    assert len(episodes) > 2 * N
    assert all(total == length - 1 for total, length in episodes)  # 1 a step, but for the last, which falls
    wrapped.close()


def test_what_reset_does_not_take_is_refused() -> None:
    made = GymnasiumEnvs("InvertedPendulum-v5", 2, seed=1, num_threads=1)
    for wrong in ({"seed": [1, 2]}, {"options": {"low": 1}}):
        with pytest.raises(EnvError, match="reset takes one integer as seed and no options"):
            made.reset(**wrong)  # type: ignore[arg-type]
    made.close()


# Stable-Baselines3


def numbered(env: Any, actions: np.ndarray) -> list[Any]:
    """Return what our own next-step environments answer to ``actions`` (T, N, A) in policy units."""
    out = (
        np.zeros((N, env.spec.obs_dim), np.float32),
        np.zeros(N, np.float32),
        *(np.zeros(N, np.bool_) for _ in range(3)),
    )
    env.reset(out[0])
    rows: list[list[Any]] = [[("first", out[0][i].tolist())] for i in range(N)]
    for action in actions:
        env.step(action, *out)
        for i in range(N):
            kind = "row" if out[4][i] else "first"
            rows[i].append((kind, out[0][i].tolist(), float(out[1][i]), bool(out[2][i]), bool(out[3][i])))
    return rows


@pytest.mark.parametrize(("env_id", "action"), [("Hopper-v5", 0.9), ("Reacher-v5", 0.1), ("CartPole-v1", 1.0)])
def test_an_episode_that_ends_is_followed_by_the_first_observation_of_the_next(env_id: str, action: float) -> None:
    """The same action always, so that both kinds of autoreset give the same episodes."""
    made = make_sb3(env_id, N, seed=4, num_threads=1)
    own = envs.make(env_id, N, seed=4, backend="envpool", num_threads=1)
    same = np.full((130, N, own.spec.act_dim), action, np.float32)
    expected = numbered(own, same)
    units = same[0] if own.spec.num_actions == 0 else same[0][:, 0].astype(int)
    got: list[list[Any]] = [[("first", row.tolist())] for row in made.reset()]
    limits: list[bool] = []
    for _ in range(100):
        obs, rewards, done, infos = made.step(units)  # the range of these tasks is [-1, 1]: both units are the same
        for i in range(N):
            if not done[i]:
                got[i].append(("row", obs[i].tolist(), float(rewards[i]), False, False))
                assert infos[i] == {}
                continue
            limit = infos[i]["TimeLimit.truncated"]
            limits.append(limit)
            got[i].append(("row", infos[i]["terminal_observation"].tolist(), float(rewards[i]), not limit, limit))
            got[i].append(("first", obs[i].tolist()))
    for i in range(N):
        assert len(got[i]) > 101
        for one, other in zip(got[i], expected[i], strict=False):
            assert one == (other if one[0] == "row" else other[:2])
    assert set(limits) == {env_id == "Reacher-v5"}  # which ends by its limit of 50 steps alone
    made.close()
    own.close()


def test_stable_baselines3_trains_on_it() -> None:
    made = make_sb3("CartPole-v1", 4, seed=1, num_threads=1)
    assert isinstance(made, VecEnv)
    assert made.env_is_wrapped(gymnasium.Wrapper) == [False] * 4
    assert made.get_attr("render_mode", [0, 1]) == [None, None]
    with pytest.raises(AttributeError, match="no attribute 'gravity'"):
        made.get_attr("gravity")
    model = PPO("MlpPolicy", VecMonitor(made), n_steps=16, batch_size=32, n_epochs=1, seed=3, device="cpu")
    before = [p.detach().clone() for p in model.policy.parameters()]
    model.learn(128)
    assert len(model.ep_info_buffer) > 0
    assert any((p != old).any() for p, old in zip(model.policy.parameters(), before, strict=True))
    made.close()


def test_the_seed_of_a_vecenv_makes_it_again() -> None:
    made = make_sb3("InvertedPendulum-v5", 2, seed=1, num_threads=1)
    first = made.reset()
    assert made.seed(2) == [2, 2]
    second = made.reset()
    made.seed(1)
    assert made.reset().tolist() == first.tolist() != second.tolist()
    made.close()


def test_without_stable_baselines3_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "stable_baselines3.common.vec_env", None)
    with pytest.raises(BackendError, match="pip install stable-baselines3"):
        make_sb3("CartPole-v1", 2, seed=1)
