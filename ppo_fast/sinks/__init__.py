"""Where metrics go: files, TensorBoard, Weights & Biases, and whatever a caller passes in."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from ppo_fast.errors import BackendError

log = logging.getLogger(__name__)

Metrics = dict[str, float | int | None]


class Sink(Protocol):
    """Receives every row of a run; steps are ``env_steps``. Nothing is opened or written before :meth:`start`."""

    def start(self, config: dict[str, Any], info: dict[str, Any]) -> None:
        """Take what is going to run."""

    def log(self, metrics: Metrics) -> None:
        """Take one iteration's row."""

    def evaluation(self, record: dict[str, Any]) -> None:
        """Take one evaluation: ``env_steps``, ``wall_s``, per-episode ``returns`` and ``lengths``."""

    def close(self) -> None:
        """Flush and free."""


class Callback:
    """What code of your own hears of a run, as ``Trainer(cfg, callbacks=[...])``: override what you want to hear.

    The calls come from the training loop, one after the other, and what they take counts as training time. One that
    raises is reported once and not called again; it never stops a run. What should: :meth:`Trainer.stop`.
    """

    def start(self, config: dict[str, Any], info: dict[str, Any]) -> None:
        """Hear what is going to run: the options, and versions, machine, backends as in ``run_info.json``."""

    def log(self, metrics: Metrics) -> None:
        """Hear of one iteration: the row of ``metrics.jsonl``."""

    def evaluation(self, record: dict[str, Any]) -> None:
        """Hear of one evaluation: ``env_steps``, ``wall_s``, per-episode ``returns`` and ``lengths``."""

    def close(self) -> None:
        """Hear that the run has ended, in whatever way."""


class RewindableSink(Sink, Protocol):
    """A sink that can take back rows: of a run that is rolled back."""

    def rewind(self, env_steps: int) -> None:
        """Forget the rows of later steps; they are about to come again."""


class Sinks:
    """Fan out to sinks; one that fails is reported once and dropped, and never stops a run."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = list(sinks)

    def start(self, config: dict[str, Any], info: dict[str, Any]) -> None:
        """Start every sink."""
        self._each(lambda sink: sink.start(config, info))

    def log(self, metrics: Metrics) -> None:
        """Give every sink one iteration's row."""
        self._each(lambda sink: sink.log(metrics))

    def evaluation(self, record: dict[str, Any]) -> None:
        """Give every sink one evaluation."""
        self._each(lambda sink: sink.evaluation(record))

    def sync(self) -> None:
        """Have every sink that keeps files wait for the disk."""
        self._each(lambda sink: sink.sync() if hasattr(sink, "sync") else None)

    def rewind(self, env_steps: int) -> None:
        """Have every sink that can forget the rows of later steps."""
        self._each(lambda sink: sink.rewind(env_steps) if hasattr(sink, "rewind") else None)

    def close(self) -> None:
        """Close every sink, once."""
        self._each(lambda sink: sink.close())
        self._sinks.clear()

    def _each(self, call: Callable[[Sink], None]) -> None:
        for sink in list(self._sinks):
            try:
                call(sink)
            except Exception as err:
                self._sinks.remove(sink)
                reason = " ".join(f"{type(err).__name__}: {err}".split())
                log.warning("%s failed and is switched off: %s", type(sink).__name__, reason)
                with contextlib.suppress(Exception):
                    sink.close()


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
