"""Real processes, started by torchrun, which starts them again when one is killed."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from peers import all_of
from test_processes import files_of, no_picture, work  # noqa: F401
from torchrun_worker import ARGS
from training import one_thread  # noqa: F401

from ppo_fast.cli import parse_config

HERE = Path(__file__).parent
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="gloo and signals of POSIX")


# What torchrun's command does, its forks having the modules that eight interpreters would each have to load.
LOADED = """
import sys
import envpool, matplotlib.figure, rich.console, torchrun_worker, tyro
import ppo_fast.cli, ppo_fast.envs.envpool, ppo_fast.sinks.live
from torch.distributed import run
run.main(sys.argv[1:])
"""


def torchrun(out: Path, kills: int, *, forked: bool) -> subprocess.CompletedProcess[str]:
    how = ["-c", LOADED, "--start-method=fork", "--run-path"] if forked else ["-m", "torch.distributed.run"]
    command = [sys.executable, *how, "--standalone", "--nproc-per-node=2"]
    command += [f"--max-restarts={kills}", "--monitor-interval=0.1", str(HERE / "torchrun_worker.py")]
    paths = os.pathsep.join([str(HERE.parent), str(HERE), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [*command, str(out), str(kills)], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@pytest.mark.timeout(600)
@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])])
def test_killed_told_to_stop_and_ended_as_if_nothing_had_been(tmp_path: Path, kills: int) -> None:
    out = tmp_path / "torchrun"
    out.mkdir()
    done = torchrun(out, kills, forked=kills == 3)
    assert done.returncode == 0, done.stderr
    assert "ppo_fast.train: error: process 0 of 2 goes no further: another one has ended" in done.stderr
    assert not re.search(r"^Traceback", done.stderr, re.MULTILINE)  # of torchrun itself one begins with the time
    assert done.stdout.count("processes:    2 (gloo), 4 environments each\n") >= 2
    assert done.stdout.count("stopped by SIGTERM") == 1  # the first speaks for all

    told = [json.loads((out / f"told-{rank}.json").read_text()) for rank in range(2)]
    for rank, each in enumerate(told):
        assert each.pop("talk") == {
            "who": [rank, 2, rank, "gloo"],
            "sum": [[1.2000000000000002] * 5, [4.0] * 3],
            "gather": [[0], [1]],
            "bytes": ["", "long" * 1000],
            "first": "of the first",
            "any": [True, False],
            "failure": "a mistake" if rank else "process 1: a mistake",
        }
    assert told[0] == told[1]  # parameters and statistics after every iteration, among others
    assert told[0]["codes"] == [128 + 15, 0]
    assert told[0]["stopped_after"] == 2  # both left after the iteration in which one was told to

    cfg = parse_config([*ARGS, "--run-dir", str(tmp_path / "whole")], prog="", description="")
    whole = all_of(2, work(cfg))
    assert files_of(out / "run") == files_of(tmp_path / "whole")
    assert not list(out.rglob(".tmp-*"))
    if kills == 3:
        assert len(set(told[0]["digests"])) == len(told[0]["digests"]) < len(whole[0].digests)


def test_a_process_whose_peer_is_killed_leaves_at_once_with_code_4(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(2):
        where = {"RANK": rank, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": 2, "WORLD_SIZE": 2}
        where |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "PYTHONPATH": HERE.parent}
        command = [sys.executable, "-m", "ppo_fast.train", *ARGS, "--total-timesteps", "100000000"]
        processes.append(
            subprocess.Popen(
                [*command, "--run-dir", str(tmp_path / "run")], stderr=subprocess.PIPE, text=True, cwd=tmp_path,
                env={**os.environ, **{name: str(value) for name, value in where.items()}},
            )
        )  # fmt: skip
    killed, left = processes
    rows = tmp_path / "run" / "metrics.jsonl"
    try:
        while not (rows.exists() and rows.read_text().count("\n") >= 2):
            assert killed.poll() is left.poll() is None
            time.sleep(0.05)
        killed.kill()
        begun = time.monotonic()
        _, errors = left.communicate(timeout=60)
    finally:
        for process in processes:
            process.kill()
    assert left.returncode == 4
    assert "process 1 of 2 goes no further: another one has ended" in errors
    assert time.monotonic() - begun < 20  # a silent one is waited for longer
    killed.communicate()


# --- two machines ----------------------------------------------------------------------------------------------------
SPACES = ("ppo_fast_a", "ppo_fast_b")


@pytest.fixture
def two_networks() -> Iterator[None]:
    """Make two network namespaces, which are to each other as two machines are, 10.77.0.1 and 10.77.0.2."""
    if sys.platform != "linux" or os.getuid() or not shutil.which("ip"):
        pytest.skip("network namespaces need Linux, root and iproute2")

    def ip(*args: str) -> None:
        subprocess.run(["ip", *args], check=True, capture_output=True)

    try:
        for space in SPACES:
            ip("netns", "add", space)
        ip(
            "link",
            "add",
            "ppo_fast0",
            "netns",
            SPACES[0],
            "type",
            "veth",
            "peer",
            "name",
            "ppo_fast0",
            "netns",
            SPACES[1],
        )
        for number, space in enumerate(SPACES, 1):
            ip("-n", space, "addr", "add", f"10.77.0.{number}/24", "dev", "ppo_fast0")
            ip("-n", space, "link", "set", "ppo_fast0", "up")
            ip("-n", space, "link", "set", "lo", "up")
    except subprocess.CalledProcessError as err:
        pytest.skip(f"no network namespaces: {err.stderr.decode().strip()}")
    else:
        yield
    finally:
        for space in SPACES:
            subprocess.run(["ip", "netns", "delete", space], check=False, capture_output=True)


@pytest.mark.slow
@pytest.mark.usefixtures("two_networks")
def test_two_machines_train_as_one(tmp_path: Path) -> None:
    out = tmp_path / "machines"
    out.mkdir()
    processes = []
    for rank, space in enumerate(SPACES):
        where = {"RANK": rank, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1, "WORLD_SIZE": 2}
        where |= {"MASTER_ADDR": "10.77.0.1", "MASTER_PORT": 29500, "GLOO_SOCKET_IFNAME": "ppo_fast0"}
        env = {**os.environ, **{name: str(value) for name, value in where.items()}, "PYTHONPATH": str(HERE.parent)}
        command = ["ip", "netns", "exec", space, sys.executable, str(HERE / "torchrun_worker.py"), str(out), "0"]
        processes.append(subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True))
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    first, second = (json.loads((out / f"told-{rank}.json").read_text()) for rank in range(2))
    assert first["digests"] == second["digests"]
    cfg = parse_config([*ARGS, "--run-dir", str(tmp_path / "whole")], prog="", description="")
    all_of(2, work(cfg))
    assert files_of(out / "run") == files_of(tmp_path / "whole")
