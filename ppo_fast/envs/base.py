"""The contract every simulator adapter keeps, and the door that holds callers and adapters to it.

Axes: N environments · D = obs_dim · A = act_dim.

**Next-step autoreset.** ``step`` answers the action of every environment with the *true* next observation: where an
episode ends, ``obs`` is its final observation, and ``terminated`` or ``truncated`` is set. The ``step`` after that does
not simulate: it ignores the action and returns the first observation of the new episode, with reward 0, both flags
False and ``valid`` False. It is a *reset row*. Two consequences, both used:

* The observation after a done is the final one, so a value of it is the right bootstrap for a time limit.
* A reset row is no transition. It weighs nothing anywhere: losses, advantages, normalisers, episode statistics, counts.

``done = terminated | truncated``. Both flags may be set: a fall on the last allowed step is ``terminated`` *and*
``truncated`` under Gymnasium, and ``terminated`` wins (value 0). EnvPool reports ``truncated`` only and keeps no trace
of the fall, so there V(final observation) is bootstrapped: wrong in the rare episode that falls exactly at the limit.

**Actions** are policy units: clipped to [-1, 1] and rescaled to the range of the environment (:class:`ActionRescaler`).
Where the environment has K discrete actions, an action is (1,) float32 and holds an index in 0 ... K - 1, as it is.

**Two ways to step.** A :class:`VectorEnv` steps all N environments and answers when the last one has. A stream
(:class:`~ppo_fast.envs.stream.StreamEnv`) takes actions for any of them and answers with whichever have come back, so
that nobody waits for the slowest. What an environment answers depends on its own actions alone, never on the order of
arrival. Synchronous adapters are both (:class:`CheckedVectorEnv`).

**Seeds**: each environment has its own stream, a function of (run seed, global environment index, purpose) alone.

Source: EnvPool docs/content/python_interface.rst, "Auto Reset"; Gymnasium ``AutoresetMode.NEXT_STEP``.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ppo_fast.envs.lifecycle import BOOL, BUSY, F32, F64, I32, READY, SENT, CheckedEnv
from ppo_fast.envs.stream import Arrivals
from ppo_fast.errors import EnvError

Float32 = NDArray[np.float32]
Bool = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class EnvSpec:
    """What one environment looks like.

    Args:
        env_id: name in the registry, as ``'Ant-v5'``.
        backend: ``'envpool'`` or ``'gymnasium'``.
        obs_dim: D, length of an observation.
        act_dim: A, length of an action.
        action_low: (A,) float64, lower bound in the environment's units, or -inf.
        action_high: (A,) float64, upper bound, or inf.
        max_episode_steps: time limit in env steps, None without one.
        num_actions: K of a discrete action space, whose A is 1 and which has no bounds; 0 of a continuous one. Of a
            MultiDiscrete space it is the number of combinations.
        first_action: what the environment calls the action of index 0 (``Discrete.start``).
        env_kwargs: keyword arguments that it is made with.
        obs_layout: what a flattened observation is made of, in order, as ``'height 1, velocity 9'``; empty of a vector.
        choices: K_1, ..., K_C of a MultiDiscrete action space; empty of any other.
    """

    env_id: str
    backend: str
    obs_dim: int
    act_dim: int
    action_low: NDArray[np.float64]
    action_high: NDArray[np.float64]
    max_episode_steps: int | None
    num_actions: int = 0
    first_action: int = 0
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)
    obs_layout: str = ""
    choices: tuple[int, ...] = ()

    def name_actions(self, indices: NDArray[np.floating[Any] | np.integer[Any]]) -> NDArray[np.int64]:
        """Return what the environment calls the discrete actions ``indices`` (N,).

        first_action + k                                        Discrete, (N,)
        c with k = (c_1 K_2 + c_2) K_3 + ... + c_C              MultiDiscrete of K_1, ..., K_C choices, (N, C)
        """
        chosen = indices.astype(np.int64)
        if self.choices:
            return np.stack(np.unravel_index(chosen, self.choices), axis=-1)
        return chosen + self.first_action

    def index_actions(self, named: NDArray[Any]) -> NDArray[np.int64]:
        """Invert :meth:`name_actions`: return the indices (N,); -1 where there is no such action or combination."""
        whole = np.floor(named) == named
        numbers = np.where(whole, named, self.first_action - 1).astype(np.int64)
        if not self.choices:
            return numbers - self.first_action
        columns = np.moveaxis(numbers, -1, 0)
        known = (whole & (named >= 0) & (named < self.choices)).all(-1)
        index: NDArray[np.int64] = np.ravel_multi_index(tuple(columns), self.choices, mode="clip")
        return np.where(known, index, -1)


class VectorEnv(Protocol):
    """N environments stepped together under the contract of this module."""

    spec: EnvSpec
    num_envs: int

    def reset(self, obs: Float32) -> None:
        """Start a new episode in every environment and write its first observation into ``obs``, (N, D) float32."""

    def step(
        self,
        actions: Float32,
        obs: Float32,
        rewards: Float32,
        terminated: Bool,
        truncated: Bool,
        valid: Bool,
    ) -> None:
        """Take one step; ``actions`` (N, A) float32 is read, the other five arrays of the caller are overwritten.

        Args:
            actions: (N, A) float32, policy units, clipped to [-1, 1].
            obs: (N, D) float32, observation after the action; the final one where the episode ended.
            rewards: (N,) float32, 0 on reset rows.
            terminated: (N,) bool, the MDP ended.
            truncated: (N,) bool, a time limit cut the episode.
            valid: (N,) bool, False on reset rows.
        """

    def close(self) -> None:
        """Free threads and processes. May be called twice."""


class ActionRescaler:
    """Turn policy actions into the environment's units, the same way for every simulator.

        low + (clip(a, -1, 1) + 1) / 2 · (high - low)

    computed in float64 and rounded to float32, so that simulators which take float64 (EnvPool) and float32 (Gymnasium)
    get the same number. A component without two finite bounds is passed as it is.

    Args:
        spec: the environment.
        num_envs: N, rows of an action array.
    """

    def __init__(self, spec: EnvSpec, num_envs: int) -> None:
        self.bounded = np.isfinite(spec.action_low) & np.isfinite(spec.action_high)
        self._unbounded = None if self.bounded.all() else ~self.bounded
        self.low = np.where(self.bounded, spec.action_low, -1.0)
        self.half_range = (np.where(self.bounded, spec.action_high, 1.0) - self.low) / 2
        self._work = np.empty((num_envs, spec.act_dim), np.float64)
        self._scaled = np.empty((num_envs, spec.act_dim), np.float32)

    def __call__(self, actions: Float32) -> Float32:
        """Return the rescaled (N, A) float32 actions, in a buffer that the next call overwrites."""
        np.clip(actions, -1.0, 1.0, out=self._work)
        self._work += 1.0
        self._work *= self.half_range
        self._work += self.low
        np.copyto(self._scaled, self._work, casting="same_kind")
        if self._unbounded is not None:
            np.copyto(self._scaled, actions, where=self._unbounded)
        return self._scaled


class CheckedVectorEnv(CheckedEnv):
    """The door of a synchronous adapter: a :class:`VectorEnv` and a :class:`~ppo_fast.envs.stream.StreamEnv` in one.

    A subclass writes :meth:`_reset`, :meth:`_step` and :meth:`_close`. Between a ``send`` and its ``recv`` nothing else
    is allowed but ``close``.

    Args:
        spec: the environment.
        num_envs: N.
    """

    mode = "synchronous"

    def __init__(self, spec: EnvSpec, num_envs: int) -> None:
        super().__init__(spec, num_envs)
        self._rescale = ActionRescaler(spec, num_envs)
        self._all_envs = np.arange(num_envs, dtype=np.int32)
        self._sent = np.empty((num_envs, spec.act_dim), np.float32)
        self._answers = (  # in the order of step()'s outputs
            np.empty((num_envs, spec.obs_dim), np.float32),
            np.empty(num_envs, np.float32),
            np.empty(num_envs, np.bool_),
            np.empty(num_envs, np.bool_),
            np.empty(num_envs, np.bool_),
        )

    def step(
        self,
        actions: Float32,
        obs: Float32,
        rewards: Float32,
        terminated: Bool,
        truncated: Bool,
        valid: Bool,
    ) -> None:
        """Take one step; see :class:`VectorEnv`.

        Raises:
            EnvError: before the first reset, after close(), in a forked child, or after a call that did not finish.
            ShapeError: an array has the wrong type, shape or dtype, or cannot be written, or an action is no index.
            NonFiniteError: an action is NaN or infinite.
        """
        self._require("step", READY)
        rows = (self.num_envs,)
        self._check("actions", actions, (self.num_envs, self.spec.act_dim), F32, written=False)
        self._check("obs", obs, (self.num_envs, self.spec.obs_dim), F32)
        self._check("rewards", rewards, rows, F32)
        self._check("terminated", terminated, rows, BOOL)
        self._check("truncated", truncated, rows, BOOL)
        self._check("valid", valid, rows, BOOL)
        self._check_actions(actions, self._all_envs)
        self._step_all(self._rescale(actions), obs, rewards, terminated, truncated, valid)

    def send(self, env_ids: NDArray[np.int32], actions: NDArray[np.float64]) -> None:
        """Take the actions of all N environments, in order, for ``recv`` to step; see the contract of a stream.

        Raises:
            EnvError: as for :meth:`step`, or ``env_ids`` is not 0 ... N-1, or an action is unanswered.
            ShapeError: an array has the wrong type, shape or dtype, or an action is no index.
            NonFiniteError: an action is NaN or infinite.
        """
        self._require("send", READY)
        self._check("env_ids", env_ids, (self.num_envs,), I32, written=False)
        self._check("actions", actions, (self.num_envs, self.spec.act_dim), F64, written=False)
        if not np.array_equal(env_ids, self._all_envs):
            raise EnvError(
                f"{self._name()}: env_ids must be 0 ... {self.num_envs - 1} in order, got {env_ids.tolist()}"
            )
        self._check_actions(actions, self._all_envs)
        np.copyto(self._sent, actions, casting="same_kind")  # exact, as they were rounded to float32 when rescaled
        self._state = SENT

    def recv(self) -> Arrivals:
        """Step and return all N environments, in order, in arrays that the next call overwrites.

        Raises:
            EnvError: as for :meth:`step`, or no action is unanswered.
        """
        self._require("recv", SENT)
        self._step_all(self._sent, *self._answers)
        return Arrivals(self._all_envs.copy(), *self._answers)

    def _step_all(
        self, actions: Float32, obs: Float32, rewards: Float32, terminated: Bool, truncated: Bool, valid: Bool
    ) -> None:
        self._state = BUSY
        self._step(actions, obs, rewards, terminated, truncated, valid)
        if not valid.all():
            np.copyto(rewards, 0.0, where=~valid)  # whatever the simulator says of a step it did not take
        self._state = READY

    @abstractmethod
    def _step(
        self, actions: Float32, obs: Float32, rewards: Float32, terminated: Bool, truncated: Bool, valid: Bool
    ) -> None:
        """Send ``actions`` (N, A) float32, finite, in the environment's units; write the other five."""
