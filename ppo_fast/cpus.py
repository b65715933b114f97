"""How much of the machine this process may use: the one place from which simulator and learner threads are budgeted.

The phases of an iteration take turns, so each may have the whole budget: EnvPool's workers sleep during an update, the
learner's threads sleep during a rollout, and torch computes with its own threads in this one only.
"""

from __future__ import annotations

import math
import os
from pathlib import Path


def cpu_budget() -> float:
    """Return how many CPUs may be kept busy: those of the affinity mask, or fewer by the container's quota.

    Processes that train together on this machine share them: each has its part, and at least one.
    """
    sharing = os.environ.get("LOCAL_WORLD_SIZE", "1")  # by torchrun; distributed/ checks it
    return max(1.0, min(float(num_cpus()), cpu_quota()) / max(1, int(sharing) if sharing.isdigit() else 1))


def num_cpus() -> int:
    """Return how many CPUs the affinity mask leaves this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_quota(proc: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> float:
    """Return the CPU quota in CPUs that cgroup v2 sets on this process or a parent group, ``inf`` without one."""
    quota = math.inf
    try:
        own = next(line[3:] for line in proc.read_text().splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        return quota
    group = root / own.lstrip("/")
    for folder in (group, *group.parents):
        try:
            limit, period = (folder / "cpu.max").read_text().split()
            quota = min(quota, quota if limit == "max" else int(limit) / int(period))
        except (OSError, ValueError):
            pass  # the root group, or one without the cpu controller, has no such file
        if folder == root:
            break
    return quota
