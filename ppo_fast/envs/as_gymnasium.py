"""Our environments as a vector environment of Gymnasium's, for whoever wants to step them from elsewhere.

Actions are in the environment's own units, and the environments are seeded anew by making them again: EnvPool takes a
seed at no other time.

Axes: N environments · D = obs_dim · A = act_dim.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Discrete, MultiDiscrete, Space
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from ppo_fast import envs
from ppo_fast.envs.base import CheckedVectorEnv, EnvSpec
from ppo_fast.errors import EnvError, ShapeError


class GymnasiumEnvs(VectorEnv):  # type: ignore[misc]
    """N environments as a ``gymnasium.vector.VectorEnv`` with next-step autoreset.

    Observations are vectors (N, D) float32, also where they were flattened. ``reset(seed=None)`` goes on with the
    streams that there are.

    Args:
        env_id: as for :func:`ppo_fast.envs.make`.
        num_envs: N >= 1.
        seed: until ``reset`` is given another one.
        options: the other arguments of :func:`ppo_fast.envs.make`.
    """

    def __init__(self, env_id: str, num_envs: int, *, seed: int, **options: Any) -> None:
        self._make: Callable[[int], CheckedVectorEnv] = lambda seed: envs.make(env_id, num_envs, seed=seed, **options)
        self._envs = self._make(seed)
        self.num_envs = num_envs
        self.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}
        self.single_observation_space, self.single_action_space = spaces_of(self._envs.spec)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start new episodes; return the first observations (N, D) float32 and no information.

        Raises:
            EnvError: ``seed`` is a list, or there are options: no environment takes any.
        """
        if options or not (seed is None or isinstance(seed, int)):
            raise EnvError(f"{self._envs.spec.env_id}: reset takes one integer as seed and no options")
        if seed is not None:
            self._envs.close()
            self._envs = self._make(seed)
        obs = np.empty((self.num_envs, self._envs.spec.obs_dim), np.float32)
        self._envs.reset(obs)
        return obs, {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Take ``actions`` as the action space has them; return new arrays, as Gymnasium orders them."""
        spec, given = self._envs.spec, np.asarray(actions)
        indices = spec.index_actions(given) if spec.num_actions else given
        _, obs, rewards, terminated, truncated, _ = step_in_env_units(self._envs, indices)
        return obs.copy(), rewards.astype(np.float64), terminated.copy(), truncated.copy(), {}

    def close_extras(self, **_: Any) -> None:
        """Close the environments."""
        self._envs.close()


def spaces_of(spec: EnvSpec, *, first_action: int | None = None) -> tuple[Space[Any], Space[Any]]:
    """Return the spaces of one environment; ``first_action`` is that of the environment unless given."""
    observation = Box(-np.inf, np.inf, (spec.obs_dim,), np.float32)
    if spec.choices:
        return observation, MultiDiscrete(spec.choices)
    if spec.num_actions:
        start = spec.first_action if first_action is None else first_action
        return observation, Discrete(spec.num_actions, start=start)
    low, high = spec.action_low.astype(np.float32), spec.action_high.astype(np.float32)
    return observation, Box(low, high, dtype=np.float32)


def step_in_env_units(env: CheckedVectorEnv, actions: NDArray[Any]) -> envs.Arrivals:
    """Step with ``actions`` in the environment's units (N, A), or indices (N,).

    Raises:
        ShapeError: they have another shape.
    """
    shape = (env.num_envs,) if env.spec.num_actions else (env.num_envs, env.spec.act_dim)
    if np.shape(actions) != shape:
        raise ShapeError(f"actions must have the shape {shape}, got {np.shape(actions)}")
    rows = np.array(actions, np.float64).reshape(env.num_envs, env.spec.act_dim)
    env.send(np.arange(env.num_envs, dtype=np.int32), rows)
    return env.recv()
