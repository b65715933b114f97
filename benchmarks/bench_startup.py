"""The command line from outside: seconds to the first update, and memory over minutes; only with --scaling."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import linear_regression, median
from time import perf_counter, sleep
from typing import Any

import pytest

from ppo_fast.config import Config
from ppo_fast.learners.native import lacks
from ppo_fast.models import ActorCritic
from ppo_fast.system import choose_device

from ._recipes import describe
from .conftest import Bench
from .report import Quantity

ROOT = Path(__file__).parents[1]
ENV = "Ant-v5"
POLL = 0.005  # seconds between two looks at metrics.jsonl

pytestmark = pytest.mark.usefixtures("scaling")


@contextmanager
def training(cfg: Config, cache: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``python -m ppo_fast.train`` on ``cfg`` in a process group of its own, and end it without ceremony.

    Args:
        cfg: the options.
        cache: where torch.compile keeps what it has compiled.
    """
    options = {name: value for name, value in cfg.to_dict().items() if value is not None}
    Path(f"{cfg.run_dir}.toml").write_text("".join(f"{k} = {json.dumps(v)}\n" for k, v in options.items()))
    command = [sys.executable, "-m", "ppo_fast.train", "--config", f"{cfg.run_dir}.toml"]
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(cache)}
    with open(f"{cfg.run_dir}.log", "wb") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):  # it has ended by itself
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def assert_running(process: subprocess.Popen[bytes], cfg: Config) -> None:
    """Show what the command said if it has ended."""
    assert process.poll() is None, Path(f"{cfg.run_dir}.log").read_text()


def wait_for_rows(process: subprocess.Popen[bytes], cfg: Config, rows: int) -> None:
    """Return when metrics.jsonl has that many rows."""
    path = Path(cfg.run_dir) / "metrics.jsonl"
    while not path.exists() or path.read_bytes().count(b"\n") < rows:
        assert_running(process, cfg)
        sleep(POLL)


def test_seconds_to_the_first_update(bench: Bench, tmp_path: Path) -> None:
    """From the command to the end of the first update, a warm-up rollout and a rollout included."""
    ways = {} if lacks(ActorCritic(1, 1), choose_device("auto")) else {"native learner": ("native", "auto")}
    if not bench.smoke:
        compiled = "torch", "compile"
        ways |= {"torch.compile, nothing compiled before": compiled, "torch.compile, compiled before": compiled}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    first_rows: dict[str, list[dict[str, Any]]] = {name: [] for name in ways}
    for repeat in range(1 if bench.smoke else 3):
        with bench.machine.watch():
            for i, (name, (learner, update)) in enumerate(ways.items()):
                cfg = bench.config(ENV, learner=learner, update=update, run_dir=str(tmp_path / f"run-{repeat}-{i}"))
                start = perf_counter()
                with training(cfg, tmp_path / f"cache-{repeat}") as process:  # which the two compiled runs share
                    wait_for_rows(process, cfg, 1)
                    seconds[name].append(perf_counter() - start)
                first_rows[name].append(json.loads((Path(cfg.run_dir) / "metrics.jsonl").read_text().splitlines()[0]))
    section = f"{ENV}: from the command to the end of the first update"
    for name, values in seconds.items():
        before = median(row["startup_s"] for row in first_rows[name])
        note = f"{before:.1f} s of it before the first env step, compilation not counted"
        bench.measured(section, Quantity(name, "s", values, note, {"first_rows": first_rows[name]}))


@pytest.mark.timeout(0)
def test_memory(bench: Bench, tmp_path: Path) -> None:
    """Resident memory of a training process as a user starts it, from its second iteration on."""
    if not Path("/proc/self/status").exists():
        pytest.skip("resident memory is read from /proc")
    duration, interval = (1.0, 0.25) if bench.smoke else (60.0 * bench.memory_minutes, 10.0)
    cfg = bench.config(
        ENV,
        run_dir=str(tmp_path / "run"),
        num_envs=4 if bench.smoke else 1024,
        eval_every=Config.eval_every,
        total_timesteps=int(50e6 * max(1.0, bench.memory_minutes)),  # more than it gets to, and no orphan runs for ever
    )
    minutes, resident = [], []
    with training(cfg, tmp_path / "cache") as process:
        wait_for_rows(process, cfg, 2)
        start = perf_counter()
        while (now := perf_counter() - start) <= duration:
            assert_running(process, cfg)
            minutes.append(now / 60.0)
            resident.append(resident_mib(process.pid))
            sleep(interval)
    slope = linear_regression(minutes, resident).slope
    section, facts = f"{ENV}: memory of training with {cfg.num_envs} environments", {"minutes": minutes}
    bench.measured(section, Quantity("resident", "MiB", resident, describe(cfg), facts))
    bench.measured(section, Quantity("growth", "MiB/min", [slope], f"least squares over {minutes[-1]:.1f} minutes"))
    bench.keep(section, cfg)


def resident_mib(pid: int) -> float:
    """Return VmRSS."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024.0
