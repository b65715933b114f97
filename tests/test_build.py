"""Installing: with a compiler, without one, on request without the core; what is told about it afterwards.

Each test installs a copy of the tree into a directory of its own, so that neither the checkout nor the environment
changes. ``--no-build-isolation --no-deps`` keeps it offline; the build tools come from the environment.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import ppo_fast

ROOT = Path(__file__).resolve().parents[1]
CHOSEN = (
    "import ppo_fast, ppo_fast.kernels as k; print(ppo_fast.__file__); print(k.active()); print(k.why_not().get('cpp'))"
)


@pytest.fixture(autouse=True)
def build_tools(request: pytest.FixtureRequest) -> None:
    """Skip, or fail where the core is required, if the environment cannot build packages."""
    missing = [name for name in ("setuptools", "pybind11", "cmake", "ninja") if importlib.util.find_spec(name) is None]
    if missing:
        give_up = pytest.fail if "cpp" in request.config.getoption("--require-backends") else pytest.skip
        give_up(f"not installed: {', '.join(missing)}")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a clean copy of what git would hold of the package and its build."""
    copy = tmp_path_factory.mktemp("tree")
    for name in ("pyproject.toml", "setup.py", "CMakeLists.txt", "MANIFEST.in", "README.md"):
        shutil.copy(ROOT / name, copy)
    shutil.copytree(ROOT / "csrc", copy / "csrc")
    built = shutil.ignore_patterns("__pycache__", "*.so", "*.pyd", "_build_info.json")
    shutil.copytree(ROOT / "ppo_fast", copy / "ppo_fast", ignore=built)
    return copy


@dataclass(frozen=True)
class Installed:
    """A package installed by ``pip install --target``."""

    target: Path
    pip: subprocess.CompletedProcess[str]

    @property
    def info(self) -> dict[str, Any]:
        return json.loads((self.target / "ppo_fast" / "_build_info.json").read_text(encoding="utf-8"))

    def python(self, code: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run code that imports this installation, outside the checkout."""
        # -S: site-packages as a plain directory, without its .pth files, or an editable install would lend its core.
        paths = [str(self.target), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PPO_FAST_BACKEND": "auto", **environment}
        return subprocess.run(
            [sys.executable, "-S", "-c", code], cwd=self.target, env=env, capture_output=True, text=True, check=False
        )


def install(source: Path, target: Path, **environment: str) -> Installed:
    """Install ``source`` into ``target``."""
    env = {key: value for key, value in os.environ.items() if key not in ("PPO_FAST_BUILD", "CMAKE_ARGS", "CXX")}
    command = [sys.executable, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "--no-index", "-v"]
    pip = subprocess.run(
        [*command, "--target", str(target), str(source)],
        env={**env, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return Installed(target, pip)


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"PPO_FAST_BUILD": "skip"}, r"PPO_FAST_BUILD=skip"),
        ({"CXX": "/bin/false"}, r"CMake Error .*/bin/false.*"),
        ({"CXX": "/nowhere/c++"}, r"CMake Error .*/nowhere/c\+\+.*"),
    ],
    ids=["skip", "compiler that fails", "no compiler"],
)
def test_without_the_core_it_installs_runs_and_says_why(
    tree: Path, tmp_path: Path, environment: dict[str, str], reason: str
) -> None:
    installed = install(tree, tmp_path / "site", **environment)
    assert installed.pip.returncode == 0, installed.pip.stdout
    assert installed.info["built"] is False
    assert re.fullmatch(reason, installed.info["error"]), installed.info["error"]
    assert not list(installed.target.glob("ppo_fast/_core.*.*"))

    chosen = installed.python(CHOSEN)
    assert chosen.returncode == 0, chosen.stderr
    where, active, why = chosen.stdout.splitlines()
    assert Path(where).is_relative_to(installed.target)
    assert active == ("numba" if importlib.util.find_spec("numba") else "reference")
    assert why == f"the C++ core was not built: {installed.info['error']}"

    forced = installed.python(
        "import ppo_fast.kernels as k; k.permutation(3, seed=1, stream=1)", PPO_FAST_BACKEND="cpp"
    )
    assert forced.returncode != 0
    last_line = forced.stderr.strip().splitlines()[-1]
    assert last_line == f"ppo_fast.errors.BackendError: kernel backend 'cpp' cannot be used: {why}"


def test_required_without_a_compiler_fails_with_the_reason(tree: Path, tmp_path: Path) -> None:
    installed = install(tree, tmp_path / "site", PPO_FAST_BUILD="require", CXX="/bin/false")
    assert installed.pip.returncode != 0
    assert re.search(r"RuntimeError: CMake Error .*/bin/false", installed.pip.stdout), installed.pip.stdout
    assert not installed.target.exists() or not list(installed.target.iterdir())


def test_an_unknown_build_mode_is_an_error(tree: Path, tmp_path: Path) -> None:
    installed = install(tree, tmp_path / "site", PPO_FAST_BUILD="always")
    assert installed.pip.returncode != 0
    assert "PPO_FAST_BUILD must be auto, require or skip, got 'always'" in installed.pip.stdout


@pytest.fixture(scope="module")
def sdist(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    code = f"from setuptools.build_meta import build_sdist; print(build_sdist({str(folder)!r}))"
    built = subprocess.run([sys.executable, "-c", code], cwd=tree, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    (archive,) = folder.glob("*.tar.gz")
    return archive


def test_an_sdist_holds_all_that_the_core_needs(sdist: Path) -> None:
    with tarfile.open(sdist) as tar:
        names = {name.split("/", 1)[-1] for name in tar.getnames()}
    assert {"setup.py", "CMakeLists.txt", "ppo_fast/_core.pyi", "ppo_fast/py.typed"} <= names
    assert {f"csrc/{path.name}" for path in (ROOT / "csrc").iterdir()} <= names
    assert not [name for name in names if name.endswith((".so", "_build_info.json"))]


@pytest.mark.slow  # compiles everything once more
def test_an_sdist_installs_with_its_core(sdist: Path, tmp_path: Path) -> None:
    installed = install(sdist, tmp_path / "site", PPO_FAST_BUILD="require")
    assert installed.pip.returncode == 0, installed.pip.stdout
    assert installed.info["built"] is True
    assert installed.info["error"] == ""
    chosen = installed.python(CHOSEN)
    assert chosen.stdout.splitlines()[1:] == ["cpp", "None"], chosen.stderr


@pytest.mark.usefixtures("native_core")
def test_the_core_is_portable_and_has_no_fast_math() -> None:
    info = json.loads((ROOT / "ppo_fast" / "_build_info.json").read_text(encoding="utf-8"))
    assert info["built"] is True
    assert info["error"] == ""
    assert "-ffp-contract=off" in info["flags"]
    assert not re.search(r"-march|-ffast-math|-fopenmp", info["flags"])


@pytest.mark.parametrize("variables", [{"PPO_FAST_BUILD": "skip"}, {"PPO_FAST_BUILD": "auto", "CXX": "false"}])
def test_a_build_that_makes_no_core_does_not_leave_an_older_one_behind(
    variables: dict[str, str], tree: Path, tmp_path: Path
) -> None:
    built = tree / "build" / f"lib.{sysconfig.get_platform()}-{sys.implementation.cache_tag}" / "ppo_fast"
    older = built / f"_core{sysconfig.get_config_var('EXT_SUFFIX')}"
    built.mkdir(parents=True, exist_ok=True)
    older.write_bytes(b"of an earlier build")
    again = install(tree, tmp_path / "site", **variables)
    assert again.pip.returncode == 0
    assert (built / "_build_info.json").exists()  # it was built there, and not somewhere else
    assert not older.exists()
    assert not list(again.target.glob("ppo_fast/_core.*.so"))


def test_versions_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert ppo_fast.__version__ == project["version"]
    if importlib.util.find_spec("ppo_fast._core") is not None:
        from ppo_fast import _core

        assert _core.__version__ == project["version"], "the compiled core is stale: install again"
