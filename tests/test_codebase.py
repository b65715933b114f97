"""The shape of the code: one-way layers, small modules, imports without side effects, documented names."""

from __future__ import annotations

import ast
import importlib.metadata
import io
import re
import subprocess
import sys
import tokenize
import tomllib
from pathlib import Path

import pytest

import ppo_fast
from ppo_fast import kernels

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ppo_fast"
SOURCES = {".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in sorted(PACKAGE.rglob("*.py"))}

# A module imports from lower levels or from its own folder, and from nothing else of the package.
LEVELS = {
    0: ["apart", "errors", "batch", "cpus", "files", "timing", "algos", "typecheck"],
    1: ["config_rules", "keywords", "reference", "_core", "lock", "pool", "scores", "symptoms", "distributed"],
    2: ["config", "kernels", "nonfinite", "race"],
    3: ["presets", "search", "envs", "models", "normalizers", "sinks", "system", "checkpoint", "plotting"],
    4: ["native", "state", "metrics", "trials"],
    5: ["sweep_results", "rollout", "learners", "evaluation"],
    6: ["report", "parts", "video", "window", "lockstep", "graph", "calibrate"],
    7: ["run_dir", "run_info", "saver", "schedule", "examiner", "cli", "findings"],
    8: ["trainer", "runs"],
    9: ["train", "play", "info", "verify", "study", "sweep", "plot", "export"],
}
LEVEL_OF = {name: level for level, names in LEVELS.items() for name in names}

MODULE_LINES, FUNCTION_LINES, LOOP_LINES = 300, 60, 80
LOOP = ("ppo_fast.trainer", "Trainer.run")


def part(module: str) -> str:
    """Return the module or folder below the package: ``ppo_fast.envs.base`` -> ``envs``; "" for the package itself."""
    return module.split(".")[1] if "." in module else ""


def package_imports(module: str, path: Path) -> set[str]:
    """Return the modules of the package that ``path`` imports, anywhere in it."""
    is_folder = path.name == "__init__.py"
    name = module.removesuffix(".__init__")
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = name.split(".")[: len(name.split(".")) - node.level + is_folder]
                base = ".".join([*above, base]).rstrip(".")
            # `from ppo_fast import kernels` imports ppo_fast.kernels, `from ppo_fast.errors import X` ppo_fast.errors
            found |= {f"{base}.{alias.name}" if f"{base}.{alias.name}" in KNOWN else base for alias in node.names}
    return {target for target in found if target.split(".")[0] == "ppo_fast"}


KNOWN = {name.removesuffix(".__init__") for name in SOURCES} | {"ppo_fast._core"}


def test_every_module_has_a_level() -> None:
    parts = {part(name) for name in SOURCES if name != "ppo_fast.__init__"}
    assert parts - set(LEVEL_OF) == set(), "give each new module a level"
    assert set(LEVEL_OF) - parts == {"_core"}, "levels of modules that are gone"


@pytest.mark.parametrize("module", [name for name in SOURCES if name != "ppo_fast.__init__"])
def test_a_module_imports_from_lower_levels_alone(module: str) -> None:
    own = part(module)
    for target in package_imports(module, SOURCES[module]):
        other = part(target)
        if other in ("", own):  # `from ppo_fast import __version__`, or the module's own folder
            continue
        assert LEVEL_OF[other] < LEVEL_OF[own], (
            f"{module} (level {LEVEL_OF[own]}) imports {target} (level {LEVEL_OF[other]})"
        )


def test_the_import_test_sees_imports() -> None:
    """Hold the walker to imports that are known to be there."""
    assert "ppo_fast.kernels" in package_imports(
        "ppo_fast.rollout.torch_worker", PACKAGE / "rollout" / "torch_worker.py"
    )
    assert "ppo_fast.errors" in package_imports("ppo_fast.kernels._select", PACKAGE / "kernels" / "_select.py")
    assert "ppo_fast._core" in package_imports("ppo_fast.kernels._cpp", PACKAGE / "kernels" / "_cpp.py")
    assert "ppo_fast.cli" in package_imports("ppo_fast.train", PACKAGE / "train.py")  # inside a function


def test_the_reference_is_imported_by_the_kernels_and_by_what_compares_with_it() -> None:
    importers = {
        name
        for name, path in SOURCES.items()
        if part(name) != "reference" and any(part(target) == "reference" for target in package_imports(name, path))
    }
    assert {part(name) for name in importers} == {"kernels", "lockstep"}


def test_only_the_kernels_the_native_learner_and_the_native_actor_touch_native_code() -> None:
    importers = {name for name, path in SOURCES.items() if "ppo_fast._core" in package_imports(name, path)}
    assert importers == {
        "ppo_fast.kernels._cpp",
        "ppo_fast.native",
        "ppo_fast.learners.native",
        "ppo_fast.rollout.native_worker",
    }


# --- files are data --------------------------------------------------------------------------------------------------
EXECUTES = {
    "pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "yaml", "eval", "exec", "compile",
    "__import__", "torch.load", "torch.jit.load", "np.load", "numpy.load", "pandas.read_pickle",
}  # fmt: skip


def executing(path: Path) -> set[str]:
    """Return what a module names that can run code from a file it reads."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found |= {(node.module or "").split(".")[0], *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Call):
            found.add(ast.unparse(node.func))
    return found & EXECUTES


@pytest.mark.parametrize("module", list(SOURCES))
def test_nothing_that_is_read_can_run_code(module: str) -> None:
    assert not executing(SOURCES[module])


@pytest.mark.parametrize(
    "line", ["import pickle", "from pickle import loads", "torch.load(x)", "from torch import load", "eval(x)",
             "import yaml.loader", "exec(x)", "np.load(x, allow_pickle=True)"]
)  # fmt: skip
def test_the_scan_sees(tmp_path: Path, line: str) -> None:
    (tmp_path / "m.py").write_text(line)
    assert executing(tmp_path / "m.py")


# --- size ------------------------------------------------------------------------------------------------------------
def functions(tree: ast.AST, prefix: str = "") -> list[tuple[str, int]]:
    """Return (qualified name, lines without the docstring) of every function."""
    found = []
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = f"{prefix}{node.name}"
            if not isinstance(node, ast.ClassDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                if ast.get_docstring(node, clean=False) is not None:
                    lines -= (node.body[0].end_lineno or 0) - node.body[0].lineno + 1
                found.append((name, lines))
            found += functions(node, f"{name}.")
    return found


@pytest.mark.parametrize("module", list(SOURCES))
def test_a_module_and_its_functions_are_small(module: str) -> None:
    text = SOURCES[module].read_text()
    assert len(text.splitlines()) <= MODULE_LINES, f"{module} has {len(text.splitlines())} lines"
    for name, lines in functions(ast.parse(text)):
        assert lines <= (LOOP_LINES if (module, name) == LOOP else FUNCTION_LINES), f"{module}.{name}: {lines} lines"


# Lines of code, without comments, docstrings and blank lines, and the ceiling of each: CONTRIBUTING.md says why.
AREAS = {
    "algorithm": (3000, ["learners", "rollout", "kernels", "models", "normalizers", "native", "batch", "state",
                         "trainer", "schedule", "algos", "presets", "config", "config_rules"]),
    "environments": (1650, ["apart", "envs", "evaluation", "examiner"]),
    "reference and comparison": (1800, ["reference", "lockstep", "verify", "findings"]),
    "runs kept": (1500, ["checkpoint", "saver", "run_dir", "run_info", "lock", "files", "nonfinite", "parts", "train",
                         "cli", "keywords", "typecheck", "errors", "timing", ""]),
    "shown and used": (2400, ["sinks", "report", "symptoms", "plot", "plotting", "play", "video", "window", "export",
                              "graph", "info", "system", "calibrate", "cpus", "metrics"]),
    "many processes": (1450, ["distributed", "study", "scores", "sweep", "trials", "search", "race", "sweep_results",
                              "pool", "runs"]),
}  # fmt: skip
CSRC_CEILING = 2500


def code_lines(text: str) -> int:
    """Return how many lines hold code: no blank ones, comments or strings that stand alone."""
    alone = {
        line
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for line in range(node.lineno, (node.end_lineno or 0) + 1)
    }
    layout = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    tokens = [t for t in tokenize.generate_tokens(io.StringIO(text).readline) if t.type not in layout]
    return len({line for t in tokens for line in range(t.start[0], t.end[0] + 1)} - alone)


def test_lines_of_code_are_counted() -> None:
    assert (
        code_lines(
            '"""Docstring.\n\nLonger."""\n\n# comment\nx = (1,\n     2)  # two\n\ndef f():\n    "f"\n    return x\n'
        )
        == 4
    )


def test_the_whole_is_no_larger_than_was_decided() -> None:
    area_of = {module: area for area, (_, modules) in AREAS.items() for module in modules}
    sizes = dict.fromkeys(AREAS, 0)
    for name, path in SOURCES.items():
        sizes[area_of["" if name == "ppo_fast.__init__" else part(name)]] += code_lines(path.read_text())
    native = [line for path in (ROOT / "csrc").glob("*.?pp") for line in path.read_text().splitlines()]
    sizes["csrc"] = sum(bool(line.strip()) and not line.strip().startswith("//") for line in native)
    for area, size in sizes.items():
        print(f"{area:26s}{size:6,d}")
    ceilings = {area: ceiling for area, (ceiling, _) in AREAS.items()} | {"csrc": CSRC_CEILING}
    assert {area: size for area, size in sizes.items() if size > ceilings[area]} == {}, "cut, or decide and say why"


def test_headers_are_small() -> None:
    long = {p.name: n for p in (ROOT / "csrc").glob("*.hpp") if (n := len(p.read_text().splitlines())) > 250}
    assert not long


# --- imports have no side effects ------------------------------------------------------------------------------------
def python(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_package_imports_neither_torch_nor_a_simulator() -> None:
    code = "import sys, ppo_fast; print(*sorted(m for m in sys.modules if '.' not in m))"
    loaded = set(python(code).split())
    assert "ppo_fast" in loaded
    assert not loaded & {"torch", "numpy", "numba", "gymnasium", "envpool", "mujoco", "tyro", "rich", "matplotlib"}


def test_importing_every_module_changes_nothing() -> None:
    """No seeding, no thread settings, no signal or log handlers, no child, no file, no word."""
    modules = sorted(name for name in KNOWN if name != "ppo_fast._core" and not name.endswith("__main__"))
    code = f"""
import logging, os, random, signal, threading, warnings
import numpy as np, torch
def state():
    return (random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist(), torch.get_num_threads(),
            torch.get_default_dtype(), torch.are_deterministic_algorithms_enabled(), np.geterr(),
            [signal.getsignal(s) for s in signal.valid_signals()], logging.getLogger().handlers[:],
            logging.getLogger().level, dict(os.environ), os.getcwd())
os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "hide")  # which Gymnasium does, to others' words
before = state()
import importlib
for name in {modules!r}:
    importlib.import_module(name)
assert state() == before
"""
    assert python(code) == ""


@pytest.mark.parametrize("name", ["train", "play", "info", "verify", "export"])
def test_a_command_line_prints_help_quickly_and_needs_no_display(name: str) -> None:
    code = f"""
import sys
sys.argv = ["x", "--help"]
from ppo_fast.{name} import main
try:
    main()
except SystemExit as stop:
    assert stop.code == 0
print("gymnasium" in sys.modules, "matplotlib" in sys.modules)
"""
    assert python(code).splitlines()[-1] == "False False"


# --- nothing that runs is read from a file ---------------------------------------------------------------------------
FORBIDDEN_MODULES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "yaml", "jsonpickle"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_ATTRIBUTES = {("torch", "load"), ("torch", "save"), ("yaml", "load"), ("np", "load"), ("numpy", "load")}


@pytest.mark.parametrize("module", list(SOURCES))
def test_no_pickle_and_no_evaluation_of_data(module: str) -> None:
    for node in ast.walk(ast.parse(SOURCES[module].read_text())):
        if isinstance(node, ast.Import):
            assert not {alias.name.split(".")[0] for alias in node.names} & FORBIDDEN_MODULES
        elif isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] not in FORBIDDEN_MODULES
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in FORBIDDEN_CALLS, f"{module}:{node.lineno}"
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert (node.value.id, node.attr) not in FORBIDDEN_ATTRIBUTES, f"{module}:{node.lineno}"
        elif isinstance(node, ast.keyword):
            assert node.arg not in ("weights_only", "allow_pickle", "shell"), f"{module}:{node.value.lineno}"


def test_only_command_lines_print() -> None:
    commands = {f"ppo_fast.{name}" for name in ("cli", "play", "window", "info", "study", "sweep", "plot", "export")}
    allowed = commands | {"ppo_fast.reference.__main__"}
    for module, path in SOURCES.items():
        prints = [
            node.lineno
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
        ]
        assert not prints or module in allowed, f"{module}: {prints}"


# --- names -----------------------------------------------------------------------------------------------------------
def test_public_names_are_there_and_documented_in_the_readme() -> None:
    assert sorted(ppo_fast.__all__) == list(ppo_fast.__all__)
    for name in ppo_fast.__all__:
        assert getattr(ppo_fast, name).__doc__
    readme = (ROOT / "README.md").read_text()
    cells = re.findall(r"^\|([^|]*`[^|]*)\|", readme, re.MULTILINE)  # the first of each row that names something
    missing = set(ppo_fast.__all__) - set(re.findall(r"`(?:pf\.|ppo_fast\.)?(\w+)", " ".join(cells)))
    assert not missing, f"README.md has no table row for {sorted(missing)}"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'ppo_fast' has no attribute 'train_fast'"):
        ppo_fast.train_fast  # noqa: B018


def test_every_module_says_what_it_is_for_and_postpones_annotations() -> None:
    for module, path in SOURCES.items():
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree), module
        assert "from __future__ import annotations" in path.read_text() or len(tree.body) == 1, module


def test_one_version_everywhere() -> None:
    with open(ROOT / "pyproject.toml", "rb") as file:
        declared = tomllib.load(file)["project"]["version"]
    assert ppo_fast.__version__ == declared
    assert importlib.metadata.version("ppo_fast") == declared
    if kernels.available()["cpp"]:
        from ppo_fast import _core

        assert _core.__version__ == declared
    else:
        pytest.skip(f"the core is missing: {kernels.why_not()['cpp']}")


def test_the_repository_names_no_machine() -> None:
    """No home directory, no private path, no log of the simulator."""
    for path in SOURCES.values():
        assert not re.search(r"/(home|root|Users)/", path.read_text()), path
    assert not list(ROOT.glob("MUJOCO_LOG.TXT"))


def test_every_test_that_the_documentation_names_exists() -> None:
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))
    defined = set(re.findall(r"def (test_\w+)", tests))
    paths = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "benchmarks" / "README.md"]
    pages = [page.read_text() for page in paths]
    named = {name for page in pages for name in re.findall(r"`(?:[\w/]+\.py::)?(test_\w+)`", page)}
    assert len(named) > 25
    benches = "\n".join(path.read_text() for path in (ROOT / "benchmarks").glob("*.py"))
    assert named - defined - set(re.findall(r"def (test_\w+)", benches)) == set()
    files = {file for page in pages for file in re.findall(r"\b(?:tests|benchmarks)/\w+\.py", page)}
    assert len(files) > 5
    assert [file for file in sorted(files) if not (ROOT / file).exists()] == []
