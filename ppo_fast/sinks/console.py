"""Progress as plain lines, every few seconds: for pipes, log files, and terminals that take no more."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Callable, Iterator
from typing import IO, TYPE_CHECKING, Any, cast

from ppo_fast.sinks import Metrics
from ppo_fast.sinks.progress import Evaluation, Pace, Progress, clock
from ppo_fast.timing import shares

if TYPE_CHECKING:
    from rich.console import Console

log = logging.getLogger(__name__)

_EVERY_S = 5.0


class _Lasting:
    """A file like another, but that a terminal which has been closed is what a pipe without a reader is to rich."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, text: str) -> int:
        with _closed_is_broken():
            return self._file.write(text)

    def flush(self) -> None:
        with _closed_is_broken():
            self._file.flush()


@contextlib.contextmanager
def _closed_is_broken() -> Iterator[None]:
    try:
        yield
    except OSError as err:
        if err.errno != errno.EIO:
            raise
        raise BrokenPipeError(errno.EPIPE, "the terminal has been closed") from None


def lasting_console(*, file: IO[str], **options: Any) -> Console:
    """Return a console that falls silent when nobody reads it any more, where rich's own would end the process."""
    from rich.console import Console

    class Lasting(Console):
        def on_broken_pipe(self) -> None:
            self.quiet = True
            nowhere = os.open(os.devnull, os.O_WRONLY)  # where what waits in the file's buffer goes, too
            os.dup2(nowhere, self.file.fileno())
            os.close(nowhere)
            log.warning("nobody reads the output any more; the run goes on")

    return Lasting(file=cast("IO[str]", _Lasting(file)), **options)


class ConsoleSink:
    """Write steps, share done, ETA, SPS, where the time goes, and returns.

    Args:
        total_timesteps: 100 %.
        write: prints one line.
    """

    def __init__(self, total_timesteps: int, write: Callable[[str], None]) -> None:
        self._write, self._pace = write, Pace(_EVERY_S)
        self.progress = Progress(total_timesteps)

    def start(self, config: dict[str, Any], info: dict[str, Any]) -> None:
        """Say what taking up the run has cost; the command prints the banner."""
        if replay := (info.get("taken_up") or {}).get("seconds") is not None and info["taken_up"]:
            self._write(
                f"environments replayed: {replay['resets']:,} resets and {replay['steps']:,} steps in "
                f"{replay['seconds']:.1f} s"
            )

    def log(self, metrics: Metrics) -> None:
        """Write one iteration's line, if it is the last one or some seconds after the one before."""
        self.progress.take(metrics)
        if self._pace.due() or self.progress.finished:
            self._write(line(self.progress))

    def evaluation(self, record: dict[str, Any]) -> None:
        """Write an evaluation's line."""
        self._write(evaluation_line(self.progress.take_evaluation(record)))

    def rewind(self, env_steps: int) -> None:
        """Estimate from there."""
        self.progress.rewind(env_steps)

    def close(self) -> None:
        """Nothing to free."""


def line(progress: Progress) -> str:
    """Return the progress in one line."""
    row, left = progress.row, progress.seconds_left
    phases = shares([row])
    parts = " ".join(f"{name} {phases.get(name, 0.0):.0%}" for name in ("physics", "act", "update"))
    shown = "-" if row["episode_return"] is None else f"{row['episode_return']:.0f}"
    return (
        f"{progress.steps:>11,} steps {100 * progress.share:5.1f}%  ETA {'-' if left is None else clock(left)}  "
        f"{row['sps']:>7,.0f} SPS  return {shown:>6}  {parts}  KL {row['approx_kl']:.4f}"
    )


def evaluation_line(of: Evaluation) -> str:
    """Return an evaluation in one line."""
    return (
        f"{of.env_steps:>11,} steps  evaluation over {of.episodes} episodes: "
        f"mean {of.mean:.1f}, std {of.std:.1f}, min {of.low:.1f}, max {of.high:.1f}"
    )
