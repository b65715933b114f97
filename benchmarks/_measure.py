"""How things are timed here: interleaved rounds, training loops that can be paused, and a watch on the machine."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

OTHERS_ALLOWED = 0.05  # share of the CPUs that other programs (and the hypervisor) may take
SPREAD_ALLOWED = 1.2  # slow tenth over fast tenth of the calibration loop


@dataclass(frozen=True)
class Sample:
    """One timed stretch of work."""

    env_steps: int  # real transitions: never x frame_skip, reset rows not counted
    seconds: float
    phases: dict[str, float] = field(default_factory=dict)  # seconds by part, where known

    @property
    def rate(self) -> float:
        """Env steps per second."""
        return self.env_steps / self.seconds


Lane = Callable[[], Sample]


def timed(work: Callable[[], int]) -> Lane:
    """Make a lane of ``work``, which returns the number of env steps it took."""

    def lane() -> Sample:
        start = perf_counter()
        env_steps = work()
        return Sample(int(env_steps), perf_counter() - start)

    return lane


def interleave(lanes: dict[str, Lane], rounds: int, machine: Machine) -> dict[str, list[Sample]]:
    """Run each lane once untimed, then all in turn, A B C A B C ..., so that a slow minute hits all of them."""
    for lane in lanes.values():
        lane()
    samples: dict[str, list[Sample]] = {name: [] for name in lanes}
    for _ in range(rounds):
        with machine.watch():
            for name, lane in lanes.items():
                samples[name].append(lane())
    return samples


class Paced:
    """A training loop, run by a thread of its own, that stands still except when it is let go for some iterations.

    So a real loop can take its turn between others: nothing of it is rewritten here.

    Args:
        run: the loop; calls its argument with a row of metrics, which has ``env_steps``, after every iteration.

    """

    def __init__(self, run: Callable[[Callable[[dict[str, Any]], None]], None]) -> None:
        self._go, self._paused = threading.Semaphore(0), threading.Semaphore(0)
        self._left, self._rows, self._error = 1, [], None
        self._start = self._end = perf_counter()
        self._closing = False
        self._thread = threading.Thread(target=self._main, args=(run,), daemon=True)
        self._thread.start()
        self._wait()  # until its first iteration, the warm-up, is over

    def advance(self, iterations: int) -> Sample:
        """Let the loop go for ``iterations``; the clock starts when it does and stops with its last row."""
        before = self._rows[-1]["env_steps"]
        self._left, self._rows = iterations, []
        self._go.release()
        self._wait()
        phases: dict[str, float] = {}
        for row in self._rows:
            for name, value in row.items():
                if name.startswith("time/"):
                    phases[name.removeprefix("time/")] = phases.get(name.removeprefix("time/"), 0.0) + value
        return Sample(int(self._rows[-1]["env_steps"] - before), self._end - self._start, phases)

    def lane(self, iterations: int) -> Lane:
        """Return a lane of ``iterations``."""
        return lambda: self.advance(iterations)

    def close(self) -> None:
        """End the loop at its next iteration and wait for it."""
        self._closing = True
        self._go.release()
        self._thread.join()

    def _main(self, run: Callable[[Callable[[dict[str, Any]], None]], None]) -> None:
        try:
            run(self._report)
            raise RuntimeError("the training loop ended before the benchmark did")
        except _Close:
            pass
        except BaseException as error:
            self._error = error
            self._paused.release()

    def _report(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        self._left -= 1
        if self._left == 0:
            self._end = perf_counter()
            self._paused.release()
            self._go.acquire()
            if self._closing:
                raise _Close
            self._start = perf_counter()

    def _wait(self) -> None:
        self._paused.acquire()
        if self._error is not None:
            raise self._error


class _Close(BaseException):
    """Ends a paced loop; no ``except Exception`` on its way takes it for a failure."""


class Machine:
    """Notice whether other work runs on the CPUs that this process may use.

    Args:
        cpus: how many it may use.

    """

    def __init__(self, cpus: int) -> None:
        self.cpus = cpus
        self.peaks: dict[str, list[float]] = {}  # FLOP/s of one core by SIMD level, before every round; see _limit.py
        self.load_average = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
        self.calibration: list[float] = []  # seconds of a fixed piece of work, before every round
        self.children: Callable[[], float] = lambda: 0.0  # CPU seconds of child processes that are still running
        self._others = self._capacity = 0.0  # CPU seconds

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Calibrate, then account the body's CPU time."""
        for level, flops in measure_peaks().items():
            self.peaks.setdefault(level, []).append(flops)
        self.calibration.append(self._spin())
        start, busy, own = perf_counter(), _busy_seconds(), self._own_seconds()
        yield
        if busy is not None:
            self._others += (_busy_seconds() or 0.0) - busy - (self._own_seconds() - own)
            self._capacity += (perf_counter() - start) * self.cpus

    @property
    def others(self) -> float | None:
        """Share of the CPUs that went to other programs or was stolen during the rounds; None where unknown."""
        return max(0.0, self._others / self._capacity) if self._capacity else None

    @property
    def spread(self) -> float:
        """Slow tenth over fast tenth of the calibration loop."""
        ordered = sorted(self.calibration) or [1.0]
        return ordered[int(0.9 * (len(ordered) - 1))] / ordered[int(0.1 * (len(ordered) - 1))]

    def reasons(self) -> list[str]:
        """Say why the numbers are noisy; empty if they are not."""
        out = []
        if self.others is None and self.load_average > 0.5 * self.cpus:
            out.append(f"load average {self.load_average:.1f} at the start")
        if self.others is not None and self.others > OTHERS_ALLOWED:
            out.append(f"other programs had {self.others:.0%} of the CPUs")
        if self.spread > SPREAD_ALLOWED:
            out.append(f"a fixed piece of work took up to {self.spread:.2f} times as long as at best")
        return out

    def describe(self) -> dict[str, Any]:
        """Return what was seen, JSON-ready."""
        return {
            "noisy": bool(self.reasons()),
            "reasons": self.reasons(),
            "load_average_at_start": self.load_average,
            "others_cpu_share": self.others,
            "calibration_spread": self.spread,
            "calibration_s": self.calibration,
        }

    def _own_seconds(self) -> float:
        """Return the CPU seconds of this program: its own, and those of its children."""
        return sum(os.times()[:4]) + self.children()

    def _spin(self) -> float:
        """Keep every CPU busy with the same work at once (hashing lets go of the GIL), and time it."""
        block = bytes(32 << 20)
        start = perf_counter()
        with ThreadPoolExecutor(self.cpus) as pool:
            list(pool.map(lambda _: hashlib.sha256(block).digest(), range(self.cpus)))
        return perf_counter() - start


def measure_peaks() -> dict[str, float]:
    """Return FLOP/s of one core by SIMD level, the best level first; empty where the core does not run them."""
    try:
        from ppo_fast import _core
    except ImportError:
        return {}
    if not hasattr(_core, "peak_flops"):
        return {}
    return {level: _core.peak_flops(level) for level in _core.simd_levels()}


def _busy_seconds() -> float | None:
    """Return the CPU seconds spent by anybody, steal included, on the CPUs that this process may use."""
    try:
        lines = Path("/proc/stat").read_text().splitlines()
        allowed = {f"cpu{i}" for i in os.sched_getaffinity(0)}
    except (OSError, AttributeError):
        return None
    ticks = 0
    for name, *fields in (line.split() for line in lines):
        if name in allowed:
            user, nice, system, _idle, _iowait, irq, softirq, steal = (int(x) for x in fields[:8])
            ticks += user + nice + system + irq + softirq + steal
    return ticks / os.sysconf("SC_CLK_TCK")
