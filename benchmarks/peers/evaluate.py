"""The same evaluation for every peer: mean actions on EnvPool's environments, each its first episode, raw rewards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import envpool
import numpy as np

SEED = 1_000_003  # of the environments: not those of training


def evaluation(asked: dict[str, Any], act: Callable[[np.ndarray], np.ndarray]) -> dict[str, Any]:
    """Return the returns of as many episodes as the parent wants; nothing if it wants none.

    Args:
        asked: the parent's job.
        act: raw observations (N, D) to actions (N, A) in the environment's units.

    """
    episodes = asked.get("evaluate", 0)
    if not episodes:
        return {}
    env = envpool.make(
        asked["env_id"], env_type="gymnasium", num_envs=episodes, seed=SEED + asked["seed"],
        num_threads=asked["env_threads"],
    )  # fmt: skip
    low, high = env.action_space.low, env.action_space.high
    obs, _ = env.reset()
    returns, running = np.zeros(episodes), np.ones(episodes, np.bool_)
    while running.any():
        obs, rewards, terminated, truncated, _ = env.step(np.clip(act(obs), low, high))
        returns[running] += rewards[running]
        running &= ~(terminated | truncated)
    env.close()
    return {"evaluation": returns.tolist()}
