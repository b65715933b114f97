"""Real processes that are killed, told to stop, or refused by the disk; what they leave, and how they are taken up."""

from __future__ import annotations

import contextlib
import os
import pty
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import training

from ppo_fast import checkpoint

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and limits of POSIX")

# Hopper for some seconds, with everything that is written: rows, evaluations, the best checkpoint, TensorBoard.
_OPTIONS = (
    "--env Hopper-v5 --num-envs 16 --num-steps 32 --minibatch-size 128 --update-epochs 4 --eval-every 5000 "
    "--eval-episodes 4 --checkpoint-every 1500 --keep-checkpoints 2 --device cpu --quiet"
)
OPTIONS = _OPTIONS.split()
STEPS = 40_000


def command(run: Path, *more: str, steps: int = STEPS) -> list[str]:
    options = [*OPTIONS, "--total-timesteps", str(steps), "--run-dir", str(run), "--resume", "auto"]
    return [sys.executable, "-m", "ppo_fast.train", *options, *more]


def start(run: Path, *more: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(run, *more, **options), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=run.parent
    )


def finish(run: Path, *more: str, **options: Any) -> str:
    done = subprocess.run(
        command(run, *more, **options), capture_output=True, text=True, cwd=run.parent, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def wait_for(run: Path, rows: int, process: subprocess.Popen[str]) -> None:
    """Wait until so many rows have been written."""
    metrics = run / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not metrics.exists() or metrics.read_bytes().count(b"\n") < rows:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def result(run: Path) -> dict[str, Any]:
    """Return everything that must be the same, whatever happened on the way."""
    rows = [training.untimed(row) for row in training.jsonl(run / "metrics.jsonl")]  # every line parses
    steps = [row["env_steps"] for row in rows]
    assert steps == sorted(set(steps))  # strictly increasing
    assert [row["iteration"] for row in rows] == list(range(1, len(rows) + 1))
    evaluations = [training.untimed(row) for row in training.jsonl(run / "evaluations.jsonl")]
    saved = checkpoint.load_newest(run / "checkpoints")
    state = {k: v for k, v in saved.state.items() if k not in ("wall_s", "config", "numerics", "versions")}
    tensors = {name: t.numpy().tobytes() for name, t in {**saved.model, **saved.train}.items()}
    names = sorted(p.name for p in checkpoint.find(run / "checkpoints"))
    return {"rows": rows, "evaluations": evaluations, "state": state, "tensors": tensors, "checkpoints": names}


def stale(run: Path) -> list[Path]:
    return [path for path in run.rglob(".tmp-*")]


def stack_options(name: str) -> list[str]:
    if name == "native":
        return ["--actor", "native", "--learner", "native"]
    return ["--actor", "torch", "--learner", "torch", "--update", "eager"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Return the results of runs that were left alone, by stack, as they are asked for."""
    return {}


def uninterrupted(whole: dict[str, dict[str, Any]], stack: str, tmp_path: Path) -> dict[str, Any]:
    if stack not in whole:
        finish(tmp_path / "whole", *stack_options(stack))
        whole[stack] = result(tmp_path / "whole")
    return whole[stack]


def kill_often(run: Path, stack: str, kills: int, rng: random.Random) -> None:
    """Kill the trainer so often at random, somewhere in start-up, rollout, update or saving, taking it up each time."""
    for kill in range(kills):
        process = start(run, *stack_options(stack))
        if kill % 2:  # half of them at any time of the first seconds, half of them when training has begun
            wait = rng.uniform(0.2, 6.0)
        else:
            wait_for_growth(run, process)
            wait = rng.uniform(0.0, 0.3)
        try:
            process.wait(timeout=wait)
        except subprocess.TimeoutExpired:
            process.kill()
        process.communicate()
        for path in checkpoint.find(run / "checkpoints"):
            checkpoint.load(path)  # verifies every byte


def wait_for_growth(run: Path, process: subprocess.Popen[str]) -> None:
    """Wait until rows are written that were not there when the process began, or it has ended."""
    metrics = run / "metrics.jsonl"
    before = os.stat(metrics).st_mtime_ns if metrics.exists() else 0
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        # Cutting the file back at the start also changes it, a moment before the first rollout.
        if metrics.exists() and os.stat(metrics).st_mtime_ns > before and metrics.stat().st_size:
            return
        time.sleep(0.005)


@pytest.mark.usefixtures("native_core")
def test_killed_again_and_again(whole: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    expected = uninterrupted(whole, "native", tmp_path)
    kill_often(tmp_path / "run", "native", 3, random.Random("native"))
    finish(tmp_path / "run", *stack_options("native"))
    assert result(tmp_path / "run") == expected
    assert not stale(tmp_path / "run")
    assert not list((tmp_path / "run" / "checkpoints").glob("*.corrupt"))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("stack", ["native", "torch"])
def test_killed_fifty_times(whole: dict[str, dict[str, Any]], tmp_path: Path, stack: str) -> None:
    expected = uninterrupted(whole, stack, tmp_path)
    rng = random.Random(f"{stack} 50")
    for repetition in range(10):
        run = tmp_path / str(repetition)
        kill_often(run, stack, 5, rng)
        finish(run, *stack_options(stack))
        assert result(run) == expected
        assert not stale(run)


# Signals


@pytest.mark.parametrize(
    ("number", "rows"), [(signal.SIGTERM, 1), pytest.param(signal.SIGINT, 20, marks=pytest.mark.slow)]
)
def test_a_signal_saves_and_leaves_and_nothing_is_lost(
    whole: dict[str, dict[str, Any]], tmp_path: Path, number: signal.Signals, rows: int
) -> None:
    run = tmp_path / "run"
    process = start(run, *stack_options("native"))
    wait_for(run, rows, process)
    sent = time.monotonic()
    process.send_signal(number)
    if number == signal.SIGTERM:  # an echo: of a scheduler, beside what started the run
        time.sleep(0.02)
        process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert time.monotonic() - sent < 10
    assert process.returncode == 128 + number
    assert f"{number.name}: saving after this iteration" in err
    last = training.jsonl(run / "metrics.jsonl")[-1]
    saved = checkpoint.load_newest(run / "checkpoints")
    assert saved.state["env_steps"] == last["env_steps"]  # not one iteration is lost
    assert re.search(rf"stopped by {number.name} after {last['env_steps']:,} steps; to go on:\n  .*--resume auto", out)
    finish(run, *stack_options("native"))
    found, expected = result(run), uninterrupted(whole, "native", tmp_path)
    for part in ("rows", "evaluations", "tensors"):
        assert found[part] == expected[part]


@pytest.mark.parametrize("quiet", [True, False])
def test_a_terminal_that_is_closed_loses_not_one_iteration(tmp_path: Path, quiet: bool) -> None:
    run = tmp_path / "run"
    args = [arg for arg in command(run, *stack_options("native"), steps=100_000) if quiet or arg != "--quiet"]
    process, terminal = pty.fork()
    if process == 0:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored where the tests run under nohup, which children inherit
        os.execv(args[0], args)
    os.set_blocking(terminal, False)
    deadline = time.monotonic() + 60
    while not ((run / "metrics.jsonl").exists() and training.jsonl(run / "metrics.jsonl")):
        with contextlib.suppress(BlockingIOError):
            os.read(terminal, 65536)
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.close(terminal)
    _, status = os.waitpid(process, 0)
    assert os.waitstatus_to_exitcode(status) == 128 + signal.SIGHUP
    last = training.jsonl(run / "metrics.jsonl")[-1]
    assert checkpoint.load_newest(run / "checkpoints").state["env_steps"] == last["env_steps"]


def test_nohup_keeps_a_run_from_the_closing_of_its_terminal(tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = subprocess.Popen(
        ["nohup", *command(run, *stack_options("native"), steps=3000)], stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, cwd=tmp_path,
    )  # fmt: skip
    wait_for(run, 1, process)
    process.send_signal(signal.SIGHUP)
    assert process.wait(60) == 0
    assert training.jsonl(run / "metrics.jsonl")[-1]["env_steps"] >= 3000


def test_the_command_that_a_stopped_run_prints_goes_on_with_it(tmp_path: Path) -> None:
    process = start(tmp_path / "run", steps=8000)
    wait_for(tmp_path / "run", 2, process)
    process.terminate()
    out, _ = process.communicate(timeout=30)
    printed = out.split("to go on:\n")[1].strip()
    done = subprocess.run(printed, shell=True, capture_output=True, text=True, cwd=tmp_path, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "bit-exactly, by replaying the environments" in done.stdout
    assert training.jsonl(tmp_path / "run" / "metrics.jsonl")[-1]["env_steps"] >= 8000


def test_ctrl_c_saves_although_it_has_ended_the_reader_too(tmp_path: Path) -> None:
    """As in ``train 2>&1 | tee log``, where a terminal sends it to both."""
    run = tmp_path / "run"
    process = start(run)
    wait_for(run, 2, process)
    for pipe in (process.stdout, process.stderr):
        assert pipe is not None
        pipe.close()
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 128 + signal.SIGINT
    last = training.jsonl(run / "metrics.jsonl")[-1]["env_steps"]
    assert checkpoint.load_newest(run / "checkpoints").state["env_steps"] == last < STEPS


def test_ctrl_c_does_not_reach_environments_in_processes_of_their_own(tmp_path: Path) -> None:
    run = tmp_path / "run"
    more = ["--env-backend", "gymnasium", "--vectorization", "async", "--num-envs", "2", "--num-steps", "512"]
    process = subprocess.Popen(
        command(run, *more), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
        start_new_session=True,
    )  # fmt: skip
    wait_for(run, 2, process)
    time.sleep(0.1)  # in the midst of a rollout
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT, err
    last = training.jsonl(run / "metrics.jsonl")[-1]["env_steps"]
    assert checkpoint.load_newest(run / "checkpoints").state["env_steps"] == last < STEPS


def test_a_run_outlives_who_reads_its_output(tmp_path: Path) -> None:
    run = tmp_path / "run"
    loud = [word for word in command(run, steps=4000) if word != "--quiet"]
    process = subprocess.Popen(loud, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("ppo_fast:")
    process.stdout.close()
    process.stdout = None
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert err.count("nobody reads the output any more; the run goes on") == 1
    assert training.jsonl(run / "evaluations.jsonl")[-1]["env_steps"] >= 4000


@pytest.mark.parametrize(("number", "pause"), [(signal.SIGTERM, 3.3), (signal.SIGINT, 0.3)])
def test_a_second_signal_leaves_at_once(tmp_path: Path, number: signal.Signals, pause: float) -> None:
    run = tmp_path / "run"
    # A rollout takes longer than the pause, so that the first signal is still waiting when the second comes; that is
    # heard between two steps, or after an update, which the native learner makes in one call.
    process = start(run, "--num-steps", "40000", "--update-epochs", "1", steps=2_000_000)
    deadline = time.monotonic() + 60
    while not (run / "config.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.3)
    process.send_signal(number)
    assert process.stderr is not None
    while "saving after this iteration" not in process.stderr.readline():  # it has been heard
        assert process.poll() is None
    time.sleep(pause)
    assert process.poll() is None
    sent = time.monotonic()
    process.send_signal(number)
    process.communicate(timeout=30)
    assert time.monotonic() - sent < 2
    assert process.returncode == 128 + number
    for path in checkpoint.find(run / "checkpoints"):
        checkpoint.load(path)


def started_until(word: str, script: str, run: Path, *, steps: int) -> subprocess.Popen[str]:
    """Start a training by ``script``, and return when it has said ``word``."""
    args = command(run, *stack_options("native"), steps=steps)[3:]
    process = subprocess.Popen(
        [sys.executable, "-c", script, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=run.parent
    )
    assert process.stdout is not None
    while word not in process.stdout.readline():
        assert process.poll() is None
    return process


SLOW_START = """
import sys, time
from ppo_fast.trainer import Trainer
from ppo_fast.train import main
Trainer.__init__ = lambda *args, **options: (print("starting", flush=True), time.sleep(60))
sys.exit(main())
"""


def test_a_signal_before_there_is_anything_to_save_leaves_at_once(tmp_path: Path) -> None:
    process = started_until("starting", SLOW_START, tmp_path / "run", steps=3000)
    sent = time.monotonic()
    process.terminate()
    _, err = process.communicate(timeout=30)
    assert time.monotonic() - sent < 2
    assert process.returncode == 128 + signal.SIGTERM
    assert "SIGTERM: leaving at once" in err


SLOW_REPLAY = """
import sys, time
from ppo_fast.envs.envpool_stream import EnvPoolStream
from ppo_fast.train import main
EnvPoolStream._replay_reset = lambda *args: (print("replaying", flush=True), time.sleep(60))
sys.exit(main())
"""


def test_a_signal_while_environments_are_replayed_leaves_at_once_and_harms_nothing(tmp_path: Path) -> None:
    run = tmp_path / "run"
    finish(run, *stack_options("native"), steps=3000)
    before = result(run)
    again = started_until("replaying", SLOW_REPLAY, run, steps=6000)
    sent = time.monotonic()
    again.terminate()
    _, err = again.communicate(timeout=30)
    assert time.monotonic() - sent < 2
    assert again.returncode == 128 + signal.SIGTERM
    assert "SIGTERM: leaving at once" in err
    assert result(run) == before


# Two trainers


HOLDER = """
import sys
from pathlib import Path
from ppo_fast.lock import Lock
lock = Lock(Path(sys.argv[1]))
lock.take()
print("taken", flush=True)
sys.stdin.read()
"""


def test_a_second_trainer_is_refused_in_a_line(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.jsonl").write_text("")  # the directory of a run, held by a process as a trainer holds it
    first = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(run / ".lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert first.stdout is not None
    try:
        assert first.stdout.readline() == "taken\n"
        second = subprocess.run(command(run), capture_output=True, text=True, cwd=tmp_path, timeout=60, check=False)
    finally:
        first.kill()
        first.communicate()
    assert second.returncode == 2
    (line,) = second.stderr.splitlines()
    assert f"is being written by another trainer (process {first.pid})" in line
    assert "Traceback" not in second.stderr


# A disk that refuses


LIMITED = """
import resource, sys
from ppo_fast.train import main
limit = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))  # a write beyond it fails as on a full disk
sys.exit(main())
"""


def test_files_that_may_not_grow_do_not_stop_a_run(tmp_path: Path) -> None:
    # 20 KB: no checkpoint fits (60 KB), and the rows fit for a while.
    run = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, "20000", *command(run, steps=30_000)[3:]],
        capture_output=True, text=True, cwd=tmp_path, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert "TRAINING GOES ON" in done.stderr
    assert "cannot be written, its rows wait" in done.stderr
    assert "the end of the run is not saved" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not list((run / "checkpoints").iterdir())
    rows = (run / "metrics.jsonl").read_bytes()
    assert 0 < rows.count(b"\n") < 60
    assert len(rows) <= 20_000


def test_a_run_whose_disk_was_full_for_a_while_loses_nothing(tmp_path: Path, whole: dict[str, dict[str, Any]]) -> None:
    run = tmp_path / "run"
    process = start(run, *stack_options("native"))
    wait_for(run, 3, process)
    resource = pytest.importorskip("resource")
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
    time.sleep(1.0)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "its rows wait" in err
    found, expected = result(run), uninterrupted(whole, "native", tmp_path)
    for part in ("rows", "evaluations"):
        assert found[part] == expected[part]
    assert found["tensors"] == expected["tensors"]


# In a mount namespace of its own: a small disk that fills up, and then the same disk with room again.
SMALL_DISK = """
mount -t tmpfs -o size=500k tmpfs {disk} || exit 77
{command}
code=$?
mount -o remount,size=50m {disk} || exit 77
cp -r {disk}/run {out}
exit $code
"""


def test_a_real_disk_that_is_full_stops_no_run_and_damages_nothing(tmp_path: Path) -> None:
    disk, out = tmp_path / "disk", tmp_path / "out"
    disk.mkdir()
    run = command(disk / "run", "--keep-checkpoints", "50", steps=12_000)
    script = SMALL_DISK.format(disk=disk, out=out, command=shlex.join(run))
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("no unshare, with which a process gets mounts of its own")
    probe = [unshare, "-rm", "mount", "-t", "tmpfs", "-o", "size=500k", "tmpfs", str(disk)]
    allowed = subprocess.run(probe, capture_output=True, text=True, check=False)
    if allowed.returncode:  # many containers forbid it
        pytest.skip(f"this process may not mount a disk of its own: {allowed.stderr.strip()}")
    done = subprocess.run(
        [unshare, "-rm", "sh", "-c", script], capture_output=True, text=True, cwd=tmp_path, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    assert "No space left on device" in done.stderr
    assert "TRAINING GOES ON" in done.stderr
    assert "the end of the run is not saved" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not stale(out)
    saved = checkpoint.find(out / "checkpoints")
    assert saved  # those from before, whole
    for path in saved:
        checkpoint.load(path)
    finish(out, steps=14_000)
    assert checkpoint.load_newest(out / "checkpoints").state["env_steps"] >= 14_000
