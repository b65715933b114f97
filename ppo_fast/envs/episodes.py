"""Episode returns and lengths from arrays of rewards and flags; knows no simulator.

Axes: T steps · N environments.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ppo_fast.envs.base import Bool, Float32
from ppo_fast.errors import ShapeError


class EpisodeTracker:
    """Sum rewards and count steps of running episodes, across rollouts, in float64.

    Args:
        num_envs: N.
    """

    def __init__(self, num_envs: int) -> None:
        self._returns = np.zeros(num_envs, np.float64)
        self._lengths = np.zeros(num_envs, np.int64)

    def update(self, rewards: Float32, done: Bool, valid: Bool) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Take in one rollout; return the episodes that ended in it, in (t, env) order.

        Args:
            rewards: (T, N) float32, as the environment gave them.
            done: (T, N) bool, the episode ended with this transition.
            valid: (T, N) bool, False on reset rows, which count for nothing.

        Returns:
            (E,) float64 returns and (E,) int64 lengths (env steps) of the E episodes that ended.

        Raises:
            ShapeError: the arrays are not (T, N) alike.
        """
        num_envs = self._returns.size
        if not (rewards.ndim == 2 and rewards.shape[1] == num_envs and rewards.shape == done.shape == valid.shape):
            raise ShapeError(
                f"rewards, done and valid must all be (T, {num_envs}), got {rewards.shape}, {done.shape}, {valid.shape}"
            )
        num_steps = rewards.shape[0]
        # One row per environment, led by what its running episode brought along; then one segment per episode.
        reward = np.zeros((num_envs, num_steps + 1))
        reward[:, 0] = self._returns
        np.copyto(reward[:, 1:], rewards.T, where=valid.T)
        length = np.zeros((num_envs, num_steps + 1), np.int64)
        length[:, 0] = self._lengths
        length[:, 1:] = valid.T
        ends = np.zeros((num_envs, num_steps + 1), np.bool_)
        np.logical_and(done.T, valid.T, out=ends[:, 1:])

        starts = np.ones_like(ends)
        starts[:, 1:] = ends[:, :-1]
        first = np.flatnonzero(starts)
        last = np.append(first[1:], starts.size) - 1
        returns, lengths = np.add.reduceat(reward.ravel(), first), np.add.reduceat(length.ravel(), first)

        finished = ends.ravel()[last]
        env, step = np.divmod(last, num_steps + 1)
        self._returns.fill(0.0)
        self._lengths.fill(0)
        self._returns[env[~finished]] = returns[~finished]
        self._lengths[env[~finished]] = lengths[~finished]
        order = np.argsort((step * num_envs + env)[finished])
        return returns[finished][order], lengths[finished][order]

    def reset(self) -> None:
        """Forget the running episodes."""
        self._returns.fill(0.0)
        self._lengths.fill(0)

    def state_dict(self) -> dict[str, NDArray[np.float64] | NDArray[np.int64]]:
        """Return copies of the running sums: ``returns`` (N,) float64 and ``lengths`` (N,) int64."""
        return {"returns": self._returns.copy(), "lengths": self._lengths.copy()}

    def load_state_dict(self, state: dict[str, NDArray[np.float64] | NDArray[np.int64]]) -> None:
        """Take up running sums from :meth:`state_dict`.

        Raises:
            ShapeError: they are of another number of environments or dtype, or contradict what they are.
        """
        for name, target in (("returns", self._returns), ("lengths", self._lengths)):
            given = state[name]
            if given.shape != target.shape or given.dtype != target.dtype or not np.isfinite(given).all():
                raise ShapeError(
                    f"{name} must be {target.shape} {target.dtype}, finite, got {given.shape} {given.dtype}"
                )
        if (state["lengths"] < 0).any():
            raise ShapeError("lengths must not be negative")
        for name, target in (("returns", self._returns), ("lengths", self._lengths)):
            np.copyto(target, state[name])
