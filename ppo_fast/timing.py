"""Wall-clock accounting: how long each phase of an iteration took."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any


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


def shares(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Return the share of each phase in the time that these rows of metrics account for; empty where they count none.

    ``physics`` is the share for which the run waited for the simulator. It is a cautious estimate of the share of the
    ceiling, what the environments alone would deliver, because asynchronous ones go on while the actor acts. In the 32
    rows of ``benchmarks/results/*/speed.json`` that hold both, it was lower by 0.04 at the median and by 0.23 at most,
    and never higher by more than 0.06.
    """
    seconds: dict[str, float] = {}
    for row in rows:
        for name, value in row.items():
            if name.startswith("time/"):
                phase = name.removeprefix("time/")
                seconds[phase] = seconds.get(phase, 0.0) + float(value or 0.0)
    whole = sum(seconds.values())
    return {phase: value / whole for phase, value in seconds.items()} if whole > 0 else {}
