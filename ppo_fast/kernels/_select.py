"""Which implementation of the kernels runs: chosen once, here, at first use.

``use(name)`` beats the environment variable ``PPO_FAST_BACKEND``, which beats ``auto``. A backend asked for by name is
used or is an error; only ``auto`` falls back, cpp → numba → reference, and says so in the log.
"""

from __future__ import annotations

import importlib
import logging
import os
from typing import Any, Protocol, cast

from ..errors import BackendError, did_you_mean

ORDER = ("cpp", "numba", "reference")
_CHOICES = ("auto", *ORDER)
_log = logging.getLogger(__name__)


class Backend(Protocol):
    """What each of ``_cpp``, ``_numba`` and ``_reference`` provides: outputs are given, arguments are not checked."""

    def gae_into(
        self,
        rewards: Any,
        values: Any,
        next_values: Any,
        terminated: Any,
        done: Any,
        gamma: float,
        gae_lambda: float,
        advantages: Any,
        returns: Any,
    ) -> None:
        """Fill advantages and returns, (T, N) float32."""

    def permutation_into(self, out: Any, seed: int, stream: int) -> None:
        """Fill out, (n,) int64."""

    def gather_into(self, source: Any, index: Any, out: Any) -> None:
        """Fill out (M, D) float32 with the rows of source (B, D) that index (M,) int64 names."""

    def moments_into(self, count: Any, mean: Any, m2: Any, rows: Any, valid: Any) -> None:
        """Merge the valid rows into count (1,), mean (D,), m2 (D,)."""

    def normals_into(self, env_ids: Any, steps: Any, seed: int, out: Any) -> None:
        """Fill out, (n, dim) float64."""

    def uniforms_into(self, env_ids: Any, steps: Any, seed: int, out: Any) -> None:
        """Fill out, (n, dim) float64."""


_loaded: dict[str, Backend] = {}
_reasons: dict[str, str] = {}
_active: str | None = None


def _load(name: str) -> Backend:
    """Import one backend, or raise BackendError with the reason; either outcome is remembered."""
    if name in _loaded:
        return _loaded[name]
    if name not in _reasons:
        try:
            _loaded[name] = cast(Backend, importlib.import_module(f"._{name}", __package__))
            return _loaded[name]
        except ImportError as err:  # BackendError, with the reason, is one of these
            _reasons[name] = str(err)
    raise BackendError(f"kernel backend {name!r} cannot be used: {_reasons[name]}")


def _select(requested: str, source: str) -> str:
    """Return the name of the backend that ``requested`` stands for, loaded."""
    if requested not in _CHOICES:
        hint = did_you_mean(requested, _CHOICES)
        raise BackendError(f"{source} must be one of {', '.join(_CHOICES)}, got {requested!r}{hint}")
    if requested != "auto":
        _load(requested)
        return requested
    for name in ORDER:
        try:
            _load(name)
        except BackendError:
            continue
        if name != "cpp":
            level = logging.INFO if name == "numba" else logging.WARNING
            reasons = "; ".join(f"{missing}: {reason}" for missing, reason in _reasons.items())
            _log.log(level, "kernels run on the %s backend (%s)", name, reasons)
        return name
    raise AssertionError("the reference backend always loads")


def use(name: str) -> None:
    """Select the kernels' backend for this process, now, whatever ``PPO_FAST_BACKEND`` says.

    Args:
        name: ``auto``, ``cpp``, ``numba`` or ``reference``.

    Raises:
        BackendError: the name is unknown, or that backend cannot be had; the selection is then as before.
    """
    global _active
    _active = _select(name, "kernel backend")


def active() -> str:
    """Return the selected backend, ``cpp``, ``numba`` or ``reference``; the first call selects.

    Raises:
        BackendError: ``PPO_FAST_BACKEND`` names an unknown backend, or one that cannot be had.
    """
    global _active
    if _active is None:
        _active = _select(os.environ.get("PPO_FAST_BACKEND") or "auto", "PPO_FAST_BACKEND")
    return _active


def backend() -> Backend:
    """Return the selected backend's functions."""
    return _loaded[_active if _active is not None else active()]


def why_not() -> dict[str, str]:
    """Return the reason for each backend that cannot be had; loads each once, so the first call imports Numba."""
    for name in ORDER:
        try:
            _load(name)
        except BackendError:
            continue
    return passed_over()


def passed_over() -> dict[str, str]:
    """Return the reason for each backend that was tried so far and cannot be had; loads nothing."""
    return {name: _reasons[name] for name in ORDER if name in _reasons}


def available() -> dict[str, bool]:
    """Return which backends load, found by loading them."""
    missing = why_not()
    return {name: name not in missing for name in ORDER}
