"""Gymnasium's vector environments: whatever EnvPool lacks, and the yardstick that EnvPool is held to."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from ppo_fast.envs import registered_spec
from ppo_fast.envs.base import Bool, CheckedVectorEnv, EnvSpec, Float32, spec_from_spaces
from ppo_fast.errors import EnvError
from ppo_fast.kernels import env_seeds


def gymnasium_spec(env_id: str) -> EnvSpec:
    """Describe ``env_id``, from one environment that is made and closed."""
    env = make_one(env_id)
    try:
        return spec_from_spaces(env_id, "gymnasium", env.observation_space, env.action_space, _time_limit(env))
    finally:
        env.close()


class GymnasiumVectorEnv(CheckedVectorEnv):
    """N environments in a Gymnasium vector environment.

    ``valid`` is "the previous step was not done". Asynchronous environments run in spawned processes, one each: no
    thread or lock of this process is inherited half-way, but a script that makes them needs ``if __name__ ==
    "__main__"``.

    Args:
        env_id: registry name.
        num_envs: N >= 1.
        seed: run seed.
        first_env: global index of environment 0.
        purpose: 0 training, 1 evaluation; separates their seeds.
        vectorization: ``'sync'`` or ``'async'``.
    """

    def __init__(
        self,
        env_id: str,
        num_envs: int,
        *,
        seed: int,
        first_env: int = 0,
        purpose: int = 0,
        vectorization: str = "sync",
    ) -> None:
        super().__init__(gymnasium_spec(env_id), num_envs)
        makers = [_maker(env_id)] * num_envs
        try:
            self._envs: Any = (
                AsyncVectorEnv(
                    makers, shared_memory=True, copy=False, context="spawn", autoreset_mode=AutoresetMode.NEXT_STEP
                )
                if vectorization == "async"
                else SyncVectorEnv(makers, copy=False, autoreset_mode=AutoresetMode.NEXT_STEP)
            )
        except Exception as error:
            raise EnvError(f"{env_id}: Gymnasium cannot make {num_envs} of it: {_one_line(error)}") from error
        self._seeds: list[int] | None = env_seeds(seed, first_env, num_envs, purpose).tolist()
        self._was_done = np.zeros(num_envs, np.bool_)

    def _reset(self, obs: Float32) -> None:
        first, _ = self._envs.reset(seed=self._seeds)
        self._seeds = None  # a second reset goes on with the same streams, as EnvPool's does
        np.copyto(obs, first, casting="same_kind")
        self._was_done.fill(False)

    def _step(
        self, actions: Float32, obs: Float32, rewards: Float32, terminated: Bool, truncated: Bool, valid: Bool
    ) -> None:
        chosen = actions[:, 0].astype(np.int64) + self.spec.first_action if self.spec.num_actions else actions
        after, reward, ended, cut, _ = self._envs.step(chosen)
        np.copyto(obs, after, casting="same_kind")
        np.copyto(rewards, reward, casting="same_kind")
        np.copyto(terminated, ended)
        np.copyto(truncated, cut)
        np.logical_not(self._was_done, out=valid)
        np.logical_or(terminated, truncated, out=self._was_done)

    def _close(self, *, interrupted: bool) -> None:
        if not (interrupted and isinstance(self._envs, AsyncVectorEnv)):
            self._envs.close()
            return
        # Gymnasium's close() would fetch the pending answers, and Ctrl-C reaches the processes too: their answer is to
        # raise KeyboardInterrupt here again.
        for process in self._envs.processes:
            process.terminate()
            process.join()
        self._envs.closed = True


def _maker(env_id: str) -> Callable[[], Any]:
    # The registry entry travels, not the name: a spawned process may not have run the code that registered it. Nothing
    # of this package travels, so that such a process starts quickly. Gymnasium's checker would cost time in every step.
    return functools.partial(gymnasium.make, registered_spec(env_id), disable_env_checker=True)


def make_one(env_id: str) -> Any:
    """Make one environment; the caller closes it. Raises ``EnvError``."""
    try:
        return _maker(env_id)()
    except EnvError:
        raise
    except Exception as error:  # anything: a missing simulator, a retired version, a bug in the environment
        raise EnvError(f"{env_id}: Gymnasium cannot make it: {_one_line(error)}") from error


def _time_limit(env: Any) -> int | None:
    limit = env.spec.max_episode_steps
    return None if limit is None else int(limit)


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
