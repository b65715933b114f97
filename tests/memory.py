"""How much memory this process has now, for tests that something allocates nothing."""

from __future__ import annotations

import os

import pytest

seen = pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs /proc to see the process's memory")


def resident_bytes() -> int:
    """Return what is resident at this moment; the maximum of getrusage would hide growth below an earlier peak."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
