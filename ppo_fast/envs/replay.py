"""Bring a simulator that cannot save its state back to where it was, by doing again what was done to it.

Axes: N environments · T steps of a rollout · b environments of a call · D = obs_dim · A = act_dim.

EnvPool has no way to read or set a state, but an environment of it is a function of its seed and of what it was told:
so many resets, which draw from its random stream, and then the actions of the running episode, which draw nothing.
:class:`EpisodeLog` keeps both. Replaying costs one reset per episode ever begun and less than one episode of steps.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppo_fast.envs.base import ActionRescaler, Bool, Float32, VectorEnv
from ppo_fast.envs.lifecycle import BUSY, F32, F64, I32, NEW, READY, CheckedEnv
from ppo_fast.envs.stream import StreamEnv
from ppo_fast.errors import EnvError, ShapeError

Int64 = NDArray[np.int64]


class EpisodeLog:
    """What brings N environments that were reset once to where they are: their resets, and their episodes' actions.

    Args:
        num_envs: N.
        act_dim: A.
        max_episode_steps: no episode is longer; None without a limit.
    """

    def __init__(self, num_envs: int, act_dim: int, max_episode_steps: int | None = None) -> None:
        self.act_dim, self.max_episode_steps = act_dim, max_episode_steps
        self.resets: Int64 = np.ones(num_envs, np.int64)
        self._steps = 0  # that every environment has taken, reset rows included
        self._began: Int64 = np.zeros(num_envs, np.int64)  # step at which the running episode took its first action
        self._rollouts: deque[Float32] = deque()  # (T, N, A) each, the last ends at _steps
        self._kept = 0  # steps in them

    @property
    def lengths(self) -> Int64:
        """Actions of the running episodes, (N,)."""
        return self._steps - self._began

    def add(self, actions: Float32, valid: Bool) -> None:
        """Take in one rollout.

        Args:
            actions: (T, N, A) float32, policy units; copied.
            valid: (T, N) bool, False where the environment was reset instead of stepped.

        Raises:
            ShapeError: they are not (T, N, A) and (T, N).
        """
        num_envs = self.resets.size
        if actions.shape != (*valid.shape, self.act_dim) or valid.ndim != 2 or valid.shape[1] != num_envs:
            raise ShapeError(
                f"actions and valid must be (T, {num_envs}, {self.act_dim}) and (T, {num_envs}), got {actions.shape} "
                f"and {valid.shape}"
            )
        resets = ~valid
        self.resets += resets.sum(0)
        env = np.flatnonzero(resets.any(0))
        self._began[env] = self._steps + len(valid) - np.argmax(resets[::-1, env], axis=0)  # after the last reset row
        self._rollouts.append(actions.copy())
        self._steps += len(valid)
        self._kept += len(valid)
        while self._rollouts and self._kept - len(self._rollouts[0]) >= int(self.lengths.max()):
            self._kept -= len(self._rollouts.popleft())

    def state(self) -> dict[str, NDArray[Any]]:
        """Return ``resets`` (N,) and ``lengths`` (N,) int64, and ``actions`` (sum of lengths, A) float32, by env."""
        lengths = self.lengths
        steps = np.concatenate([np.zeros((0, self.resets.size, self.act_dim), np.float32), *self._rollouts])
        episodes = [steps[len(steps) - length :, env] for env, length in enumerate(lengths.tolist())]
        return {"resets": self.resets.copy(), "lengths": lengths, "actions": np.concatenate(episodes)}

    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Take up what :meth:`state` returned.

        Raises:
            ShapeError: it is of another number of environments or another action, or contradicts itself.
            KeyError: a part of it is missing.
        """
        resets, lengths, actions = (np.asarray(state[name]) for name in ("resets", "lengths", "actions"))
        n = self.resets.size
        if not (resets.shape == lengths.shape == (n,) and resets.dtype == lengths.dtype == np.int64):
            raise ShapeError(f"resets and lengths must be ({n},) int64, got {resets.shape} and {lengths.shape}")
        if resets.min() < 1 or lengths.min() < 0 or actions.shape != (int(lengths.sum()), self.act_dim):
            raise ShapeError(f"resets, lengths and actions {actions.shape} contradict each other")
        if actions.dtype != np.float32 or not np.isfinite(actions).all():
            raise ShapeError("actions must be finite float32")
        longest = int(lengths.max())
        if self.max_episode_steps is not None and longest > self.max_episode_steps:
            raise ShapeError(f"an episode of {longest} steps is longer than {self.max_episode_steps}")
        steps = np.zeros((longest, n, self.act_dim), np.float32)
        for env, (length, end) in enumerate(zip(lengths.tolist(), np.cumsum(lengths).tolist(), strict=True)):
            steps[longest - length :, env] = actions[end - length : end]
        self.resets[:] = resets
        self._steps, self._kept = longest, longest
        self._began[:] = longest - lengths
        self._rollouts = deque([steps] if longest else [])


class ReplayableEnv(CheckedEnv):
    """An adapter of a simulator that is replayed; a subclass writes the two private methods."""

    def replay(self, log: EpisodeLog, obs: Float32) -> None:
        """Do what ``log`` tells, instead of the first :meth:`reset`, and write the last observations into ``obs``.

        Args:
            log: of environments with the same seeds.
            obs: (N, D) float32, overwritten.

        Raises:
            EnvError: the environments have been reset or used before.
            ShapeError: ``obs`` has the wrong type, shape or dtype, or ``log`` is of another number of environments.
        """
        self._require("replay", NEW)
        self._check("obs", obs, (self.num_envs, self.spec.obs_dim), F32)
        if (log.resets.size, log.act_dim) != (self.num_envs, self.spec.act_dim):
            raise ShapeError(
                f"{self._name()}: log must be of {self.num_envs} environments x {self.spec.act_dim}, got "
                f"{log.resets.size} x {log.act_dim}"
            )
        state = log.state()
        ends = np.cumsum(state["lengths"])
        rescale = ActionRescaler(self.spec, self.num_envs)
        actions = np.zeros((self.num_envs, self.spec.act_dim), np.float32)
        self._state = BUSY
        for k in range(int(state["resets"].max())):
            self._replay_reset(np.flatnonzero(state["resets"] > k).astype(np.int32), obs)
        for t in range(int(state["lengths"].max())):
            ids = np.flatnonzero(state["lengths"] > t).astype(np.int32)
            actions[ids] = state["actions"][ends[ids] - state["lengths"][ids] + t]
            self._replay_step(ids, rescale(actions)[ids].astype(F64), obs)
        self._state = READY

    def restart(self, env_ids: NDArray[np.int32], obs: Float32) -> None:
        """Start a new episode in ``env_ids`` (b,) now, and write their rows of ``obs`` (N, D).

        Where an episode has just ended, this takes the place of the reset row that the next step would have answered.

        Raises:
            EnvError: the environments have not been reset, or an action is unanswered, or an id is out of range.
            ShapeError: an array has the wrong type, shape or dtype.
        """
        self._require("restart", READY)
        self._check("obs", obs, (self.num_envs, self.spec.obs_dim), F32)
        self._check("env_ids", env_ids, np.shape(env_ids)[:1] or (1,), I32, written=False)
        if len(set(env_ids.tolist()) & set(range(self.num_envs))) != len(env_ids) or not len(env_ids):
            raise EnvError(f"{self._name()}: env_ids must be in 0 ... {self.num_envs - 1}, each once, got {env_ids}")
        self._state = BUSY
        self._replay_reset(env_ids, obs)
        self._state = READY

    @abstractmethod
    def _replay_reset(self, env_ids: NDArray[np.int32], obs: Float32) -> None:
        """Reset ``env_ids`` (b,), wait for them, and write their rows of ``obs`` (N, D)."""

    @abstractmethod
    def _replay_step(self, env_ids: NDArray[np.int32], actions: NDArray[np.float64], obs: Float32) -> None:
        """Step ``env_ids`` (b,) with ``actions`` (b, A) in the environment's units, and write their rows of ``obs``."""


def start_envs(env: StreamEnv | VectorEnv, log: EpisodeLog | None, obs: Float32) -> None:
    """Reset ``env``, or have it replay ``log``, and write the observations that follow into ``obs`` (N, D).

    Raises:
        EnvError: there is a log, and ``env`` is of a simulator that is not replayed.
    """
    if log is None:
        env.reset(obs)
    elif isinstance(env, ReplayableEnv):
        env.replay(log, obs)
    else:
        raise EnvError(f"{env.spec.env_id} ({env.spec.backend}): its environments cannot be replayed")
