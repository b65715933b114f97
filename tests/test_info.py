"""``python -m ppo_fast.info``: what would be used and why; what is missing, and how to mend it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import Outcome, call

from ppo_fast import cpus, findings, info, native, system, video
from ppo_fast.errors import BackendError
from ppo_fast.findings import Finding
from ppo_fast.kernels import _select

Find = Callable[[], dict[str, Finding]]


@pytest.fixture(autouse=True)
def _without_children(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "find_renderer", lambda: ("egl", []))


@pytest.fixture
def find() -> Find:
    """Look at this machine, which a test may have changed before."""
    return lambda: {finding.name: finding for finding in findings.findings(system.build_info())}


def rows(outcome: Outcome) -> dict[str, str]:
    assert outcome.code == 0
    return {line[:20].strip(): line[20:] for line in outcome.out.splitlines()}


def test_it_prints_versions_machine_and_backends(capsys: pytest.CaptureFixture[str]) -> None:
    shown = rows(call(info.main, capsys))
    assert shown["python"] == ".".join(map(str, sys.version_info[:3]))
    assert shown["torch"] == torch.__version__
    assert {"ppo_fast", "envpool", "gymnasium", "mujoco", "system", "cpu", "cpus"} <= set(shown)
    states = [shown[f"kernels {name}"] for name in ("cpp", "numba", "reference")]
    assert all(re.match("available|missing: .", state) for state in states)
    assert sum(state.endswith("(active)") for state in states) == 1
    used = {
        "cores",
        "compiler",
        "C++ core",
        "SIMD",
        "device",
        "simulator",
        "renderer",
        "ffmpeg",
        "tensorboard",
        "wandb",
    }
    assert used <= set(shown)


def test_json_is_what_build_info_returns_and_the_findings(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = call(info.main, capsys, "--json")
    assert outcome.code == 0
    facts = json.loads(outcome.out)
    found = {finding["name"]: finding for finding in facts.pop("findings")}
    assert facts == json.loads(json.dumps(system.build_info()))
    assert set(found["SIMD"]) == {"name", "used", "why", "mend"}


def test_it_refuses_options(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = call(info.main, capsys, "--verbose")
    assert outcome.code == 2
    assert "unknown option '--verbose'" in outcome.err


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        ("cpp", "none: kernel backend 'cpp' cannot be used: it does not load"),
        ("cpq", "none: PPO_FAST_BACKEND must be one of auto, cpp, numba, reference, got 'cpq' (did you mean 'cpp'?)"),
    ],
)
def test_it_tells_why_the_kernels_asked_for_cannot_be_had(
    asked: str, error: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PPO_FAST_BACKEND", asked)
    monkeypatch.setattr(_select, "_active", None)
    monkeypatch.setattr(_select, "_loaded", {})
    monkeypatch.setattr(_select, "_reasons", {"cpp": "it does not load"})
    assert info.main([]) == 0
    shown = rows(Outcome(0, capsys.readouterr().out, ""))
    assert shown["torch"] == torch.__version__
    assert shown["kernels cpp"] == "missing: it does not load"
    assert shown["kernels active"] == error
    with pytest.raises(BackendError):  # what a trainer asks first
        _select.active()


# --- what is missing -------------------------------------------------------------------------------------------------
NO_CORE = {
    "active": "numba",
    "available": {"cpp": False, "numba": True, "reference": True},
    "why_not": {"cpp": "the C++ core was not built: no C++ compiler"},
}


def test_a_missing_core_is_told_with_its_reason_and_the_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = {
        **system.build_info(), "core_build": {"built": False, "error": "no C++ compiler"}, "kernels": NO_CORE
    }  # fmt: skip
    monkeypatch.setattr(system, "build_info", lambda: facts)
    monkeypatch.setattr(native, "simd_levels", list)
    out = call(info.main, capsys).out
    assert "kernels cpp         missing: the C++ core was not built: no C++ compiler\n" in out
    assert "kernels numba       available (active)\n" in out
    assert "C++ core            not built: no C++ compiler (torch acts and learns, kernels on numba; " in out
    assert re.search(r"\n +to mend: on Debian or Ubuntu: apt-get install g\+\+ python3-dev; then `make core`", out)
    assert "SIMD                none" in out


@pytest.mark.parametrize(
    ("allowed", "there", "quota", "used", "why"),
    [
        (8, 8, float("inf"), "8", "all there are, no limit is set"),
        (2, 8, float("inf"), "2", "the affinity mask allows 2 of 8"),
        (8, 8, 1.5, "1.5", "the container's quota is 1.5"),
        (4, 8, 2.0, "2", "the affinity mask allows 4 of 8; the container's quota is 2"),
    ],
)
def test_cores_are_those_of_the_mask_and_the_quota(
    allowed: int, there: int, quota: float, used: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpus, "num_cpus", lambda: allowed)
    monkeypatch.setattr(cpus, "cpu_quota", lambda: quota)
    monkeypatch.setattr("os.cpu_count", lambda: there)
    found = findings._cores()
    assert (found.used, found.why) == (used, why)


def test_a_machine_without_anything_says_of_each_how_to_mend_it(find: Find, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*args: Any) -> Any:
        raise BackendError("EnvPool cannot be imported (no wheel)")

    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr("ppo_fast.envs.envpool_task.import_envpool", missing)
    monkeypatch.setattr(video, "find_renderer", lambda: ("", ["egl: no library", "osmesa: no library"]))
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    monkeypatch.setenv("PPO_FAST_SIMD", "avx1024")
    found = find()
    assert (found["compiler"].used, found["simulator"].used) == ("none", "Gymnasium")
    assert "egl: no library; osmesa: no library" in found["renderer"].why
    said = {
        "compiler": "apt-get install g++", "simulator": "pip install envpool", "renderer": "libegl1 libosmesa6",
        "ffmpeg": "pip install imageio-ffmpeg",
    }  # fmt: skip
    assert [name for name, words in said.items() if words not in found[name].mend] == []


@pytest.mark.parametrize(
    ("cuda", "why", "mend"),
    [
        (None, "torch was built without CUDA", "pytorch.org"),
        ("12.8", "torch, built for CUDA 12.8, sees no GPU", "nvidia-smi"),
    ],
)
def test_a_gpu_that_torch_cannot_use_is_told(
    cuda: str | None, why: str, mend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(Path, "exists", lambda path: True)
    found = findings._device()
    assert found.used == "cpu"
    assert why in found.why
    assert mend in found.mend


@pytest.mark.usefixtures("native_core")  # which fails, and does not skip, where the core is required
def test_a_simd_level_that_cannot_be_had_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert findings._simd().used == native.simd_levels()[0]
    monkeypatch.setenv("PPO_FAST_SIMD", "avx1024")
    found = findings._simd()
    assert (found.used, found.mend) == ("none", "unset PPO_FAST_SIMD")
    assert "avx1024" in found.why


def test_a_renderer_is_probed_in_a_child_and_the_next_one_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the real find_renderer
    tried: list[str] = []

    def run(command: list[str], *, env: dict[str, str], **options: Any) -> Any:
        assert command == [sys.executable, "-m", "ppo_fast.video"]
        tried.append(env["MUJOCO_GL"])
        return subprocess.CompletedProcess(command, 1 if len(tried) == 1 else 0, "", "no such library\n")

    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    monkeypatch.setattr(video, "RENDERERS", ("egl", "osmesa"))
    monkeypatch.setattr(subprocess, "run", run)
    assert video.find_renderer() == ("egl", ["osmesa: no such library"])
    assert tried == ["osmesa", "egl"]
