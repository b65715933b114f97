"""EnvPool's environments as a ``VecEnv`` of Stable-Baselines3, which has same-step autoreset.

Axes: N environments · D = obs_dim · A = act_dim.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppo_fast import envs
from ppo_fast.envs.as_gymnasium import spaces_of, step_in_env_units
from ppo_fast.envs.base import CheckedVectorEnv
from ppo_fast.envs.replay import ReplayableEnv
from ppo_fast.errors import BackendError


def make_sb3(env_id: str, num_envs: int, *, seed: int, num_threads: int = 0) -> Any:
    """Make ``num_envs`` environments of EnvPool as a ``VecEnv`` of Stable-Baselines3, which has same-step autoreset.

    Where an episode ends, the observation is the first of the next one, and the information holds
    ``terminal_observation`` (D,) and ``TimeLimit.truncated``.

    Args:
        env_id, num_envs, seed, num_threads: as for :func:`ppo_fast.envs.make`.

    Raises:
        BackendError: Stable-Baselines3 or EnvPool is not installed.
        EnvError, ConfigError: as for :func:`ppo_fast.envs.make`.
    """
    try:
        from stable_baselines3.common.vec_env import VecEnv
    except ImportError as error:
        raise BackendError(f"Stable-Baselines3 cannot be imported ({error}): pip install stable-baselines3") from error
    cls = type("EnvPoolVecEnv", (_SameStep, VecEnv), {})
    made: Any = cls(
        lambda seed: envs.make(env_id, num_envs, seed=seed, backend="envpool", num_threads=num_threads), seed
    )
    VecEnv.__init__(made, num_envs, *spaces_of(made.envs.spec, first_action=0))
    return made


class _SameStep:
    """The methods of a ``VecEnv``; Stable-Baselines3's class comes in when there is one to make."""

    num_envs: int

    def __init__(self, make: Callable[[int], CheckedVectorEnv], seed: int) -> None:
        self._make, self.envs = make, make(seed)
        self._actions: NDArray[Any] = np.empty(0)
        self.reset_infos: list[dict[str, Any]] = []

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Make the environments again, with ``seed`` or one drawn at random; ``reset`` must come next."""
        seed = int(np.random.default_rng().integers(2**31)) if seed is None else seed
        self.envs.close()
        self.envs = self._make(seed)
        return [seed] * self.num_envs

    def reset(self) -> NDArray[np.float32]:
        """Start new episodes, and return the first observations (N, D)."""
        obs = np.empty((self.num_envs, self.envs.spec.obs_dim), np.float32)
        self.envs.reset(obs)
        self.reset_infos = [{} for _ in range(self.num_envs)]
        return obs

    def step_async(self, actions: NDArray[Any]) -> None:
        """Keep ``actions`` for :meth:`step_wait`."""
        self._actions = actions

    def step_wait(self) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_], list[dict[str, Any]]]:
        """Step, begin anew where an episode ended, and return observations, rewards, dones and information."""
        chosen = self.envs.spec.index_actions(self._actions) if self.envs.spec.choices else self._actions
        _, after, rewards, terminated, truncated, _ = step_in_env_units(self.envs, chosen)
        obs, done = after.astype(np.float32), terminated | truncated
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        ended = np.flatnonzero(done).astype(np.int32)
        for env in ended:
            limit = bool(truncated[env] and not terminated[env])
            infos[env] = {"terminal_observation": obs[env].copy(), "TimeLimit.truncated": limit}
        if ended.size:
            assert isinstance(self.envs, ReplayableEnv)
            self.envs.restart(ended, obs)
        return obs, rewards.copy(), done, infos

    def close(self) -> None:
        """Free the pool."""
        self.envs.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """Return what the pool is known by; environments of it have no attributes of their own."""
        known = {"render_mode": None, "spec": self.envs.spec}
        if attr_name not in known:
            raise AttributeError(f"environments of EnvPool have no attribute {attr_name!r}")
        return [known[attr_name]] * self._count(indices)

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Refuse: environments of EnvPool have no attributes."""
        raise AttributeError(f"environments of EnvPool have no attribute {attr_name!r} that could be set")

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        """Refuse: environments of EnvPool have no methods."""
        raise AttributeError(f"environments of EnvPool have no method {method_name!r}")

    def env_is_wrapped(self, wrapper_class: type, indices: Any = None) -> list[bool]:
        """Return False for each: nothing wraps an environment of EnvPool."""
        return [False] * self._count(indices)

    def _count(self, indices: Any) -> int:
        return self.num_envs if indices is None else 1 if isinstance(indices, int) else len(list(indices))
