"""A GPU that is missing, cannot compute or is full: one line, before there is an environment."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from commands import call

from ppo_fast import cli, envs, system, train
from ppo_fast.errors import ConfigError
from ppo_fast.learners import choose

OLD = "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver.\nmore"
FULL = "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.11 GiB"


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Fail where an environment is made."""

    def made(*args: Any, **options: Any) -> Any:
        raise AssertionError("an environment was made")

    for name in ("make", "make_stream"):
        monkeypatch.setattr(envs, name, made)
    monkeypatch.chdir(tmp_path)


def raises(error: BaseException) -> Any:
    def call(*args: Any, **options: Any) -> Any:
        raise error

    return call


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (RuntimeError(OLD), "The NVIDIA driver on your system is too old"),
        (RuntimeError("No CUDA GPUs are available"), "No CUDA GPUs are available"),
        (AssertionError("Torch not compiled with CUDA enabled"), "Torch not compiled with CUDA enabled"),
    ],
)
def test_cuda_that_cannot_be_had_is_one_line_with_torchs_reason(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: Exception, why: str
) -> None:
    monkeypatch.setattr(
        torch.cuda, "is_available", lambda: warnings.warn(f"CUDA initialization: {error}", stacklevel=1)
    )
    monkeypatch.setattr(torch.cuda, "init", raises(error))
    monkeypatch.setattr(envs, "spec", raises(AssertionError("an environment was looked at")))
    outcome = call(train.main, capsys, "--device", "cuda")
    assert outcome.code == 2
    assert outcome.err.count("\n") == 1
    assert f"torch sees no CUDA device here: {why}" in outcome.err
    assert "allowed: 'auto', 'cpu'" in outcome.err
    assert not list(Path().iterdir())


def test_a_gpu_that_cannot_compute_is_refused_or_passed_over_aloud(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "ones", raises(RuntimeError("CUDA error: no kernel image is available\nmore")))
    with pytest.raises(
        ConfigError, match="device 'cuda' does not compute here: CUDA error: no kernel image is available;"
    ):
        system.choose_device("cuda")
    assert system.choose_device("auto") == torch.device("cpu")
    assert "the run goes on the CPU, the GPU does not compute: CUDA error: no kernel image" in caplog.text
    monkeypatch.setattr(torch, "ones", lambda *shape, device: torch.zeros(shape) + 1.0)
    assert system.choose_device("cuda") == system.choose_device("auto") == torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    two: Any = SimpleNamespace(size=2, local_rank=1)
    with pytest.raises(ConfigError, match="process 1 of this machine has no GPU of its own"):
        system.choose_device("auto", two)


@pytest.mark.parametrize("update", ["eager", "graph"])
def test_a_gpu_without_memory_for_the_update_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, update: str
) -> None:
    full = raises(torch.cuda.OutOfMemoryError(FULL))
    monkeypatch.setattr(choose, "GraphLearner" if update == "graph" else "TorchLearner", full)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**29, 2**33))
    args = ("--env", "Hopper-v5", "--device", "cpu", "--learner", "torch", "--update", update)
    outcome = call(train.main, capsys, *args)
    assert outcome.code == 2
    assert outcome.err.count("\n") == 1
    assert "does not fit into the memory of cpu, 0.5 of 8.0 GiB are free: take smaller num_envs" in outcome.err
    assert not list(Path().iterdir())


def test_a_gpu_that_fills_up_later_is_one_line_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run_command(raises(torch.cuda.OutOfMemoryError(FULL)), prog="ppo_fast.train") == 2
    assert "need more memory than there is" in capsys.readouterr().err
    with pytest.raises(RuntimeError, match="something else"):
        cli.run_command(raises(RuntimeError("something else")), prog="ppo_fast.train")
