"""How far a run is, from the rows it has logged: for the lines and for the live view, which know no more than this."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import numpy as np

from ppo_fast.sinks import Metrics
from ppo_fast.timing import shares

RECENT = 10  # rows over which the speed and the shares of the phases are averaged
KEPT = 512  # points of a history; more are thinned out


class Progress:
    """Keep what a reader wants to know of the rows and evaluations so far.

    Args:
        total_timesteps: 100 %.
    """

    def __init__(self, total_timesteps: int) -> None:
        self.total = total_timesteps
        self.row: Metrics = {}
        self.steps, self.wall_s = 0, 0.0
        self.returns, self.lengths = History(), History()
        self._evaluations: list[Evaluation] = []
        self._from: tuple[int, float] | None = None
        self._recent: deque[Metrics] = deque(maxlen=RECENT)

    def take(self, row: Metrics) -> None:
        """Take one iteration's row."""
        self.row = row
        self.steps, self.wall_s = int(row["env_steps"] or 0), float(row["wall_s"] or 0.0)
        if self._from is None:  # the first row holds the compilation, which says nothing of the time to come
            self._from = (self.steps, self.wall_s)
        self._recent.append(row)
        self.returns.add(self.steps, row["episode_return"])
        self.lengths.add(self.steps, row.get("episode_length"))

    def take_evaluation(self, record: dict[str, Any]) -> Evaluation:
        """Take one evaluation, and return it."""
        self._evaluations.append(Evaluation(record))
        return self._evaluations[-1]

    @property
    def last(self) -> Evaluation | None:
        """The last evaluation; None before there is one."""
        return self._evaluations[-1] if self._evaluations else None

    @property
    def best(self) -> Evaluation | None:
        """The evaluation with the highest mean, the first of equals."""
        return max(self._evaluations, key=lambda evaluation: evaluation.mean, default=None)

    def rewind(self, env_steps: int) -> None:
        """Forget what came after ``env_steps``, and estimate from there."""
        self._from = None
        self._recent.clear()
        self.returns.rewind(env_steps)
        self.lengths.rewind(env_steps)
        self._evaluations = [each for each in self._evaluations if each.env_steps <= env_steps]

    @property
    def share(self) -> float:
        """Share of the run that is done, at most 1."""
        return min(self.steps / self.total, 1.0)

    @property
    def finished(self) -> bool:
        """Whether no row will follow."""
        return self.steps >= self.total

    @property
    def seconds_left(self) -> float | None:
        """At the mean speed since this process began to train; None before there is one."""
        if self._from is None or self.steps <= self._from[0]:
            return None
        seconds = max(self.wall_s - self._from[1], 1e-9)
        return max(self.total - self.steps, 0) * seconds / (self.steps - self._from[0])

    @property
    def sps(self) -> float:
        """Env steps per second over the last rows; 0 before there is one."""
        if not self._recent:
            return 0.0
        first, last = self._recent[0], self._recent[-1]
        seconds = float(last["wall_s"] or 0.0) - float(first["wall_s"] or 0.0)
        return (self.steps - int(first["env_steps"] or 0)) / seconds if seconds > 0 else float(last["sps"] or 0.0)

    @property
    def shares(self) -> dict[str, float]:
        """Share of each phase in the time of the last rows (:func:`ppo_fast.timing.shares`)."""
        return shares(self._recent)


class Evaluation:
    """Statistics over the episodes of one evaluation."""

    def __init__(self, record: dict[str, Any]) -> None:
        returns = np.array(record["returns"])
        self.env_steps, self.episodes = int(record["env_steps"]), len(returns)
        self.mean, self.low, self.high = float(returns.mean()), float(returns.min()), float(returns.max())
        self.std = float(returns.std(ddof=1)) if len(returns) > 1 else 0.0


class History:
    """Values over steps; thinned out when there are more than could be drawn."""

    def __init__(self) -> None:
        self.latest: float | None = None
        self.highest: float | None = None
        self._points: list[tuple[int, float]] = []
        self._every, self._skipped = 1, 0

    def add(self, step: int, value: float | None) -> None:
        """Take one value; None is no value."""
        if value is None:
            return
        self.latest = float(value)
        self.highest = self.latest if self.highest is None else max(self.highest, self.latest)
        self._skipped += 1
        if self._skipped >= self._every:
            self._points.append((step, float(value)))
            self._skipped = 0
        if len(self._points) > KEPT:
            self._points, self._every = self._points[::2], 2 * self._every

    def rewind(self, step: int) -> None:
        """Forget what came after ``step``."""
        self._points = [point for point in self._points if point[0] <= step]
        values = [value for _, value in self._points]
        self.latest, self.highest = (values[-1], max(values)) if values else (None, None)

    def values(self, width: int) -> list[float]:
        """Return at most ``width`` values, means of neighbours where there are more."""
        values = np.array([value for _, value in self._points])
        edges = np.linspace(0, len(values), min(width, len(values)), endpoint=False).astype(int)
        if not len(edges):
            return []
        means: list[float] = (np.add.reduceat(values, edges) / np.diff(edges, append=len(values))).tolist()
        return means


class Pace:
    """Say when it is time again.

    Args:
        every_s: seconds between two times, at least.
        cost: what is done then may take this share of all time.
    """

    def __init__(self, every_s: float, cost: float = 1.0) -> None:
        self._every, self._cost, self._next = every_s, cost, 0.0

    def due(self) -> bool:
        """Return whether it is time, and if so begin to wait again."""
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + self._every
        return True

    def took(self, seconds: float) -> None:
        """Take how long it took what was due."""
        self._next = max(self._next, time.monotonic() + seconds / self._cost)


def clock(seconds: float) -> str:
    """Return ``m:ss`` or ``h:mm:ss``."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"
