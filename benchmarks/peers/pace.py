"""The child's half of a lane: a training loop stands still except when its parent lets it go for some iterations.

Standard library only: the scripts that use it run in their own virtual environments. The parent's half is ``child.py``.
Both speak JSON lines: the parent sends a number of iterations, the child answers when they are done.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
from collections.abc import Callable
from time import perf_counter
from typing import Any


class Pace:
    """Stop the loop that calls :meth:`iteration` until the parent says how far to go.

    Args:
        asked: the parent's :func:`job`; its ``warm_up`` iterations come before the first answer, which says that the
            loop is ready.
        facts: called for every answer, outside the timed stretch: what else to tell the parent.

    """

    def __init__(self, asked: dict[str, Any], facts: Callable[[], dict[str, Any]]) -> None:
        self._answers = os.fdopen(asked["answers"], "w", buffering=1)  # a pipe of its own: trainers print to stdout
        self._facts, self._left = facts, asked["warm_up"]
        self._start, self._before = perf_counter(), 0

    def iteration(self, env_steps: int) -> None:
        """Count one rollout with its update; ``env_steps`` are the real transitions since the run began.

        Raises:
            SystemExit: the parent has closed the pipe.
        """
        self._left -= 1
        if self._left:
            return
        end = perf_counter()
        answer = {"env_steps": env_steps - self._before, "seconds": end - self._start, "facts": self._facts()}
        print(json.dumps(answer), file=self._answers)
        line = sys.stdin.readline()
        if not line:
            raise SystemExit
        self._left, self._before = int(line), env_steps
        self._start = perf_counter()


def job() -> dict[str, Any]:
    """Return what the parent wants done: the only argument, a JSON object."""
    asked: dict[str, Any] = json.loads(sys.argv[1])
    return asked


def versions(*packages: str) -> dict[str, str]:
    """Return the installed versions of the packages."""
    return {package: importlib.metadata.version(package) for package in packages}
