"""Wall-clock accounting: how long each phase of an iteration took."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class PhaseTimer:
    """Add up seconds per named phase until they are taken."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Count the body of a ``with`` block towards ``phase``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(phase, time.perf_counter() - start)

    def add(self, phase: str, seconds: float) -> None:
        """Count ``seconds`` towards ``phase`` (for inner loops, where a context manager would cost)."""
        self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds

    def take(self) -> dict[str, float]:
        """Return the seconds per phase since the last call, and start again."""
        taken, self.seconds = self.seconds, {}
        return taken
