"""The errors a user can meet, each a subclass of the built-in error it specialises.

Command-line modules turn every :class:`PPOFastError` into one line on stderr and exit code 2, except
:class:`NonFiniteError`, which stops a run that had begun (exit code 1).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PPOFastError(Exception):
    """Base of all errors raised on purpose by ppo_fast."""


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


class NonFiniteError(PPOFastError, FloatingPointError):
    """NaN or infinity appeared in a quantity that must be finite."""


def did_you_mean(word: str, known: Iterable[str], *, limit: int = 3) -> str:
    """Return ``" (did you mean 'a' or 'b'?)"`` for the known words nearest to ``word``, or ``""``."""
    names = list(known)
    by_lower = {name.lower(): name for name in names}
    near = difflib.get_close_matches(word.lower(), list(by_lower), n=limit, cutoff=0.6)
    if not near:
        return ""
    return f" (did you mean {' or '.join(repr(by_lower[n]) for n in near)}?)"
