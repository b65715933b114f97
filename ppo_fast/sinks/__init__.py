"""Where metrics go: files, TensorBoard, Weights & Biases, and whatever a caller passes in."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from ppo_fast.errors import BackendError

log = logging.getLogger(__name__)

Metrics = dict[str, float | int | None]


class Sink(Protocol):
    """Receives every row of a run; steps are ``env_steps``."""

    def start(self, config: dict[str, Any], info: dict[str, Any]) -> None:
        """Take what is going to run."""

    def log(self, metrics: Metrics) -> None:
        """Take one iteration's row."""

    def evaluation(self, record: dict[str, Any]) -> None:
        """Take one evaluation: ``env_steps``, ``wall_s``, per-episode ``returns`` and ``lengths``."""

    def close(self) -> None:
        """Flush and free."""


class Sinks:
    """Fan out to sinks; one that fails is reported once and dropped, and never stops a run."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = list(sinks)

    def __getattr__(self, call: str) -> Callable[..., None]:
        if call not in ("start", "log", "evaluation", "close"):
            raise AttributeError(call)

        def fan_out(*args: Any) -> None:
            for sink in list(self._sinks):
                try:
                    getattr(sink, call)(*args)
                except Exception as err:
                    log.warning("%s failed and is switched off: %s", type(sink).__name__, err)
                    self._sinks.remove(sink)

        return fan_out


def make(names: Sequence[str], run_dir: Path) -> list[Sink]:
    """Return the sinks that ``names`` ask for beside the files.

    Raises:
        BackendError: a sink's package is not installed.
    """
    sinks: list[Sink] = []
    for name in names:
        try:
            if name == "tensorboard":
                from ppo_fast.sinks.tensorboard import TensorBoardSink

                sinks.append(TensorBoardSink(run_dir))
            elif name == "wandb":
                from ppo_fast.sinks.wandb import WandbSink

                sinks.append(WandbSink(run_dir))
        except ImportError as err:
            raise BackendError(f"--log {name}: {err}; pip install {name}, or leave it out of --log") from err
    return sinks
