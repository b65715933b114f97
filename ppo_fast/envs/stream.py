"""Environments that answer in any order: the second way to step under the contract of :mod:`ppo_fast.envs.base`.

Axes: N environments · b environments that are sent or have come back · D = obs_dim · A = act_dim.

An environment is *in flight* from the ``send`` that names it to the ``recv`` that returns it. The usual loop: reset,
send all, then receive what has come back and send it on again while it has steps left.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ppo_fast.envs.base import EnvSpec


class Arrivals(NamedTuple):
    """b environments that have come back, in whatever order; the next ``recv`` may overwrite the arrays.

    Args:
        env_ids: (b,) int32, which environments, each at most once.
        obs: (b, D) C-contiguous float32 or float64, as the simulator made it; the final one where the episode ended.
        rewards: (b,) float32, 0 on reset rows.
        terminated: (b,) bool, the MDP ended.
        truncated: (b,) bool, a time limit cut the episode.
        valid: (b,) bool, False on reset rows.
    """

    env_ids: NDArray[np.int32]
    obs: NDArray[np.float32] | NDArray[np.float64]
    rewards: NDArray[np.float32]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    valid: NDArray[np.bool_]


class StreamEnv(Protocol):
    """N environments stepped in any order under the contract of this module.

    ``mode`` says for logs how: ``'synchronous'``, or ``'asynchronous, 32 of 64'``.
    """

    spec: EnvSpec
    num_envs: int
    mode: str

    def reset(self, obs: NDArray[np.float32]) -> None:
        """Start a new episode in every environment, wait for all, write the first observations into ``obs`` (N, D)."""

    def send(self, env_ids: NDArray[np.int32], actions: NDArray[np.float64]) -> None:
        """Have environments take one step each, and return without waiting; the arrays may be overwritten afterwards.

        Args:
            env_ids: (b,) int32, b >= 1 environments that are not in flight, each once; all, in order, if synchronous.
            actions: (b, A) float64, finite, in the environment's units, already rescaled and rounded to float32 (as by
                :class:`~ppo_fast.envs.base.ActionRescaler`), so that simulators of either type get the same number.

        Raises:
            EnvError: an environment is in flight, named twice, or out of range, or the call is out of order.
            ShapeError: an array has the wrong type, shape or dtype.
            NonFiniteError: an action is NaN or infinite. After any of the three, nothing was sent.
        """

    def recv(self) -> Arrivals:
        """Return 1 <= b <= N environments that have answered; never blocks for ever.

        Raises:
            EnvError: no action is unanswered.
        """

    def close(self) -> None:
        """Free threads and processes, with actions unanswered or not. May be called twice."""
