"""The native learner and actor under other compilers, on another processor, and under ThreadSanitizer.

What a machine lacks for that is a skip with its name. ``native/updates.cpp`` is the program that runs.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ("ppo_level.cpp", "team.cpp")
FLAGS = ["-std=c++17", "-ffp-contract=off", "-fno-math-errno", "-Wall", "-Wextra", "-Wconversion", "-Werror"]
AVX2 = ["-mavx2", "-mfma"]
AARCH64, QEMU = "aarch64-linux-gnu-g++", "qemu-aarch64-static"


def tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"there is no {name}")
    return path


def checked(*command: str | Path) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def built(compiler: str, to: Path, *flags: str) -> Path:
    """Build the program that updates, with one SIMD level: whatever ``flags`` allow."""
    sources = [ROOT / "tests" / "native" / "updates.cpp", *(ROOT / "csrc" / name for name in SOURCES)]
    checked(tool(compiler), *FLAGS, "-pthread", "-I", ROOT / "csrc", *flags, *sources, "-o", to)
    return to


def has_avx2() -> bool:
    from ppo_fast import _core

    return "avx2" in _core.simd_levels()


@pytest.mark.parametrize(
    ("compiler", "flags"),
    [
        (AARCH64, []),
        ("clang++", []),
        ("clang++", ["--target=x86_64-linux-gnu", *AVX2, "-DPPO_FAST_X86", "-DPPO_FAST_LEVEL_AVX2"]),
        ("clang++", ["--target=x86_64-linux-gnu", *AVX2, "-mavx512f", "-DPPO_FAST_X86", "-DPPO_FAST_LEVEL_AVX512"]),
    ],
)
@pytest.mark.parametrize("source", SOURCES)
def test_it_compiles_without_a_warning(compiler: str, flags: list[str], source: str) -> None:
    checked(tool(compiler), *FLAGS, *flags, "-fsyntax-only", ROOT / "csrc" / source)


@pytest.mark.slow
@pytest.mark.usefixtures("native_core")
def test_neon_and_avx2_give_equal_bits(tmp_path: Path) -> None:
    if not has_avx2():
        pytest.skip("this processor has no AVX2")
    emulator = tool(QEMU)
    here = checked(built("g++", tmp_path / "here", "-O2", *AVX2))
    assert len(set(here.split())) == 16  # every activation and head leaves other numbers
    assert checked(emulator, built(AARCH64, tmp_path / "there", "-O2", "-static")) == here
    assert checked(built("g++", tmp_path / "baseline", "-O2")) != here  # the control arm: it does see rounding


@pytest.mark.slow
def test_threads_race_for_nothing(tmp_path: Path) -> None:
    if checked(tool("g++"), "-print-file-name=libtsan.so").strip() == "libtsan.so":
        pytest.skip("there is no ThreadSanitizer")
    checked(
        built("g++", tmp_path / "updates", "-O1", "-g", "-fsanitize=thread")
    )  # a race is a message and exit code 66
