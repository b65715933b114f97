"""Drive CMake to build the optional extension ppo_fast._core; everything else is in pyproject.toml.

PPO_FAST_BUILD = auto (default): build it if possible, install without it otherwise; require: fail without it;
skip: do not try. What happened goes to ppo_fast/_build_info.json, from where ppo_fast tells it at run time.
CMAKE_ARGS is passed on to CMake.
"""

from __future__ import annotations

import importlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


def tool(name: str) -> str | None:
    """Return the path of cmake or ninja, from the package of that name if installed (its bin/ may not be on PATH)."""
    try:
        module = importlib.import_module(name)
    except ImportError:
        return shutil.which(name)
    directory = getattr(module, "CMAKE_BIN_DIR", None) or getattr(module, "BIN_DIR", None)
    return shutil.which(name, path=directory) or shutil.which(name)


def run(*command: str) -> None:
    """Run a command; if it fails, raise RuntimeError with its output from the first line that speaks of an error."""
    print("+", shlex.join(command), flush=True)
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False
    )
    print(done.stdout, flush=True)
    if done.returncode != 0:
        lines = done.stdout.splitlines() or [f"{command[0]} returned {done.returncode} without a word"]
        first = next((i for i, line in enumerate(lines) if "error" in line.lower()), 0)
        raise RuntimeError(" ".join(" ".join(lines[first:]).split())[:600])


class CMakeBuild(build_ext):
    """Build _core with CMake, or record why not."""

    def build_extension(self, ext: Extension) -> None:
        """Build one extension and write _build_info.json beside it."""
        mode = os.environ.get("PPO_FAST_BUILD", "auto")
        if mode not in ("auto", "require", "skip"):
            sys.exit(f"PPO_FAST_BUILD must be auto, require or skip, got {mode!r}")
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.unlink(missing_ok=True)  # a stale binary of an earlier build must not pass for this one
        info = {"version": self.distribution.get_version(), "built": False, "compiler": "", "compiler_version": ""}
        info |= {"flags": "", "error": "PPO_FAST_BUILD=skip"}
        if mode != "skip":
            try:
                info |= self.compile(target)
            except Exception as err:  # whatever went wrong, "auto" installs without the core
                if mode == "require":
                    raise
                info["error"] = str(err) or repr(err)
                print(f"ppo_fast: the C++ core was not built, Numba will be used: {info['error']}", file=sys.stderr)
        target.parent.mkdir(parents=True, exist_ok=True)
        self.info_file = target.parent / "_build_info.json"
        self.info_file.write_text(json.dumps(info, indent=1) + "\n", encoding="utf-8")

    def compile(self, target: Path) -> dict[str, object]:
        """Run CMake so that ``target`` is built; return the compiler and its flags."""
        import pybind11

        cmake, ninja = tool("cmake"), tool("ninja")
        if cmake is None:
            raise RuntimeError("cmake was not found")
        build_dir = Path(self.build_temp).resolve() / "cmake"
        shutil.rmtree(build_dir, ignore_errors=True)  # its cache remembers paths of isolated builds that are gone
        configure = [
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target.parent}",
            f"-DPPO_FAST_VERSION={self.distribution.get_version()}",
        ]
        if ninja is not None:
            configure += ["-GNinja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
        run(cmake, "-S", str(ROOT), "-B", str(build_dir), *configure, *shlex.split(os.environ.get("CMAKE_ARGS", "")))
        run(cmake, "--build", str(build_dir), "--config", "Release")
        if not target.exists():
            raise RuntimeError(f"the build left no {target.name}")
        compiler, compiler_version, flags = (build_dir / "compiler.txt").read_text(encoding="utf-8").splitlines()
        return {
            "built": True,
            "compiler": compiler,
            "compiler_version": compiler_version,
            "flags": flags,
            "error": "",
        }

    def copy_extensions_to_source(self) -> None:
        """Finish an editable install: what was built, or its absence, shows in the source tree."""
        package = ROOT / "ppo_fast"
        for ext in self.extensions:
            (package / Path(self.get_ext_filename(ext.name)).name).unlink(missing_ok=True)
        super().copy_extensions_to_source()
        shutil.copy(self.info_file, package)


setup(
    ext_modules=[Extension("ppo_fast._core", sources=[], optional=True)],
    cmdclass={"build_ext": CMakeBuild},
)
