"""A view of a run that stays in its place on the terminal, and words that must stay above it.

It is drawn by the thread that trains, between two iterations: there is no other one that could outlive the run, or take
time from the simulator.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ppo_fast.sinks import Metrics
from ppo_fast.sinks.console import ConsoleSink
from ppo_fast.sinks.progress import Pace
from ppo_fast.sinks.view import Line, frame
from ppo_fast.symptoms import Symptom

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.live import Live

log = logging.getLogger(__name__)

_EVERY_S = 1 / 8
_COST = 0.003  # of the time of the run: a view takes 1 to 5 ms, and is drawn less often where it takes longer


def can_be_live(console: Console) -> bool:
    """Return whether ``console`` is a terminal that can replace lines and show block characters."""
    # Both: FORCE_COLOR makes rich take a pipe for a terminal, and would fill a log file with frames.
    return console.is_interactive and console.file.isatty() and not console.options.ascii_only


class _Lines:
    """Lines that fit, for rich: a quarter of the work of texts, which it would wrap again."""

    def __init__(self, lines: Sequence[Line]) -> None:
        self._lines = lines

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.segment import Segment

        for line in self._lines:
            for words, style in line:
                yield Segment(words, console.get_style(style) if style else None)
            yield Segment.line()


class LiveSink(ConsoleSink):
    """Show the run in place; go on in plain lines if that fails or is interrupted.

    ``title`` and ``place`` are set before the run: as :func:`~ppo_fast.sinks.view.frame` takes them.

    Args:
        total_timesteps: 100 %.
        console: one that :func:`can_be_live`.
        symptoms: returns what is wrong now, the gravest first.
    """

    title = place = ""

    def __init__(self, total_timesteps: int, console: Console, symptoms: Callable[[], Sequence[Symptom]]) -> None:
        super().__init__(total_timesteps, lambda line: console.print(line, markup=False))
        self._console, self._symptoms = console, symptoms
        self._draw_pace = Pace(_EVERY_S, _COST)
        self._live: Live | None = None
        self._over = self._busy = False
        self._size = console.size
        self._rerouted: list[logging.StreamHandler[Any]] = []
        self._to_say: Callable[[], None] | None = None

    def log(self, metrics: Metrics) -> None:
        """Show one iteration, at most 8 a second."""
        with self._undisturbed():
            if self._over:
                super().log(metrics)
                return
            self.progress.take(metrics)
            if self._draw_pace.due() or self.progress.finished:
                self._draw()

    def evaluation(self, record: dict[str, Any]) -> None:
        """Write an evaluation's line above the view."""
        with self._undisturbed():
            super().evaluation(record)
            if self._live:  # with the evaluation in it
                self._draw()

    def close(self) -> None:
        """Leave the last view where it is, and the terminal as it was."""
        self._over = True
        self._end()

    def interrupt(self, say: Callable[[], None]) -> None:
        """End the view before ``say`` writes to the terminal past it; may be called from a signal handler."""
        self._to_say = say
        if not self._busy:  # else when what is being drawn is drawn
            self._say()

    @contextlib.contextmanager
    def _undisturbed(self) -> Iterator[None]:
        self._busy = True
        try:
            yield
        finally:
            self._busy = False
            if self._to_say:
                self._say()

    def _say(self) -> None:
        say, self._to_say = self._to_say, None
        self._over = True
        with contextlib.suppress(Exception):
            self._end()
        if say:
            say()

    # --- the terminal ------------------------------------------------------------------------------------------------
    def _draw(self) -> None:
        try:
            if self._live and self._console.size != self._size:
                # Nobody can know where the lines of the view are now: terminals wrap them anew, or do not.
                self._end()
                self._console.clear()
            if self._live is None:
                self._begin()
            assert self._live is not None
            width, height = self._size
            started = time.perf_counter()
            lines = frame(self.title, self.place, self.progress, self._symptoms(), width=width, height=height - 1)
            self._live.update(_Lines(lines), refresh=True)
            self._draw_pace.took(time.perf_counter() - started)
        except Exception as err:
            self._over = True
            with contextlib.suppress(Exception):
                self._end()
            reason = " ".join(f"{type(err).__name__}: {err}".split())
            log.warning("the live view failed and is switched off, plain lines follow: %s", reason)

    def _begin(self) -> None:
        from rich.live import Live

        self._size = self._console.size
        terminal = sys.stderr
        shared = terminal.isatty()  # else what is logged goes where the user sent it
        self._live = Live(console=self._console, auto_refresh=False, redirect_stderr=shared, vertical_overflow="crop")
        self._live.start()
        self._console.show_cursor(True)  # which rich hides, and a process that is killed could not show again
        if shared:  # rich replaces sys.stderr, but a handler keeps the stream that it was made with
            self._rerouted = [
                handler
                for handler in logging.getLogger().handlers
                if isinstance(handler, logging.StreamHandler) and handler.stream is terminal
            ]
            for handler in self._rerouted:
                handler.setStream(sys.stderr)

    def _end(self) -> None:
        live, self._live = self._live, None
        if live is None:
            return
        try:
            live.stop()  # puts sys.stderr back
        finally:
            for handler in self._rerouted:
                handler.setStream(sys.stderr)
            self._rerouted = []
