"""The errors a user can meet, each a subclass of the built-in error it specialises.

Command-line modules turn every :class:`PPOFastError` into one line on stderr and its exit code.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import ClassVar


class PPOFastError(Exception):
    """Base of all errors raised on purpose by ppo_fast."""

    exit_code: ClassVar[int] = 2  # something was asked for that cannot be had


class ConfigError(PPOFastError, ValueError):
    """An option has a value that is not allowed, or two options contradict each other."""


class BackendError(PPOFastError, ImportError):
    """A backend that was asked for by name cannot be had; the message says why."""


class ShapeError(PPOFastError, ValueError):
    """An array has the wrong shape, dtype or memory layout."""


class EnvError(PPOFastError, ValueError):
    """An environment is unknown, unsupported, or was used against its contract."""


class CheckpointError(PPOFastError, ValueError):
    """A checkpoint is missing, damaged, or of another format."""


class LostError(CheckpointError):
    """No checkpoint of a run is good, or its last one could not be written."""

    exit_code = 3


class PeerError(PPOFastError, ConnectionError):
    """Another process of the run has ended, cannot be reached, or has come to other numbers."""

    exit_code = 4


class NonFiniteError(PPOFastError, FloatingPointError):
    """NaN or infinity appeared in a quantity that must be finite.

    Args:
        message: what, and where.
        places: (step, environment) of each row, where it was found in rows; steps count from the run's first.
    """

    exit_code = 1  # a run that had begun was stopped

    def __init__(self, message: str, places: Iterable[tuple[int, int]] = ()) -> None:
        super().__init__(message)
        self.places = list(places)


def did_you_mean(word: str, known: Iterable[str], *, limit: int = 3) -> str:
    """Return ``" (did you mean 'a' or 'b'?)"`` for the known words nearest to ``word``, or ``""``."""
    names = list(known)
    by_lower = {name.lower(): name for name in names}
    near = difflib.get_close_matches(word.lower(), list(by_lower), n=limit, cutoff=0.6)
    if not near:
        return ""
    return f" (did you mean {' or '.join(repr(by_lower[n]) for n in near)}?)"
