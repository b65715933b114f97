"""What is installed and what runs where: the text to paste into an issue."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import platform
import subprocess
import warnings
from pathlib import Path
from typing import Any

import torch

from ppo_fast import __version__, kernels
from ppo_fast.cpus import num_cpus
from ppo_fast.distributed import ALONE, Peers
from ppo_fast.errors import BackendError, ConfigError

log = logging.getLogger(__name__)

PACKAGES = ("torch", "numpy", "numba", "envpool", "gymnasium", "mujoco", "safetensors", "tyro")


def build_info(*, all_backends: bool = True) -> dict[str, Any]:
    """Return versions and commit, machine, how the C++ core was built, and which kernel backends load (or why not).

    Args:
        all_backends: try them all, which imports Numba (about 2 s); else tell of the active one and those passed over.

    Where ``PPO_FAST_BACKEND`` names a backend that cannot be had, the active one is ``none: `` and the reason.
    """
    try:
        active = kernels.active()
    except BackendError as error:  # told, not raised: these facts are wanted most where something is wrong
        active = f"none: {error}"
    if all_backends:
        backends = {"active": active, "available": kernels.available(), "why_not": kernels.why_not()}
    else:
        backends = {"active": active, "why_not": kernels.passed_over()}
    return {
        "versions": versions(),
        "commit": commit(),
        "machine": {"system": f"{platform.system()} {platform.machine()}", "cpu": cpu_model(), "cpus": num_cpus()},
        "core_build": _core_build(),
        "kernels": backends,
    }


def versions() -> dict[str, str]:
    """Return the versions of Python, of this package and of what it stands on."""
    found = {"python": platform.python_version(), "ppo_fast": __version__}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def commit() -> str | None:
    """Return the commit of the checkout that runs, with ``-dirty`` where files differ from it; None without one."""
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        return None
    try:
        asked = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        return subprocess.run(asked, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def choose_device(asked: str, peers: Peers = ALONE) -> torch.device:
    """Return the device that ``asked`` (``auto``, ``cpu`` or ``cuda``) means here; each of ``peers`` gets its own GPU.

    ``auto`` takes the CPU, with a warning, where there is a GPU that cannot compute.

    Raises:
        ConfigError: ``cuda`` was asked for and cannot be had, or there are fewer than processes on this machine.
    """
    if asked == "cpu":
        return torch.device("cpu")
    with warnings.catch_warnings():
        if asked == "cuda":
            warnings.simplefilter("ignore")  # torch warns of an old driver, and the error is going to say it
        available = torch.cuda.is_available()
    if not available:
        if asked == "cuda":
            why = why_no_cuda()
            raise ConfigError(
                f"device 'cuda' was asked for, but torch sees no CUDA device here: {why}; allowed: 'auto', 'cpu'"
            )
        return torch.device("cpu")
    if peers.size > 1 and peers.local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"process {peers.local_rank} of this machine has no GPU of its own: torch sees {torch.cuda.device_count()} "
            "here; start so many processes on each machine, or take device 'cpu'"
        )
    device = torch.device("cuda", peers.local_rank) if peers.size > 1 else torch.device("cuda")
    if why := _why_it_fails(device):
        if asked == "cuda" or peers.size > 1:
            raise ConfigError(f"device 'cuda' does not compute here: {why}; allowed: 'cpu'")
        log.warning("the run goes on the CPU, the GPU does not compute: %s", why)
        return torch.device("cpu")
    return device


def why_no_cuda() -> str:
    """Return in torch's words why it sees no CUDA device, as that the driver is too old; empty if it sees one."""
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (AssertionError, RuntimeError) as err:  # the first where torch was built without CUDA
        return _first_line(err)
    return ""


def _why_it_fails(device: torch.device) -> str:
    """Return why a GPU that is there cannot add two numbers, as that it is too new for this torch; empty if it can."""
    try:
        float(torch.ones(1, device=device) + 1)
    except (AssertionError, RuntimeError) as err:
        return _first_line(err)
    return ""


def _first_line(err: Exception) -> str:
    return str(err).strip().split("\n")[0].rstrip(".")


def device_name(device: torch.device) -> str:
    """Return the GPU's or the processor's name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_model()


def cpu_model() -> str:
    """Return the processor's name as the system gives it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def _core_build() -> dict[str, Any]:
    """Return what setup.py wrote about the build of the C++ core; empty where it never ran."""
    try:
        facts: dict[str, Any] = json.loads((Path(__file__).parent / "_build_info.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return facts
