"""``python -m ppo_fast.study`` and ``plot``: runs are made once, broken off and taken up, and failures are told."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import training
from commands import call

import ppo_fast
from ppo_fast import plot, study, system
from ppo_fast.lock import Lock

_OPTIONS = (
    "--num-envs 4 --num-steps 32 --minibatch-size 64 --update-epochs 1 --total-timesteps 600 --update eager "
    "--device cpu --eval-episodes 2 --checkpoint-every 200 --log"
)
OPTIONS = _OPTIONS.split()
EVERY = ("--eval-every", "200", "--gymnasium-episodes", "2")
ENV = "InvertedPendulum-v5"


def shell(cwd: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *args], cwd=cwd, capture_output=True, text=True, check=False, timeout=300,
        env={**os.environ, "PYTHONPATH": str(Path(study.__file__).parents[1])},
    )  # fmt: skip


def test_a_study_makes_its_runs_once_and_its_results_tell_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = (
        "ppo_fast.study",
        "--out",
        "s",
        "--envs",
        ENV,
        "--seeds",
        "2",
        "--first-seed",
        "4",
        *EVERY,
        "--",
        *OPTIONS,
    )
    done = shell(tmp_path, *command)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("finished Inv") == 2
    out = tmp_path / "s"
    results = json.loads((out / "results.json").read_text())
    assert [(run["env"], run["seed"], run["finished"]) for run in results["runs"]] == [(ENV, 4, True), (ENV, 5, True)]
    made = results["made"][f"{ENV}-seed5"]
    assert (made["config"]["seed"], made["config"]["env"], made["config"]["run_dir"]) == (5, ENV, f"{ENV}-seed5")
    assert str(tmp_path) not in (out / "results.json").read_text()
    assert made["versions"]["ppo_fast"] == ppo_fast.__version__
    assert made["commit"] == system.commit()
    assert ENV in (out / "table.md").read_text()
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    page = (out / "comparison.html").read_text()
    assert "comparison of runs" in page
    assert page.count('href="InvertedPendulum-v5-seed') == 2
    elsewhere = [json.loads((out / f"{ENV}-seed{seed}" / "gymnasium.json").read_text()) for seed in (4, 5)]
    assert [len(each["returns"]) for each in elsewhere] == [2, 2]
    assert [run["gymnasium"] for run in results["runs"]] == [np.mean(each["returns"]) for each in elsewhere]
    kept = [*out.glob("*-seed*/metrics.jsonl"), *out.glob("*-seed*/gymnasium.json")]
    before = {path: path.stat().st_mtime_ns for path in kept}
    monkeypatch.chdir(tmp_path)
    again = call(study.main, capsys, *command[1:])
    assert again.code == 0
    assert "2 runs, 2 finished" in again.out
    assert "started" not in again.out
    assert before == {path: path.stat().st_mtime_ns for path in before}
    for option, value, was in (("gamma", "0.5", "0.99"), ("eval-episodes", "3", "2")):
        other = call(study.main, capsys, *command[1:], f"--{option}", value)
        assert other.code == 2
        assert f"was made with {option.replace('-', '_')} {was}, not {value}: take another --out" in other.err
    more = ["3" if before == "--gymnasium-episodes" else word for before, word in pairwise(command)]
    assert call(study.main, capsys, *more).code == 0
    kept_now = [json.loads((out / f"{ENV}-seed{seed}" / "gymnasium.json").read_text()) for seed in (4, 5)]
    assert [len(each["returns"]) for each in kept_now] == [3, 3]
    longer = call(
        study.main, capsys, *command[1:], "--total-timesteps", "900"
    )  # finished runs go on, if more is asked for
    assert longer.out.count("finished Inv") == 2, longer.err
    assert all(path.stat().st_mtime_ns != at for path, at in before.items())
    shutil.rmtree(max((out / f"{ENV}-seed4" / "checkpoints").iterdir()))  # that of the last evaluation
    (out / f"{ENV}-seed4" / "gymnasium.json").unlink()
    lost = call(study.main, capsys, *command[1:], "--total-timesteps", "900")
    assert lost.code == 0  # the run goes on from the checkpoint before
    assert "2 runs, 1 finished" in lost.out
    assert f"finished {ENV}-seed4" in lost.out
    shutil.rmtree(out / f"{ENV}-seed4" / "checkpoints")  # whose policy is no longer wanted
    assert "2 runs, 2 finished" in call(study.main, capsys, *command[1:], "--total-timesteps", "900").out
    other = call(study.main, capsys, *command[1:], "--preset", "sample")
    assert (other.code, "was made with " in other.err) == (2, True)
    picture = call(plot.main, capsys, *map(str, sorted(out.glob("*-seed*"))), "--out", "p.png")
    assert picture.code == 0, picture.err
    assert "| 2 |" in picture.out
    assert (tmp_path / "p.png").exists()


def test_a_study_that_is_interrupted_stops_its_runs_and_goes_on_with_them(tmp_path: Path) -> None:
    args = ["--out", "s", "--envs", ENV, "--seeds", "1", *EVERY, "--", *OPTIONS, "--total-timesteps", "60000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "ppo_fast.study", *args], cwd=tmp_path, stdout=subprocess.PIPE, text=True,
        # Where the tests run in the background, SIGINT is ignored, which children inherit.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        env={**os.environ, "PYTHONPATH": str(Path(study.__file__).parents[1])},
    )  # fmt: skip
    metrics = tmp_path / "s" / f"{ENV}-seed1" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and len(metrics.read_bytes().splitlines()) > 5) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    try:
        code = process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        said, _ = process.communicate()
        pytest.fail(f"it goes on: {said}; its run says: {(tmp_path / 's' / 'logs' / f'{ENV}-seed1.log').read_text()}")
    assert code == 130
    stopped_at = training.jsonl(metrics)[-1]["env_steps"]
    assert 0 < stopped_at < 60_000
    args[-1] = str(stopped_at + 500)
    done = shell(tmp_path, "ppo_fast.study", *args)
    assert done.returncode == 0, done.stderr
    steps = [row["env_steps"] for row in training.jsonl(metrics)]
    assert steps == sorted(set(steps))
    assert steps[-1] >= stopped_at + 500


def test_a_study_has_its_directory_to_itself_as_long_as_its_runs_live(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "s").mkdir()
    lock = Lock(tmp_path / "s" / "study.lock")
    assert lock.try_take()
    left = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], pass_fds=(lock.fileno(),))
    lock.release()  # the study has ended, and left a run
    args = ["--out", str(tmp_path / "s"), "--envs", ENV, "--seeds", "1", *EVERY, "--", *OPTIONS]
    refused = call(study.main, capsys, *args)
    left.kill()
    left.wait()
    assert refused.code == 2
    assert "is worked on by another study, or by runs that one left" in refused.err
    assert call(study.main, capsys, *args).code == 0


def test_a_run_keeps_the_lock_of_its_study(tmp_path: Path) -> None:
    made = study.Study(study.StudyOptions(str(tmp_path / "s"), (ENV,), seeds=1), [])
    made._take()
    run = made._next([*made.runs])
    assert run is not None
    assert run.keeps == (made.lock.fileno(),)


def test_results_that_cannot_be_written_stop_no_run(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    full, writes = OSError(28, "No space left on device"), []

    def write(self: study.Study, *, draw: bool = False) -> None:
        writes.append(draw)
        raise full

    monkeypatch.setattr(study.Study, "_write", write)
    args = ["--out", str(tmp_path / "s"), "--envs", ENV, "--seeds", "2", *EVERY, "--", *OPTIONS]
    done = call(study.main, capsys, *args)
    assert writes == [False, False, True]
    assert done.out.count("finished Inv") == 2
    assert done.code == 2
    assert "cannot be written: No space left on device" in done.err
    assert "tried again when a run ends: No space left on device" in caplog.text


def test_a_run_that_fails_is_told_and_the_others_are_made(tmp_path: Path) -> None:
    broken = tmp_path / "s" / f"{ENV}-seed1" / "checkpoints" / "step_000000000100"
    broken.mkdir(parents=True)
    (broken / "manifest.json").write_text("{}")
    done = shell(tmp_path, "ppo_fast.study", "--out", "s", "--envs", ENV, "--seeds", "2", *EVERY, "--", *OPTIONS)
    assert done.returncode == 1
    assert f"FAILED   {ENV}-seed1, exit code 3" in done.stdout
    assert f"finished {ENV}-seed2" in done.stdout
    assert f"failed: {ENV}-seed1, see s/logs/{ENV}-seed1.log" in done.stderr
    assert "damaged" in (tmp_path / "s" / "logs" / f"{ENV}-seed1.log").read_text()


def test_a_policy_that_cannot_be_evaluated_elsewhere_fails_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = study.StudyOptions(str(tmp_path), (ENV,), seeds=1)
    made = study.Study(options, [])
    (run,) = made.runs
    made.check(run)  # there is no checkpoint
    assert made.failed == [run.name]
    assert f"FAILED   {run.name}, on Gymnasium: " in capsys.readouterr().out


@pytest.mark.parametrize(("steps", "every"), [("3000000", 50_000), ("3000001", 250_000)])
def test_long_runs_are_evaluated_less_often(steps: str, every: int) -> None:
    (run,) = study.Study(study.StudyOptions("s", (ENV,), seeds=1), ["--total-timesteps", steps]).runs
    assert run.cfg.eval_every == every
    assert run.command[-2:] == ["--eval-every", str(every)]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ("--out s --envs Hopper-v5 --preset sample", "preset is an option of the runs: write --preset after --"),
        ("--out s --envs Hopper-v5 --at 1 -5", "at must name steps, each at least 1, got 1 -5"),
        ("--out /proc/s --envs Hopper-v5", "out '/proc/s' cannot be made: "),
        ("--out s --seeds 0", "seeds must be at least 1, got 0"),
        ("--out s --first-seed -1", "first_seed must be at least 0, got -1"),
        ("--out s --cores-per-run 0", "cores_per_run must be from 1 to "),
        ("--out s --cores-per-run 99999", "cores_per_run must be from 1 to "),
        ("--out s --envs", "envs must name at least one environment"),
        ("--out s --envs Ant-v5 Hopper-v5 Ant-v5", "envs names Ant-v5 more than once"),
        ("--out s --envs Hoper-v5", "unknown environment 'Hoper-v5'"),
        ("--out s -- --seed 3", "--seed is the study's to set, and cannot follow --"),
        ("--out s -- --run_dir=x", "--run-dir is the study's to set, and cannot follow --"),
        ("--out s -- --eval-every=5", "--eval-every is the study's to set, and cannot follow --"),
        ("--out s --eval-every -1", "eval_every must be at least 0, got -1"),
        ("--out s --gymnasium-episodes -1", "gymnasium_episodes must be at least 0, got -1"),
        ("--out s -- --gamma 2", "gamma must be in [0, 1], got 2.0"),
        ("--out s -- --algo trpo --clip-coef 0.1", "clip_coef belongs to PPO"),
        ("--seeds 2", "out"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_made(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = call(study.main, capsys, *args.split())
    assert done.code == 2
    assert said in done.err
    assert done.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ("", "name at least one run directory"),
        ("missing", "no run at 'missing'"),
        ("missing missing", "missing is named more than once"),
        ("missing --out x.jpg", "out must be a path that ends in .png"),
        ("missing --out no/x.png", "in a directory that exists"),
    ],
)
def test_plot_refuses_what_it_cannot_draw(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = call(plot.main, capsys, *args.split())
    assert done.code == 2
    assert said in done.err
