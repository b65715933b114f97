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
**Seeds**: each environment has its own stream, a function of (run seed, global environment index, purpose) alone.

Source: EnvPool docs/content/python_interface.rst, "Auto Reset"; Gymnasium ``AutoresetMode.NEXT_STEP``.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ppo_fast.errors import EnvError, NonFiniteError, ShapeError

Float32 = NDArray[np.float32]
Bool = NDArray[np.bool_]

_F32 = np.dtype(np.float32)
_BOOL = np.dtype(np.bool_)

# States of an adapter. "busy" outside a call means that the call was cut short: where the simulator stands is unknown.
_NEW, _READY, _BUSY, _CLOSED, _FORKED = "new", "ready", "busy", "closed", "forked"
_REFUSALS = {
    _NEW: "reset() must come first",
    _BUSY: "an earlier call did not finish (interrupted, failed, or still running in another thread), so the simulator "
    "may be one step off: close this one and make a new one",
    _CLOSED: "it is closed: make a new one",
    _FORKED: "it was made before this process was forked and cannot be used here: make it in the process that steps "
    "it, or start that process with the 'spawn' method",
}


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
    """

    env_id: str
    backend: str
    obs_dim: int
    act_dim: int
    action_low: NDArray[np.float64]
    action_high: NDArray[np.float64]
    max_episode_steps: int | None


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
        bounded = np.isfinite(spec.action_low) & np.isfinite(spec.action_high)
        self._unbounded = None if bounded.all() else ~bounded
        self._low = np.where(bounded, spec.action_low, -1.0)
        self._half_range = (np.where(bounded, spec.action_high, 1.0) - self._low) / 2
        self._work = np.empty((num_envs, spec.act_dim), np.float64)
        self._scaled = np.empty((num_envs, spec.act_dim), np.float32)

    def __call__(self, actions: Float32) -> Float32:
        """Return the rescaled (N, A) float32 actions, in a buffer that the next call overwrites."""
        np.clip(actions, -1.0, 1.0, out=self._work)
        self._work += 1.0
        self._work *= self._half_range
        self._work += self._low
        np.copyto(self._scaled, self._work, casting="same_kind")
        if self._unbounded is not None:
            np.copyto(self._scaled, actions, where=self._unbounded)
        return self._scaled


class CheckedVectorEnv(ABC):
    """The door of an adapter: checks what the caller gives, and refuses to go on from an unknown state.

    A subclass writes :meth:`_reset`, :meth:`_step` and :meth:`_close`, and may trust its arguments. Nothing reaches the
    simulator from a call that raises ShapeError or NonFiniteError.

    Args:
        spec: the environment.
        num_envs: N.
    """

    def __init__(self, spec: EnvSpec, num_envs: int) -> None:
        self.spec = spec
        self.num_envs = num_envs
        self._state = _NEW
        self._rescale = ActionRescaler(spec, num_envs)
        _watch_forks(self)

    def reset(self, obs: Float32) -> None:
        """Start a new episode in every environment; see :class:`VectorEnv`."""
        if self._state != _NEW:
            self._require_ready("reset")
        self._check("obs", obs, (self.num_envs, self.spec.obs_dim), _F32)
        self._state = _BUSY
        self._reset(obs)
        self._state = _READY

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
            ShapeError: an array has the wrong type, shape or dtype, or cannot be written.
            NonFiniteError: an action is NaN or infinite.
        """
        self._require_ready("step")
        rows = (self.num_envs,)
        self._check("actions", actions, (self.num_envs, self.spec.act_dim), _F32, written=False)
        self._check("obs", obs, (self.num_envs, self.spec.obs_dim), _F32)
        self._check("rewards", rewards, rows, _F32)
        self._check("terminated", terminated, rows, _BOOL)
        self._check("truncated", truncated, rows, _BOOL)
        self._check("valid", valid, rows, _BOOL)
        if not np.isfinite(actions).all():
            bad = np.flatnonzero(~np.isfinite(actions).all(axis=1)).tolist()
            raise NonFiniteError(f"{self._name()}: actions of environments {bad} are not finite; nothing was stepped")
        scaled = self._rescale(actions)
        self._state = _BUSY
        self._step(scaled, obs, rewards, terminated, truncated, valid)
        if not valid.all():
            np.copyto(rewards, 0.0, where=~valid)  # whatever the simulator says of a step it did not take
        self._state = _READY

    def close(self) -> None:
        """Free the simulator's threads and processes; the second call does nothing, nor does one in a forked child."""
        if self._state in (_CLOSED, _FORKED):
            return
        interrupted = self._state == _BUSY
        self._state = _CLOSED
        self._close(interrupted=interrupted)

    @abstractmethod
    def _reset(self, obs: Float32) -> None:
        """Reset all environments, write ``obs``. Seeds apply once; a second reset goes on with the same streams."""

    @abstractmethod
    def _step(
        self, actions: Float32, obs: Float32, rewards: Float32, terminated: Bool, truncated: Bool, valid: Bool
    ) -> None:
        """Send ``actions`` (N, A) float32, finite, in the environment's units; write the other five."""

    @abstractmethod
    def _close(self, *, interrupted: bool) -> None:
        """Free the simulator; ``interrupted`` says that a call into it never came back."""

    def _name(self) -> str:
        return f"{self.spec.env_id} ({self.spec.backend})"

    def _require_ready(self, call: str) -> None:
        if self._state != _READY:
            raise EnvError(f"{self._name()}: {call}() refused: {_REFUSALS[self._state]}")

    def _check(
        self, name: str, array: Any, shape: tuple[int, ...], dtype: np.dtype[Any], *, written: bool = True
    ) -> None:
        if not isinstance(array, np.ndarray):
            raise ShapeError(f"{self._name()}: {name} must be a NumPy array, got {type(array).__name__}")
        if array.shape != shape or array.dtype != dtype:
            raise ShapeError(
                f"{self._name()}: {name} must be {shape} {dtype}, got {array.shape} {array.dtype}",
            )
        if written and not array.flags.writeable:
            raise ShapeError(f"{self._name()}: {name} is written to, got a read-only array")


_live: weakref.WeakSet[CheckedVectorEnv] = weakref.WeakSet()
_fork_hook_installed = False


def _watch_forks(env: CheckedVectorEnv) -> None:
    """Have a forked child refuse ``env``; the hook is installed with the first environment, not at import."""
    global _fork_hook_installed
    if not _fork_hook_installed and hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_disown_in_child)
        _fork_hook_installed = True
    _live.add(env)


def _disown_in_child() -> None:
    """Mark inherited environments unusable, and see that their destructors never run.

    The threads of a pool do not survive a fork: a step in the child hangs, and even freeing the pool on the way out is
    a segmentation fault. One reference that nobody gives back keeps it from being freed.
    """
    for env in list(_live):
        env._state = _FORKED
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(env))


def spec_from_spaces(
    env_id: str, backend: str, observation_space: Any, action_space: Any, max_episode_steps: int | None
) -> EnvSpec:
    """Describe an environment by its Gymnasium spaces.

    Bounds are rounded to float32 first, the type in which Gymnasium keeps them, so that both backends rescale alike.

    Raises:
        EnvError: a space is not a flat Box of floats.
    """
    for role, space in (("observation", observation_space), ("action", action_space)):
        if not _is_flat_float_box(space):
            raise EnvError(
                f"{env_id}: its {role} space {' '.join(str(space).split())} is not supported yet; "
                "allowed is a one-dimensional Box of float32 or float64 (no images, dicts, or discrete values)"
            )
    low, high = (np.asarray(bound, np.float32).astype(np.float64) for bound in (action_space.low, action_space.high))
    low.setflags(write=False)
    high.setflags(write=False)
    (obs_dim,), (act_dim,) = observation_space.shape, action_space.shape
    return EnvSpec(env_id, backend, obs_dim, act_dim, low, high, max_episode_steps)


def _is_flat_float_box(space: Any) -> bool:
    from gymnasium.spaces import Box

    return isinstance(space, Box) and len(space.shape) == 1 and space.shape[0] > 0 and space.dtype in (_F32, np.float64)
