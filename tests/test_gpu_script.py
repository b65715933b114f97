"""``benchmarks/gpu.sh`` without a GPU: one line, and nothing done."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks" / "gpu.sh"


def test_it_is_a_script_that_bash_can_read() -> None:
    assert os.access(SCRIPT, os.X_OK)
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True, timeout=20)


def test_without_a_gpu_it_says_so_in_one_line_and_does_nothing(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("torch sees a CUDA device here")
    core = {path: path.stat().st_mtime_ns for path in (ROOT / "ppo_fast").glob("_core*")}
    results = set((ROOT / "benchmarks" / "results").iterdir())
    found = subprocess.run(
        ["bash", str(SCRIPT)],
        env={**os.environ, "PYTHON": sys.executable},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert found.returncode == 1
    assert found.stdout == ""
    assert found.stderr.startswith("benchmarks/gpu.sh: torch cannot use a GPU here: ")
    assert found.stderr.count("\n") == 1
    assert {path: path.stat().st_mtime_ns for path in (ROOT / "ppo_fast").glob("_core*")} == core
    assert set((ROOT / "benchmarks" / "results").iterdir()) == results
    assert not list(tmp_path.iterdir())


def test_every_test_that_it_runs_has_a_cuda_case() -> None:
    """Hold ``-k cuda`` to what it means: a renamed parameter would silently check nothing on a GPU."""
    files = ["tests/test_graph_learner.py", "tests/test_first_ratio.py", "tests/kernels/test_device_gae.py"]
    text = SCRIPT.read_text()
    for file in files:
        assert file in text
        assert '"cuda"' in (ROOT / file).read_text()
    chosen = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--collect-only", "-k", "cuda", *files],
        cwd=ROOT, capture_output=True, text=True, check=True, timeout=120,
    ).stdout  # fmt: skip
    assert all(f"{file}::" in chosen for file in files)
    for name in ("20_updates", "checkpoint_is_taken_up", "early_stop", "rate_of_the_moment", "first_ratio_is_near_one"):
        assert any(name in line and "cuda" in line for line in chosen.splitlines()), name
