"""When a run is saved, with what, and what happens when the disk refuses."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppo_fast import checkpoint
from ppo_fast.config import Config
from ppo_fast.errors import CheckpointError
from ppo_fast.parts import Parts
from ppo_fast.timing import PhaseTimer

log = logging.getLogger(__name__)

Obs = NDArray[np.float32]

_RETRY_S = 10.0  # between attempts to write a checkpoint that the disk refuses


class Saver:
    """Write the checkpoints of a run.

    Args:
        directory: where they go.
        cfg: the run's options.
        parts: what is saved.
        facts: JSON-ready values that every checkpoint holds beside them.
        timer: receives the phase ``checkpoint``.
        sync: waits until the disk has the rows that were logged before.

    Everywhere ``obs`` are the observations, (N, D) float32, that the next rollout starts from.
    """

    def __init__(
        self,
        directory: Path,
        cfg: Config,
        parts: Parts,
        facts: dict[str, Any],
        timer: PhaseTimer,
        sync: Callable[[], None],
    ) -> None:
        self._sync = sync
        self._directory, self._cfg, self._parts, self._facts, self._timer = directory, cfg, parts, facts, timer
        self._failed_at = -math.inf

    def due(self, every: int, last: int, steps: int | None = None) -> bool:
        """Return whether ``every`` env steps (0: never) have passed since step ``last``; the run's end has its own.

        Args:
            every, last: env steps.
            steps: where the run is; None: where it is now.
        """
        steps = self._parts.state.env_steps if steps is None else steps
        return bool(every) and steps < self._cfg.total_timesteps and steps // every != last // every

    def something_due(self, steps: int) -> bool:
        """Return whether at step ``steps`` the run ends, or an evaluation or a checkpoint is due."""
        cfg, state = self._cfg, self._parts.state
        return (
            steps >= cfg.total_timesteps
            or self.due(cfg.eval_every, state.evaluated_at, steps)
            or self.due(cfg.checkpoint_every, state.saved_at, steps)
            or self._first_is_due()
        )

    def _first_is_due(self) -> bool:
        """Return whether there must be a checkpoint to go back to, and is none."""
        return self._cfg.on_nan == "rollback" and not self._parts.state.saved_at

    def is_saved(self) -> bool:
        """Return whether there is a checkpoint of the present step."""
        path = checkpoint.path_of(self._directory, self._parts.state.env_steps)
        return self._first(path.exists)

    def save(self, obs: Obs, *, last: bool = False) -> None:
        """Write a checkpoint, atomically: of everything, or of everything but the simulators where they restart.

        Where there are several processes, the first writes what all of them have.

        Raises:
            CheckpointError: it cannot be written; the earlier ones still are there.
        """
        state = self._parts.state
        before, state.saved_at = state.saved_at, state.env_steps
        packed = self._parts.pack(obs)
        packed["state"] |= self._facts | {"config": self._cfg.to_dict(), "last": last}
        try:
            self._parts.peers.first(lambda: self._write(packed))
        except CheckpointError:
            state.saved_at = before
            raise

    def _write(self, packed: dict[str, Any]) -> bytes:
        state = self._parts.state
        self._sync()
        checkpoint.save(
            self._directory, state.env_steps, **packed, keep=self._cfg.keep_checkpoints, best=state.best_step
        )
        return b""

    def _first(self, ask: Callable[[], bool]) -> bool:
        """Return the first process's answer in all of them, since neither clocks nor directories are alike."""
        return bool(self._parts.peers.first(lambda: b"1" if ask() else b""))

    def save_if_due(self, obs: Obs, *, also: bool) -> bool:
        """Write a checkpoint if it is time, or ``also`` says so; return False if it was not written.

        A disk that refuses stops nothing: it is said aloud, and tried again after some seconds.
        """
        cfg, state = self._cfg, self._parts.state
        if not (also or self._first_is_due() or self.due(cfg.checkpoint_every, state.saved_at)):
            return True
        if self._first(lambda: time.monotonic() - self._failed_at < _RETRY_S):
            return False
        try:
            with self._timer("checkpoint"):
                self.save(obs)
        except CheckpointError as err:
            self._failed_at = time.monotonic()
            log.warning("%s; TRAINING GOES ON, and the checkpoints written before are whole", err)
            return False
        return True

    def save_last(self, obs: Obs) -> str:
        """Write the last checkpoint; return why it could not be, empty if it was."""
        try:
            self.save(obs, last=True)
        except CheckpointError as err:
            log.warning("%s", err)
            return str(err)
        return ""
