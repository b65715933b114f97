"""The command ``python -m ppo_fast.verify``: what it prints, what it returns, what it refuses."""

from __future__ import annotations

import re
from typing import Any

import pytest
from commands import call
from training import one_thread  # noqa: F401

from ppo_fast import kernels, verify
from ppo_fast.errors import BackendError
from ppo_fast.learners import ppo_step
from ppo_fast.lockstep import actors, learners
from ppo_fast.verify import main

SMALL = ["--env=InvertedPendulum-v5", "--iterations=1", "--num-envs=4", "--num-steps=16", "--minibatch-size=16"]


@pytest.fixture
def torch_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actors, "ACTORS", {"torch": actors.ACTORS["torch"]})
    monkeypatch.setattr(learners, "LEARNERS", {"torch eager": learners.LEARNERS["torch eager"]})


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_everything_holds_and_fits_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, compiled: bool
) -> None:
    if not compiled:  # a minute
        monkeypatch.delitem(learners.LEARNERS, "torch compile")
    done = call(main, capsys, *SMALL)
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    banner, tables = lines[:6], lines[6:]
    assert [line.split(":")[0] for line in banner] == ["task", "batch", "network", "iterations", "versions", "machine"]
    assert all(len(line) <= 80 for line in tables if not line.startswith("  without "))
    for stage in ("observations", "GAE", "minibatch order", "values", "loss", "clipped gradient", "Adam", "weights"):
        assert any(line.startswith(f"  {stage} ") for line in tables), stage
    backends = [name for name, there in kernels.available().items() if there]
    for name in ("gymnasium", *backends, "torch", "eager", *(["compile"] if compiled else [])):
        assert any(name in line.split() for line in tables), name
    assert re.fullmatch(r"all \d+ checks hold", lines[-1])


def test_a_failure_is_marked_named_and_returned(
    torch_alone: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ppo_step, "ADV_EPS", 1e-3)
    done = call(main, capsys, *SMALL)
    assert (done.code, done.err) == (1, "")
    lines = done.out.splitlines()
    (row,) = (line for line in lines if line.startswith("  clipped gradient"))
    assert re.search(r"! \S+x  2x$", row)
    assert any(line.startswith("FAIL learners, clipped gradient, torch eager: ") for line in lines)
    failed = sum(line.startswith("FAIL ") for line in lines)
    assert re.fullmatch(rf"{failed} of \d+ checks fail", lines[-1])


def test_what_cannot_be_had_is_named_once_per_reason(
    torch_alone: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def cannot(*_: Any) -> Any:
        raise BackendError("[a] reason")

    monkeypatch.setattr(learners, "LEARNERS", {**learners.LEARNERS, "mine one": cannot, "mine two": cannot})
    done = call(main, capsys, *SMALL)
    assert done.code == 0
    assert "  without mine one, mine two: [a] reason" in done.out.splitlines()


@pytest.mark.parametrize(
    ("args", "error"),
    [
        ("--iterations 0", "iterations must be at least 1, got 0"),
        ("--iterations x", "iterations must be an integer, got 'x'"),
        ("--num-envs 0", "num_envs must be at least 1, got 0"),
        ("--num-steps 0", "num_steps must be at least 1, got 0"),
        ("--minibatch-size 48", "minibatch_size must divide num_envs * num_steps = 8 * 64 = 512, got 48"),
        ("--num-steps 4 --minibatch-size 16", "num_steps must be at least 8 with 3 iterations"),
        ("--seed -1", "seed must be in [0, 2**64), got -1"),
        ("--hidden-sizes 0", "hidden_sizes must be one or more widths, each >= 1, got (0,)"),
        ("--activation sin", "activation must be one of 'tanh'"),
        ("--env Hoper-v5", "unknown environment 'Hoper-v5' (did you mean 'Hopper-v5'"),
        ("--env FrozenLake-v1", "FrozenLake-v1: its observation space Discrete(16) is not supported"),
        ("--evn Hopper-v5", "unknown option '--evn' (did you mean '--env'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(args: str, error: str, capsys: pytest.CaptureFixture[str]) -> None:
    done = call(main, capsys, *args.split())
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert done.err.startswith(f"ppo_fast.verify: error: {error}")


def test_its_options_are_those_of_training() -> None:
    import dataclasses

    from ppo_fast.config import FIELDS

    own = {field.name for field in dataclasses.fields(verify.VerifyOptions)}
    assert own - set(FIELDS) == {"iterations"}
