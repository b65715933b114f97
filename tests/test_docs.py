"""The documentation is true: its links lead somewhere, its commands and its code run, the page of options is today's.

Every ``python -m ppo_fast...`` of a fenced block is run with a tiny budget, in this process, page by page. What is left
to other tests because it takes long: ``verify``, and the film of ``play``.
"""

from __future__ import annotations

import glob
import importlib
import json
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import gymnasium
import pytest
from commands import call

from ppo_fast import train

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in ("quickstart", "recipes"))]
PAGES += sorted({*(ROOT / "docs").glob("*.md")} - {*PAGES})

_TINY = "--num-envs 4 --num-steps 32 --minibatch-size 64 --eval-episodes 2 --eval-every 0 --device cpu --log --quiet"
TINY = _TINY.split()
_FEW = "--num-envs 2 --num-steps 32 --minibatch-size 32 --total-timesteps 150"
FEW = _FEW.split()  # for the reference
BUDGET = {"ppo": ["--update-epochs", "1"], "trpo": ["--critic-epochs", "1"], "reinforce": ["--critic-epochs", "1"]}
LONG = ("ppo_fast.verify",)  # run by tests/test_verify.py


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def prepare(page: Path, folder: Path) -> None:
    """Write the files that the page's commands name: a config, and the robot that it shows."""
    (folder / "experiment.toml").write_text('env = "InvertedPendulum-v5"\ngamma = 0.98\n')
    for language, suffix in (("xml", ".xml"), ("python", ".py")):
        for text in blocks(page, language):
            if "alancer" in text:
                (folder / f"balancer{suffix}").write_text(text)


def commands(page: Path) -> list[tuple[str, list[str]]]:
    """Return module and arguments of the commands of a page, in order."""
    found_blocks = [block for language in ("", "(?:sh|bash|console)") for block in blocks(page, language)]
    lines = [line for block in found_blocks for line in block.replace("\\\n", "").splitlines()]
    found = [re.match(r"(?:\$ )?python -m (ppo_fast\.\w+)(.*)", line) for line in lines]
    return [(each[1], shlex.split(each[2], comments=True)) for each in found if each and each[1] not in LONG]


def value(args: list[str], flag: str, otherwise: str) -> str:
    return args[args.index(flag) + 1] if flag in args else otherwise


def without(args: list[str], flag: str) -> list[str]:
    at = args.index(flag) if flag in args else len(args)
    return args[:at] + args[at + 2 :]


def tiny_training(args: list[str]) -> list[str]:
    algo = value(args, "--algo", "ppo")
    steps = "1300" if "--resume" in args else "600"
    return [*args, *TINY, *BUDGET[algo], "--total-timesteps", steps]


class InThisProcess:
    """What a study or a sweep starts instead of a process: the same command, here and now."""

    def __init__(self, command: list[str]) -> None:
        self.returncode = train.main(command[3:])

    def poll(self) -> int:
        return self.returncode


def run(module: str, args: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run one command of the documentation with a tiny budget."""
    if module == "ppo_fast.reference":
        monkeypatch.setattr(sys, "argv", [module, *args, *FEW])
        with pytest.raises(SystemExit) as stopped:
            runpy.run_module(module, run_name="__main__")
        assert stopped.value.code == 0
        return
    if module == "ppo_fast.train":
        args = tiny_training(args)
    elif module in ("ppo_fast.play", "ppo_fast.export") and not Path(args[0]).exists():  # of another page
        assert train.main(tiny_training(["--env", "Walker2d-v5", "--run-dir", args[0]])) == 0
    if module == "ppo_fast.play":
        args = [*without(without(args, "--video"), "--episodes"), "--episodes", "2"]
    elif module in ("ppo_fast.study", "ppo_fast.sweep"):
        real = subprocess.Popen
        monkeypatch.setattr(
            subprocess, "Popen", lambda command, **options: (
                InThisProcess(command) if "ppo_fast.train" in command else real(command, **options)
            ),
        )  # fmt: skip
        cut = args.index("--") if "--" in args else len(args)
        tiny = without(tiny_training(args[cut + 1 :]), "--eval-every")
        own = without(without(args[:cut], "--seeds"), "--trials")
        few = ["--gymnasium-episodes", "1"] if module == "ppo_fast.study" else ["--trials", "1"]
        args = [*own, "--seeds", "1", *few, "--", *tiny]
    elif module == "ppo_fast.plot":
        args = [path for arg in args for path in (sorted(glob.glob(arg)) or [arg])]
    outcome = call(importlib.import_module(module).main, capsys, *args)
    assert outcome.code == 0, (module, args, outcome.err)
    assert outcome.out


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=lambda page: page.name)
def test_the_commands_of_a_page_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    prepare(page, tmp_path)
    ant = Path(gymnasium.__file__).parent / "envs" / "mujoco" / "assets" / "ant.xml"
    for module, args in commands(page):
        run(module, [arg.replace("/robots/ant.xml", str(ant)) for arg in args], capsys, monkeypatch)


def test_commands_are_found() -> None:
    found = {module for page in PAGES for module, _ in commands(page)}
    names = ("train", "study", "sweep", "play", "plot", "info", "reference")
    assert found >= {f"ppo_fast.{name}" for name in names}


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "docs" / "python.md"], ids=lambda page: page.name)
def test_the_code_of_a_page_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for number, code in enumerate(blocks(page, "python")):
        shorter = code.replace("200_000", f"20_000, log=(), quiet=True, run_dir='{number}'")
        assert shorter != code
        shorter = shorter.replace("eval_every=50_000", "eval_every=5_000").replace("StopAt(3000)", "StopAt(1)")
        exec(compile(shorter, page.name, "exec"), {})
        if "StopAt" in code:
            assert capsys.readouterr().out.endswith("a return of 1\n")


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not re.match(r"https?://|#", target):
            assert (page.parent / target.split("#")[0]).exists(), f"{page.name} -> {target}"


def test_every_page_can_be_found_from_the_readme() -> None:
    told = (ROOT / "README.md").read_text()
    assert [page.name for page in PAGES[1:] if f"docs/{page.name}" not in told] == []


def test_the_page_of_options_is_up_to_date() -> None:
    made = runpy.run_path(str(ROOT / "docs" / "make_flags.py"))["page"]()
    assert (ROOT / "docs" / "flags.md").read_text() == made, "python docs/make_flags.py"


def test_the_page_of_results_is_up_to_date_and_its_numbers_are_those_of_the_runs() -> None:
    made = runpy.run_path(str(ROOT / "docs" / "make_results.py"))
    text = (ROOT / "docs" / "results.md").read_text()
    assert text == made["page"](made["studies"]()), "python docs/make_results.py"
    for folder in made["studies"]():
        results = json.loads((folder / "results.json").read_text())
        last = {}  # of each task, the runs' mean of the last tenth, with plain Python
        for run in results["runs"]:
            tenth = run["means"][-max(1, round(len(run["means"]) / 10)) :]
            last.setdefault(run["env"], []).append(sum(tenth) / len(tenth))
        for env, scores in last.items():
            least = 3 if results["runs"][0]["total_timesteps"] == 10**7 else 5
            left = env in made["SUPERSEDED"].get(folder.name, ())  # as its preset was, before it was complete
            assert len(scores) >= least or left, f"{folder.name}: {env}"
            mean = sum(scores) / len(scores)
            assert f"| {mean:,.{1 if abs(mean) < 100 else 0}f} ±" in text, f"{folder.name}: {env}"
        assert all(run["finished"] for run in results["runs"])
        assert min(run["seed"] for run in results["runs"]) > 32  # with none of which a preset was chosen


def test_the_returns_in_the_readme_are_those_of_the_page_of_results() -> None:
    section = (ROOT / "README.md").read_text().split("## Does it learn")[1].split("\n## ")[0]
    page = (ROOT / "docs" / "results.md").read_text().split("\n## ")[0]
    rows = re.findall(r"^\| (\S+-v5) \| (.*?) ?\| (.*?) ?\| (.*?) ?\|$", section, re.MULTILINE)
    kinds = (("1M", "sample", "5"), ("3M", "sample", "5"), ("10M", "fast", "3"))
    told = [
        (env, steps, preset, value, seeds)
        for env, *cells in rows
        for (steps, preset, seeds), value in zip(kinds, cells, strict=True)
        if value
    ]
    there = re.findall(r"^\| (\S+-v5) \| (\d+M) \| (\w+) \| (.*?), (\d) seeds ", page, re.MULTILINE)
    assert sorted(told) == sorted(there)
