"""Processes at a time, each pinned to cores of its own; whatever stops this process stops them first."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from ppo_fast.cpus import cpu_budget, num_cpus
from ppo_fast.errors import ConfigError

_LOOK_EVERY_S = 0.2


@dataclasses.dataclass(kw_only=True)
class Job:
    """A command that is to run."""

    name: str
    command: list[str]
    log: Path
    """file that its words are appended to"""
    keeps: tuple[int, ...] = ()
    """file descriptors that the process inherits, and with them the locks on those files"""
    process: subprocess.Popen[bytes] | None = None
    cpus: frozenset[int] = frozenset()

    @property
    def code(self) -> int | None:
        """The exit code, that of a signal negative; None while the process runs."""
        return None if self.process is None else self.process.poll()


AnyJob = TypeVar("AnyJob", bound=Job)


class Pool(Generic[AnyJob]):
    """As many jobs at a time as the cores of this process's affinity mask and the container's quota allow.

    Args:
        cores_per_run: cores that a job is pinned to.

    Raises:
        ConfigError: there are not so many, or this system cannot pin processes.
    """

    def __init__(self, cores_per_run: int) -> None:
        if not hasattr(os, "sched_setaffinity"):
            raise ConfigError(f"cores_per_run pins processes, which {sys.platform} cannot")
        if not 1 <= cores_per_run <= num_cpus():
            raise ConfigError(f"cores_per_run must be from 1 to {num_cpus()}, got {cores_per_run}")
        cpus = sorted(os.sched_getaffinity(0))
        starts = range(0, len(cpus) - cores_per_run + 1, cores_per_run)
        self.free = [frozenset(cpus[start : start + cores_per_run]) for start in starts]
        self.free = self.free[: max(1, int(cpu_budget() // cores_per_run))]
        self.running: list[AnyJob] = []

    def run(
        self,
        next_job: Callable[[], AnyJob | None],
        ended: Callable[[AnyJob], None],
        watch: Callable[[], None] = lambda: None,
    ) -> None:
        """Run jobs until there is none left. A signal stops those that run, waits for them and is passed on.

        Args:
            next_job: gives the job for cores that are free, or None if there is none now.
            ended: hears of each job that has ended.
            watch: called between looks at the jobs; may :meth:`stop` some.
        """
        # They become exceptions, so that the jobs are stopped before this process ends. A SIGHUP, of a terminal that is
        # closed, may be ignored: that is what nohup does.
        heard = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is not signal.SIG_IGN]
        before = {number: signal.signal(number, lambda number, _: sys.exit(128 + number)) for number in heard}
        try:
            while True:
                while self.free and (job := next_job()) is not None:
                    self._start(job)
                if not self.running:
                    return
                time.sleep(_LOOK_EVERY_S)
                for job in self._ended():
                    ended(job)
                watch()
        except BaseException:
            for job in self.running:
                self.stop(job)
            for job in self.running:
                if job.process is not None:
                    job.process.wait()
            raise
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def stop(self, job: AnyJob) -> None:
        """Ask a job that runs to end."""
        if job.process is not None:
            job.process.send_signal(signal.SIGTERM)

    def _start(self, job: AnyJob) -> None:
        """Start a job: a child inherits the cores that this process may use at that moment."""
        job.cpus = self.free.pop(0)
        all_cpus = os.sched_getaffinity(0)
        os.sched_setaffinity(0, job.cpus)
        try:
            with open(job.log, "ab") as log:  # the child keeps its own handle
                job.process = subprocess.Popen(
                    job.command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
                    pass_fds=job.keeps,
                )  # fmt: skip
        finally:
            os.sched_setaffinity(0, all_cpus)
        self.running.append(job)

    def _ended(self) -> list[AnyJob]:
        """Return the jobs that have ended, whose cores are free again."""
        ended = [job for job in self.running if job.code is not None]
        for job in ended:
            self.running.remove(job)
            self.free.append(job.cpus)
        return ended
