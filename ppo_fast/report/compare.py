"""The page that compares runs: their curves task by task, their scores, and what their options differ in.

R runs of a task, one per seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ppo_fast import scores
from ppo_fast.algos import NAMES
from ppo_fast.report import NAME
from ppo_fast.report.files import read
from ppo_fast.report.options import options
from ppo_fast.report.page import Html, document, fold, join, link, note, section, table, tag
from ppo_fast.report.run import show
from ppo_fast.report.svg import Curve, chart, legend
from ppo_fast.scores import RunScores, TaskScores
from ppo_fast.sinks.progress import clock

Key = tuple[str, str, str]  # environment, algorithm, preset

_OWN = {"env", "seed", "run_dir", "resume", "quiet"}  # options in which runs differ that are not compared for it


def compare_page(runs: Sequence[RunScores], out: Path) -> bytes:
    """Return the page about runs with an evaluation each, to be written to ``out``, from where its links lead."""
    tasks = scores.by_task(runs)
    labels = sorted({key[1:] for key in tasks})
    envs = sorted({key[0] for key in tasks})
    title = ", ".join(envs) if len(envs) < 4 else f"{len(envs)} tasks"
    lead = tag("p", f"{len(runs)} runs · {' · '.join(_name(label) for label in labels)}", class_="lead")
    curves = [_curves(env, {key: task for key, task in tasks.items() if key[0] == env}, labels) for env in envs]
    return document(title, "comparison of runs", lead, *curves, _scores(runs), _differences(tasks), _runs(tasks, out))


def _name(label: tuple[str, str]) -> str:
    algo, preset = label
    return f"{NAMES.get(algo, algo)}, {preset}"


def _curves(env: str, tasks: dict[Key, TaskScores], labels: Sequence[tuple[str, str]]) -> Html:
    """Return both charts of a task: the mean over seeds with its band, and each seed faint behind it."""
    charts, means = [], list[Curve]()
    for title, key, label, scale in (
        ("Return against steps", "steps", "environment steps", 1.0),
        ("Return against wall-clock", "wall_s", "minutes of training", 60.0),
    ):
        seeds, means = [], []
        for (_, *group), task in tasks.items():
            color, several = labels.index((group[0], group[1])), len(task.runs) > 1
            lines = [(getattr(run, key), run.means) for run in task.runs]
            x, mean, low, high = scores.mean_curve(lines)
            words = f"{_name((group[0], group[1]))}, {len(lines)} seed{'s' * several}"
            if several:
                seeds += [Curve(*line, color=color, faint=True) for line in lines]
                means.append(Curve(x, mean, words, color, low, high))
            else:
                means.append(Curve(*lines[0], words, color, marked=True))
        charts.append(chart(title, [*seeds, *means], x_label=label, x_scale=scale))
    banded = any(curve.low is not None for curve in means)
    key_to = legend(means, "95 % bootstrap interval of the mean over seeds" if banded else "")
    return section(env, key_to, tag("div", *charts, class_="pair"))


def _scores(runs: Sequence[RunScores]) -> Html:
    words = (
        "Score of a run: mean of the last tenth of its evaluations, mean actions. IQM: interquartile mean over seeds, "
        "with its 95 % bootstrap interval. Marks: seeds whose mean of three evaluations passed a return, and their "
        "median time."
    )
    rows = [(*row, tag("span", marks.replace("; ", "\n"), class_="lines")) for *row, marks in scores.rows(runs)]
    whole = table("Scores over seeds", scores.HEAD, rows, numbers=range(2, 9))
    return section("Scores", whole, note(words))


def _differences(tasks: dict[Key, TaskScores]) -> Html:
    """Return the options in which runs differ, one column per task; several values in a cell are of several seeds."""
    values: dict[str, list[set[str]]] = {}
    for column, task in enumerate(tasks.values()):
        for run in task.runs:
            for option in options({"algo": run.algo, **read(run.path).config}):
                if option.name not in _OWN:
                    cells = values.setdefault(option.name, [set() for _ in tasks])
                    cells[column].add(show(option.value))
    head = ["option", *(f"{env}, {_name((algo, preset))}" for env, algo, preset in tasks)]
    rows = [(name, *map(_cell, cells)) for name, cells in values.items() if len(set.union(*cells)) > 1]
    if not rows:
        return section("Options", note("All runs have the same options but for their seeds."))
    words = "Options that are the same in all runs are left out; marked: runs that make one curve, and differ."
    return section("Options", table("Options that differ", head, rows), note(words))


def _cell(values: set[str]) -> Any:
    text = " / ".join(sorted(values)) or "-"
    return tag("mark", text) if len(values) > 1 else text


def _runs(tasks: dict[Key, TaskScores], out: Path) -> Html:
    rows = []
    for (env, *group), task in tasks.items():
        for run in task.runs:
            page = run.path / NAME
            where = link(page, out, f"{run.path}/{NAME}") if page.exists() else run.path
            name = join([env, ", ", _name((group[0], group[1]))])
            steps, time = f"{run.steps[-1]:,.0f}", clock(float(run.wall_s[-1]))
            rows.append((name, f"{run.seed}", steps, f"{run.final:,.1f}", time, where))
    head = ("task", "seed", "steps", "score", "time", "run")
    return section("Runs", fold(f"All {len(rows)} runs", table("Runs", head, rows, numbers=(1, 2, 3, 4))))
