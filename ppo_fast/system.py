"""What is installed and what runs where: the text to paste into an issue."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from typing import Any

from ppo_fast import kernels

PACKAGES = ("ppo_fast", "torch", "numpy", "numba", "envpool", "gymnasium", "mujoco", "safetensors", "tyro")


def build_info() -> dict[str, Any]:
    """Return versions of packages, the machine, and the kernel backends with the reason for each that is missing."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "versions": {"python": platform.python_version(), **versions},
        "machine": {
            "system": platform.platform(),
            "cpu": cpu_model(),
            "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        },
        "kernels": {"active": kernels.active(), "available": kernels.available(), "why_not": kernels.why_not()},
    }


def cpu_model() -> str:
    """Return the processor's name as the system gives it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
