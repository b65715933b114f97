"""How one task of EnvPool, as its own spec describes it, is put under the contract of :mod:`ppo_fast.envs.base`.

Axes: b rows of a call · D = obs_dim · A = act_dim.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppo_fast.envs.base import EnvSpec
from ppo_fast.envs.lifecycle import F64
from ppo_fast.envs.spaces import parts_of, spec_from_spaces
from ppo_fast.errors import BackendError, EnvError

_NO_LIMIT = 2**31 - 1


def import_envpool() -> Any:
    """Import EnvPool on first need (0.9 s).

    Raises:
        BackendError: it is not installed or does not load; the message says why.
    """
    try:
        import envpool
    except Exception as error:  # a wheel for another platform fails in its own ways
        reason = f"{type(error).__name__}: {error}"
        raise BackendError(f"EnvPool cannot be imported ({reason}); use the Gymnasium backend instead") from error
    return envpool


@dataclass(frozen=True)
class PoolTask:
    """A task's description, and the two conversions: observations out of the pool, actions into it.

    Args:
        spec: the environment.
        obs_keys: the state arrays that an observation is made of, in its order.
        action_dtype: what the pool takes.
    """

    spec: EnvSpec
    obs_keys: tuple[str, ...] = ("obs",)
    action_dtype: np.dtype[Any] = F64

    def obs(self, arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """Return the observations (b, D) of the pool's arrays, one for each of ``obs_keys``; one as it is."""
        flat = [array.reshape(len(array), -1) for array in arrays]
        return flat[0] if len(flat) == 1 else np.concatenate(flat, axis=1)

    def actions(self, actions: NDArray[np.floating[Any]]) -> NDArray[Any]:
        """Return a copy of ``actions`` (b, A), in the environment's units, as the pool takes it: named, if discrete."""
        if self.spec.num_actions:
            return self.spec.name_actions(actions[:, 0]).astype(self.action_dtype)
        return np.array(actions, self.action_dtype, order="C")


def envpool_task(env_id: str) -> PoolTask:
    """Describe ``env_id`` without starting a thread.

    Raises:
        EnvError: EnvPool does not have it or cannot make it, or its spaces or number of players are not supported.
    """
    try:
        task = import_envpool().make_spec(env_id)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of Gymnasium, that EnvPool's bounds are rounded to float32
            space, action_space = task.gymnasium_observation_space, task.gymnasium_action_space
        limit = int(task.config.max_episode_steps)
        players = int(task.config.max_num_players)
    except BackendError:
        raise
    except Exception as error:  # an AssertionError for an unknown id, an ImportError for a library that is missing
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise EnvError(f"{env_id}: EnvPool cannot make it: {reason}") from error
    if players != 1:
        raise EnvError(f"{env_id}: it has {players} players, and only environments with one are supported")
    spec = spec_from_spaces(env_id, "envpool", space, action_space, limit if 0 < limit < _NO_LIMIT else None)
    dtype = np.dtype(list(task.action_array_spec.values())[-1].dtype)
    return PoolTask(spec, _keys(task, space), dtype)


def _keys(task: Any, space: Any) -> tuple[str, ...]:
    """Return the names of the state arrays, in the order of the parts of the observation."""
    known = [key for key in task.state_array_spec if key == "obs" or key.startswith("obs:")]
    if len(known) == 1:
        return (known[0],)
    keys = tuple(":".join(("obs", *part.path)) for part in parts_of(space) or [])
    if sorted(keys) != sorted(known):
        raise EnvError(f"EnvPool's state arrays {known} are not those of its observation space {space}")
    return keys
