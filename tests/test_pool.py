"""Processes that are pinned, told of when they end, and never outlive the one that started them by a signal."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ppo_fast import pool as pool_module
from ppo_fast.errors import ConfigError
from ppo_fast.pool import Job, Pool

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are pinned on Linux alone")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "_LOOK_EVERY_S", 0.01)


def job(tmp_path: Path, name: str, code: str) -> Job:
    return Job(name=name, command=[sys.executable, "-I", "-S", "-c", code], log=tmp_path / f"{name}.log")


def taken_from(jobs: list[Job]) -> Callable[[], Job | None]:
    return lambda: jobs.pop(0) if jobs else None


def test_each_job_has_cores_of_its_own_and_its_words_are_kept(tmp_path: Path) -> None:
    code = "import os, time; print(sorted(os.sched_getaffinity(0)), flush=True); time.sleep(0.2)"
    before = os.sched_getaffinity(0)
    pool, ended = Pool[Job](1), []
    places = len(pool.free)
    pool.run(taken_from([job(tmp_path, f"{k}", code) for k in range(places + 1)]), ended.append)
    assert os.sched_getaffinity(0) == before
    cores = [(tmp_path / f"{k}.log").read_text() for k in range(places + 1)]
    assert sorted(cores[:-1]) == sorted(f"[{cpu}]\n" for cpu in before)
    assert cores[-1] in cores[:-1]  # it waited for one of them
    assert [each.code for each in ended] == [0] * (places + 1)
    assert len(pool.free) == places


def test_a_job_that_is_killed_or_stopped_is_told_of(tmp_path: Path) -> None:
    jobs = [job(tmp_path, "a", "import os; os.kill(os.getpid(), 9)"), job(tmp_path, "b", "import time; time.sleep(60)")]
    pool, ended = Pool[Job](1), []

    def watch() -> None:
        for each in [each for each in pool.running if each.name == "b"]:
            pool.stop(each)

    pool.run(taken_from(jobs), ended.append, watch)
    assert {each.name: each.code for each in ended} == {"a": -9, "b": -15}


SAVING = """
import signal, sys, time
def save(*_):
    time.sleep(0.2)
    print("saved", flush=True)
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
print("begun", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("sent", "stopped"),
    [(signal.SIGTERM, SystemExit), (signal.SIGHUP, SystemExit), (signal.SIGINT, KeyboardInterrupt)],
)
def test_a_signal_stops_the_jobs_first(tmp_path: Path, sent: signal.Signals, stopped: type[BaseException]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    asked = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in the background
    hung_up = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    (waiting,) = [job(tmp_path, "a", SAVING)]

    def watch() -> None:
        if waiting.log.read_text() == "begun\n":
            os.kill(os.getpid(), sent)
            time.sleep(5)  # the signal ends it

    try:
        with pytest.raises(stopped):
            Pool[Job](1).run(taken_from([waiting]), lambda job: None, watch)
    finally:
        signal.signal(signal.SIGINT, asked)
        signal.signal(signal.SIGHUP, hung_up)
    assert waiting.log.read_text() == "begun\nsaved\n"
    assert waiting.code == 143
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_closed_terminal_stops_nothing_under_nohup(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    ended: list[Job] = []
    try:
        jobs = [job(tmp_path, "a", "import time; time.sleep(0.2)")]
        Pool[Job](1).run(taken_from(jobs), ended.append, lambda: os.kill(os.getpid(), signal.SIGHUP))
    finally:
        signal.signal(signal.SIGHUP, before)
    assert [each.code for each in ended] == [0]


def test_a_quota_of_the_container_bounds_how_many_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setattr(pool_module, "num_cpus", lambda: 64)
    monkeypatch.setattr(pool_module, "cpu_budget", lambda: 4.5)
    assert [len(Pool[Job](cores).free) for cores in (1, 2, 8)] == [4, 2, 1]


def test_cores_that_are_not_there_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (0, 100_000):
        with pytest.raises(ConfigError, match=f"cores_per_run must be from 1 to .*, got {number}"):
            Pool[Job](number)
    monkeypatch.delattr(os, "sched_setaffinity")
    with pytest.raises(ConfigError, match="cores_per_run pins processes, which linux cannot"):
        Pool[Job](1)
