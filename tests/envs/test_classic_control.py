"""EnvPool's classic control against Gymnasium's: the same state and actions, the same rewards and ends.

EnvPool's reset state is read out of its float32 observation and set in Gymnasium, so that both differ by that rounding
(6e-8 of a number near 1) and what the dynamics make of it.
"""

from __future__ import annotations

import math
from typing import Any

import gymnasium
import numpy as np
import pytest
from numpy.typing import NDArray

from ppo_fast import envs

N, STEPS = 3, 250
# Measured: 3e-6 of an observation and 9e-6 of a reward (Pendulum's, which is up to 16), below 5e-7 elsewhere.
TOLERANCE = 2e-5
ENDS = {"CartPole-v1": 20, "Pendulum-v1": 3, "MountainCar-v0": 3, "MountainCarContinuous-v0": 0, "Acrobot-v1": 0}


def put(env: gymnasium.Env, task: str, obs: NDArray[np.float32]) -> None:
    """Give ``env`` the state that shows as ``obs``."""
    first, *rest = obs.astype(np.float64)
    if task == "Pendulum-v1":
        state = [math.atan2(rest[0], first), rest[1]]
    elif task == "Acrobot-v1":
        state = [math.atan2(rest[0], first), math.atan2(rest[2], rest[1]), *rest[3:]]
    else:
        state = [first, *rest]
    env.unwrapped.state = np.array(state)  # type: ignore[attr-defined]


@pytest.mark.parametrize("task", ENDS)
def test_both_simulators_do_the_same(task: str) -> None:
    env, theirs = envs.make(task, N, seed=1, backend="envpool"), envs.spec(task, "gymnasium")
    spec = env.spec
    for name in ("obs_dim", "act_dim", "num_actions", "first_action", "max_episode_steps"):
        assert getattr(spec, name) == getattr(theirs, name), name
    np.testing.assert_array_equal([spec.action_low, spec.action_high], [theirs.action_low, theirs.action_high])

    rng, ends = np.random.default_rng(0), 0
    obs, rewards = np.zeros((N, spec.obs_dim), np.float32), np.zeros(N, np.float32)
    terminated, truncated, valid = (np.zeros(N, np.bool_) for _ in range(3))
    env.reset(obs)
    gyms = [gymnasium.make(task, disable_env_checker=True) for _ in range(N)]
    for i, gym in enumerate(gyms):
        gym.reset(seed=i)
        put(gym, task, obs[i])
    for t in range(STEPS):
        if spec.num_actions:
            actions = rng.integers(spec.num_actions, size=(N, 1)).astype(np.float32)
        else:
            actions = rng.uniform(-1.2, 1.2, (N, 1)).astype(np.float32)
        env.step(actions, obs, rewards, terminated, truncated, valid)
        for i, gym in enumerate(gyms):
            if not valid[i]:
                gym.reset(seed=t)
                put(gym, task, obs[i])
                continue
            if spec.num_actions:
                action: Any = int(actions[i, 0])
            else:
                action = np.clip(actions[i], -1, 1) * spec.action_high.astype(np.float32)  # symmetric ranges
            after, reward, ended, cut, _ = gym.step(action)
            np.testing.assert_allclose(obs[i], after, rtol=0, atol=TOLERANCE, err_msg=f"step {t}")
            assert rewards[i] == pytest.approx(float(reward), abs=TOLERANCE)
            assert (terminated[i], truncated[i]) == (ended, cut)
            ends += int(ended or cut)
    assert ends >= ENDS[task]
    env.close()
