"""What a run would use on this machine, why, and how to mend what is missing. What can be tried is tried."""

from __future__ import annotations

import importlib.metadata
import math
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ppo_fast import cpus, native, video
from ppo_fast.envs import ENVPOOL_TASKS
from ppo_fast.errors import BackendError
from ppo_fast.system import why_no_cuda

BUILD_AGAIN = (
    "on Debian or Ubuntu: apt-get install g++ python3-dev; then `make core`, or "
    "`PPO_FAST_BUILD=require pip install --no-deps -e .`, which says what is wrong"
)


@dataclass(frozen=True)
class Finding:
    """One part of a run: what would be used, why, and, if it could be had and is not, how to get it."""

    name: str
    used: str
    why: str = ""
    mend: str = ""


def findings(info: dict[str, Any]) -> list[Finding]:
    """Look at this machine; takes some seconds, most of them for pictures that child processes try to render.

    Args:
        info: :func:`ppo_fast.system.build_info`'s.
    """
    return [
        _cores(),
        _compiler(),
        _core(info["core_build"], info["kernels"]),
        _simd(),
        _device(),
        _simulator(),
        _renderer(),
        _ffmpeg(),
        *(_extra(name, does) for name, does in {"tensorboard": "event files", "wandb": "--log wandb"}.items()),
    ]


def _cores() -> Finding:
    allowed, there, quota = cpus.num_cpus(), os.cpu_count() or 1, cpus.cpu_quota()
    limits = [f"the affinity mask allows {allowed} of {there}"] if allowed < there else []
    limits += [f"the container's quota is {quota:g}"] if math.isfinite(quota) and quota < allowed else []
    return Finding("cores", f"{cpus.cpu_budget():g}", "; ".join(limits) or "all there are, no limit is set")


def _compiler() -> Finding:
    for name in filter(None, (os.environ.get("CXX"), "c++", "g++", "clang++")):
        if path := shutil.which(name):
            try:
                asked = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=20, check=True)
            except (OSError, subprocess.SubprocessError):
                continue
            return Finding("compiler", asked.stdout.splitlines()[0] if asked.stdout else path, path)
    return Finding(
        "compiler", "none", "there is no c++, g++ or clang++ that runs; the C++ core and torch.compile need one",
        "on Debian or Ubuntu: apt-get install g++ python3-dev",
    )  # fmt: skip


def _core(build: dict[str, Any], kernels: dict[str, Any]) -> Finding:
    built = bool(build.get("built"))
    how = f"built by {build['compiler']} {build['compiler_version']} with {build['flags']}" if built else ""
    if kernels["available"]["cpp"]:
        return Finding(
            "C++ core", how or "loads", "native actor and learner" if native.simd_levels() else "kernels alone"
        )
    why = kernels["why_not"].get("cpp", "")
    used = f"{how}, but does not load" if built else f"not built: {build.get('error') or 'setup.py did not run'}"
    return Finding("C++ core", used, f"torch acts and learns, kernels on {kernels['active']}; {why}", BUILD_AGAIN)


def _simd() -> Finding:
    levels, asked = native.simd_levels(), os.environ.get("PPO_FAST_SIMD")
    if not levels:
        return Finding("SIMD", "none", "the native actor and learner are missing")
    try:
        used = native.simd_level()
    except BackendError as err:
        return Finding("SIMD", "none", str(err), "unset PPO_FAST_SIMD")
    return Finding("SIMD", used, f"PPO_FAST_SIMD={asked}" if asked else f"the best of {', '.join(levels)}")


def _device() -> Finding:
    if torch.cuda.is_available():
        return Finding("device", f"cuda, {torch.cuda.get_device_name()}", "--device auto takes it")
    if not Path("/proc/driver/nvidia/version").exists():
        return Finding("device", "cpu", "no NVIDIA driver here; none is needed")
    if torch.version.cuda is None:
        why, mend = "there is an NVIDIA driver, but torch was built without CUDA", "install a CUDA build: pytorch.org"
    else:
        why = f"torch, built for CUDA {torch.version.cuda}, sees no GPU: {why_no_cuda()}"
        mend = "see what nvidia-smi says; a container needs `--gpus all`, and CUDA_VISIBLE_DEVICES may hide it"
    return Finding("device", "cpu", why, mend)


def _simulator() -> Finding:
    from ppo_fast.envs.envpool_task import import_envpool

    try:
        import_envpool()
    except BackendError as err:
        return Finding(
            "simulator", "Gymnasium", str(err), "pip install envpool: Linux, macOS on Arm, Windows on x86-64"
        )
    tasks = f"for {len(ENVPOOL_TASKS)} tasks of Gymnasium's MuJoCo and what it alone has; Gymnasium for others"
    return Finding("simulator", "EnvPool", tasks)


def _renderer() -> Finding:
    renderer, failures = video.find_renderer()
    if renderer:
        return Finding("renderer", renderer, "; ".join(failures) or "for --video; it rendered a picture")
    return Finding("renderer", "none", f"no videos: {'; '.join(failures)}", video.MEND[0].lower() + video.MEND[1:])


def _ffmpeg() -> Finding:
    try:
        import imageio_ffmpeg

        return Finding("ffmpeg", imageio_ffmpeg.get_ffmpeg_version(), imageio_ffmpeg.get_ffmpeg_exe())
    except Exception as err:  # whatever an import, a search or a program can do
        reason = " ".join(f"{type(err).__name__}: {err}".split())
        mend = "pip install imageio-ffmpeg, or name a program in IMAGEIO_FFMPEG_EXE"
        return Finding("ffmpeg", "none", f"no videos: {reason}", mend)


def _extra(package: str, does: str) -> Finding:
    try:
        return Finding(package, importlib.metadata.version(package), does)
    except importlib.metadata.PackageNotFoundError:
        return Finding(package, "not installed", does, f"pip install {package}, if you want it")
