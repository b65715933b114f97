"""What every adapter does between its making and its closing: checks at the door, one order of calls, no forks."""

from __future__ import annotations

import ctypes
import os
import weakref
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ppo_fast.errors import EnvError, NonFiniteError, ShapeError

if TYPE_CHECKING:
    from ppo_fast.envs.base import EnvSpec

F32, F64, I32, BOOL = np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.int32), np.dtype(np.bool_)

# States of an adapter. "busy" outside a call means that the call was cut short: where the simulator stands is unknown.
NEW, READY, SENT, BUSY, CLOSED, FORKED = "new", "ready", "sent", "busy", "closed", "forked"
_REFUSALS = {
    NEW: "reset() must come first",
    READY: "no action is unanswered: send() must come first",
    SENT: "an action that was sent is not answered: recv() must come first",
    BUSY: "an earlier call did not finish (interrupted, failed, or still running in another thread), so the simulator "
    "may be one step off: close this one and make a new one",
    CLOSED: "it is closed: make a new one",
    FORKED: "it was made before this process was forked and cannot be used here: make it in the process that steps "
    "it, or start that process with the 'spawn' method",
}


class CheckedEnv(ABC):
    """The door of an adapter: checks what the caller gives, and refuses to go on from an unknown state.

    A subclass may trust the arguments of its private methods. Nothing reaches the simulator from a call that raises
    ShapeError or NonFiniteError.

    Args:
        spec: the environment.
        num_envs: N.
    """

    def __init__(self, spec: EnvSpec, num_envs: int) -> None:
        self.spec = spec
        self.num_envs = num_envs
        self._state = NEW
        _watch_forks(self)

    def reset(self, obs: NDArray[np.float32]) -> None:
        """Start a new episode in every environment and write its first observation into ``obs``, (N, D) float32.

        Raises:
            EnvError: after close(), in a forked child, after a call that did not finish, or with an action unanswered.
            ShapeError: ``obs`` has the wrong type, shape or dtype, or cannot be written.
        """
        self._require("reset", NEW, READY)
        self._check("obs", obs, (self.num_envs, self.spec.obs_dim), F32)
        self._state = BUSY
        self._reset(obs)
        self._state = READY

    def close(self) -> None:
        """Free the simulator's threads and processes; the second call does nothing, nor does one in a forked child."""
        if self._state in (CLOSED, FORKED):
            return
        interrupted = self._state == BUSY
        self._state = CLOSED
        self._close(interrupted=interrupted)

    @abstractmethod
    def _reset(self, obs: NDArray[np.float32]) -> None:
        """Reset all environments, write ``obs``. Seeds apply once; a second reset goes on with the same streams."""

    @abstractmethod
    def _close(self, *, interrupted: bool) -> None:
        """Free the simulator; ``interrupted`` says that a call into it never came back."""

    def _name(self) -> str:
        return f"{self.spec.env_id} ({self.spec.backend})"

    def _require(self, call: str, *states: str) -> None:
        if self._state not in states:
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

    def _check_actions(self, actions: NDArray[np.floating[Any]], env_ids: NDArray[np.int32]) -> None:
        """Refuse NaN, infinity and what is no index in ``actions`` (b, A), whose rows belong to ``env_ids`` (b,)."""
        finite = np.isfinite(actions)
        if np.count_nonzero(finite) < finite.size:  # three times as fast as finite.all() on a few hundred numbers
            bad = env_ids[~finite.all(axis=1)].tolist()
            raise NonFiniteError(f"{self._name()}: actions of environments {bad} are not finite; nothing was stepped")
        if count := self.spec.num_actions:
            wrong = (actions < 0) | (actions >= count) | (actions != np.floor(actions))
            if wrong.any():
                raise ShapeError(
                    f"{self._name()}: actions must be indices 0 ... {count - 1}, got {float(actions[wrong][0])!r} of "
                    f"environment {env_ids[wrong[:, 0]][0]}; nothing was stepped"
                )


_live: weakref.WeakSet[CheckedEnv] = weakref.WeakSet()
_fork_hook_installed = False


def _watch_forks(env: CheckedEnv) -> None:
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
        env._state = FORKED
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(env))
