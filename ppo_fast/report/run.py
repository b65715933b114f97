"""The page about one run: what ran, what came of it, and how to have it again."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np

from ppo_fast import checkpoint
from ppo_fast.algos import NAMES
from ppo_fast.envs.registry import find_spec
from ppo_fast.report.files import RunFiles, is_number
from ppo_fast.report.options import command, options
from ppo_fast.report.page import Html, document, fold, join, link, note, section, table, tag, url
from ppo_fast.report.svg import COLORS, Curve, bar, chart, legend
from ppo_fast.sinks.progress import clock

_LISTED = 20  # evaluations in the table; their file has all
# The small charts in this order, and after them whatever else the rows hold.
_TITLES = {
    "episode_length": "Episode length", "approx_kl": "KL of the update", "clip_frac": "Clip fraction",
    "entropy": "Entropy", "explained_var": "Explained variance", "learning_rate": "Learning rate",
    "policy_loss": "Policy loss", "value_loss": "Value loss", "grad_norm": "Gradient norm", "sps": "Steps per second",
}  # fmt: skip
_ELSEWHERE = {"iteration", "env_steps", "wall_s", "episode_return", "episodes", "startup_s"}
_WINDOW = {"explained_var": (-1.0, 1.0)}  # a new critic can be wrong by any amount, and would hide the rest
_RAN = (
    "machine",
    "env",
    "device",
    "actor",
    "learner",
    "update",
)  # beginnings of the facts of run_info.json shown first
_FILES = {
    "learning_curve.png": "picture of the learning curve",
    "config.json": "the resolved options",
    "run_info.json": "versions, machine, backends",
    "metrics.jsonl": "one object per iteration",
    "evaluations.jsonl": "one object per evaluation",
    "nonfinite.json": "where NaN or infinity was found",
    "tensorboard": "the same numbers for TensorBoard",
}


def run_page(run: RunFiles, out: Path) -> bytes:
    """Return the page about a run, to be written to ``out``, from where its links lead."""
    env, algo, preset, seed = (run.config.get(name, "?") for name in ("env", "algo", "preset", "seed"))
    algo = NAMES.get(str(algo), "PPO" if algo == "?" else algo)  # older runs do not name it
    what = f"{algo} · preset {preset} · seed {seed} · {run.env_steps:,} environment steps · "
    lead = join([tag("p", f"{what}{clock(run.wall_s)} of training", class_="lead"), _alerts(run), _tiles(run)])
    sections = (_learning(run), _update(run), _speed(run), _options(run), _machine(run), _again(run, out))
    return document(str(env), "training report", lead, *sections)


def _alerts(run: RunFiles) -> Html:
    """Return what a reader must know before any number: that a run did not end, or not smoothly."""
    said = []
    if not run.finished:
        total = run.config.get("total_timesteps")
        of = f" of {total:,}" if is_number(total) else ""
        said.append(f"Not finished: {run.env_steps:,}{of} steps were taken.")
    if run.nonfinite:
        state = run.nonfinite.get("state")
        at = state.get("env_steps") if isinstance(state, dict) else None
        where = f" after step {at:,}" if is_number(at) else ""
        went_on = " The run went on from a checkpoint." if run.finished else ""
        said.append(f"NaN or infinity{where}: {run.nonfinite.get('error', 'see nonfinite.json')}.{went_on}")
    if is_number(at := run.info.get("resumed_at")):
        said.append(f"Taken up at step {at:,}; versions and machine below are those of the last part.")
    return join(tag("p", text, class_="alert") for text in said)


def _tiles(run: RunFiles) -> Html:
    tiles: list[tuple[str, object, str]] = []
    if run.stats:
        last = run.stats[-1]
        score = join([f"{last.mean:,.1f} ", tag("small", f"± {last.ci95:,.1f}")])
        under = f"95 % CI of the mean over {len(last.returns)} episodes, mean actions; std {last.std:,.1f}, "
        under += f"{last.returns.min():,.1f} to {last.returns.max():,.1f}"
        tiles.append(("Final evaluation" if run.finished else "Last evaluation", score, under))
    if run.best:
        tiles.append(("Best evaluation", f"{np.mean(run.best['returns']):,.1f}", f"at step {run.best['env_steps']:,}"))
    _, returns = run.curve("episode_return")
    if returns.size:
        tiles.append(("Training return", f"{returns[-1]:,.1f}", "last 100 episodes, sampled actions"))
    _, rates = run.curve("sps")
    if rates.size and run.wall_s > 0:
        under = f"evaluation excluded; median iteration {np.median(rates):,.0f}"
        tiles.append(("Env steps per second", f"{run.env_steps / run.wall_s:,.0f}", under))
    tiles.append(("Training time", clock(run.wall_s), f"{len(run.rows):,} iterations"))
    cells = [
        tag("div", tag("dt", name), tag("dd", value), tag("dd", under, class_="sub"), class_=None if i else "first")
        for i, (name, value, under) in enumerate(tiles)
    ]
    return tag("dl", *cells, class_="tiles")


def _learning(run: RunFiles) -> Html:
    charts, drawn = [], []
    means = np.array([stats.mean for stats in run.stats])
    spread = np.array([np.percentile(stats.returns, [10, 90]) for stats in run.stats]).reshape(-1, 2)
    time = ("minutes of training", 60.0) if run.wall_s >= 180 else ("seconds of training", 1.0)
    for title, key, label, scale in (
        ("Return against steps", "env_steps", "environment steps", 1.0),
        ("Return against wall-clock", "wall_s", *time),
    ):
        x, y = run.curve("episode_return", key)
        drawn = [Curve(x, y, "training, last 100 episodes, sampled actions", 3)] if x.size else []
        if run.stats:
            at = np.array([row[key] for row in run.evaluations], np.float64)
            drawn.append(Curve(at, means, "evaluation, mean actions", 0, spread[:, 0], spread[:, 1], marked=True))
        if drawn:
            charts.append(chart(title, drawn, x_label=label, x_scale=scale))
    if not charts:
        return section("Learning", note("No episode has ended, and no evaluation was made."))
    key = legend(drawn, "10 to 90 % of the evaluation's episodes" if run.stats else "")
    return section("Learning", key, tag("div", *charts, class_="pair"), _evaluations(run))


def _evaluations(run: RunFiles) -> Html:
    if not run.stats:
        return note("No evaluation was made.")
    rows = [
        (
            f"{row['env_steps']:,}", clock(row["wall_s"]), f"{stats.mean:,.1f}", f"{stats.ci95:,.1f}",
            f"{stats.std:,.1f}", f"{stats.returns.min():,.1f}", f"{stats.returns.max():,.1f}",
            f"{stats.lengths.mean():,.0f}" if stats.lengths.size else "-",
        )
        for row, stats in zip(run.evaluations[-_LISTED:], run.stats[-_LISTED:], strict=True)
    ]  # fmt: skip
    caption = "Evaluations" if len(rows) == len(run.stats) else f"The last {_LISTED} of {len(run.stats):,} evaluations"
    head = ("steps", "time", "mean", "± 95 %", "std", "lowest", "highest", "length")
    return fold("Evaluations in numbers", table(caption, head, rows, numbers=range(8)))


def _update(run: RunFiles) -> Html:
    found = {name for row in run.rows for name in row if not name.startswith("time/")}
    charts = []
    for name in (*_TITLES, *sorted(found - set(_TITLES) - _ELSEWHERE)):
        x, y = run.curve(name)
        if y.size and (name in _TITLES or np.ptp(y) > 0):
            title = _TITLES.get(name, name.replace("_", " ").replace("/", ", ").capitalize())
            charts.append(chart(title, [Curve(x, y, color=1)], small=True, window=_WINDOW.get(name)))
    if not charts:
        return Html()
    words = "Against environment steps; the last value beside the title. Explained variance below -1 is cut off."
    return section("Inside the update", tag("div", *charts, class_="grid"), note(words))


def _speed(run: RunFiles) -> Html:
    """Return where the seconds went: the phases of all rows, and what is left of ``wall_s``."""
    seconds: dict[str, float] = {}
    for name, value in ((name, value) for row in run.rows for name, value in row.items()):
        if name.startswith("time/") and is_number(value):
            seconds[name.removeprefix("time/")] = seconds.get(name.removeprefix("time/"), 0.0) + value
    rest = max(run.wall_s - sum(seconds.values()), 0.0)
    shares = [*sorted(seconds.items(), key=lambda item: -item[1]), ("the rest", rest)]
    whole = sum(value for _, value in shares)
    if not seconds or not whole:
        return Html()
    rows = [
        (
            tag("span", tag("i", class_=f"key box c{i % COLORS}"), name, class_="lines"), f"{value:,.2f}",
            f"{value / whole:.1%}", f"{1e6 * value / max(run.env_steps, 1):,.1f}",
        )
        for i, (name, value) in enumerate(shares)
    ]  # fmt: skip
    parts = table("Seconds by phase", ("phase", "seconds", "share", "µs per env step"), rows, numbers=(1, 2, 3))
    picture = bar("Share of the training time", [(name, value / whole) for name, value in shares])
    words = "The rest is what no phase counts: compilation of the update, statistics, writing of metrics."
    return section("Where the time went", picture, parts, note(words))


def _options(run: RunFiles) -> Html:
    found = options(run.config)
    rows = [(o.name, tag("mark", show(o.value)), show(o.builtin), o.origin) for o in found if o.origin]
    changed = table("Options that differ from the built-in ones", ("option", "value", "built-in", "from"), rows)
    every = [(o.name, tag("mark", show(o.value)) if o.origin else show(o.value)) for o in found]
    whole = fold(f"All {len(found)} options", table("All options; marked: not built-in", ("option", "value"), every))
    words = "preset: the preset's value for this task. chosen: from the command line, a file or Python."
    return section("Options", changed, note(words), whole)


def show(value: Any) -> str:
    """Return the value of an option or a fact as people write it."""
    if value is None:
        return "unset"
    if type(value) is int:
        return f"{value:,}"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return value if isinstance(value, str) and value else json.dumps(value)


def _machine(run: RunFiles) -> Html:
    rows = [
        (f"{group.replace('_', ' ')} {name}".strip(), show(fact))
        for group, facts in run.info.items()
        for name, fact in (facts if isinstance(facts, dict) else {"": facts}).items()
        if fact not in (None, "", {}, [])
    ]
    ran = [(name, fact) for name, fact in rows if name.startswith(_RAN) and "reason" not in name]
    versions = [(name.removeprefix("versions "), fact) for name, fact in rows if name.startswith("versions ")]
    if not rows:
        return section("Machine and build", note("run_info.json is missing."))
    first = table("What ran on what", ("fact", "value"), ran), table("Versions", ("package", "version"), versions)
    everything = table("run_info.json", ("fact", "value"), rows)
    return section("Machine and build", tag("div", *first, class_="pair"), fold("All of run_info.json", everything))


def _again(run: RunFiles, out: Path) -> Html:
    folder, film = (shlex.quote(str(path)) for path in (run.path, run.path / "video.mp4"))
    env, processes = str(run.config["env"]), (run.info.get("processes") or {}).get("count", 1)
    confirm = f" --env {shlex.quote(env)}" if ":" in env else ""  # which both commands ask for

    def start(line: str) -> str:
        return line if processes == 1 else line.replace("python", f"torchrun --nproc-per-node {processes}", 1)

    commands = {
        "The same run again:": start(command(run.config)),
        "Its policy, evaluated and filmed:": f"python -m ppo_fast.play {folder} --video {film}{confirm}",
    }
    if ":" not in env and find_spec(env) is None:  # one of EnvPool's own, which cannot be filmed
        commands = {**commands, "Its policy, evaluated and filmed:": f"python -m ppo_fast.play {folder}"}
    if not run.finished:
        commands["To go on:"] = start(f"python -m ppo_fast.train --run-dir {folder} --resume auto{confirm}")
    best = run.best["env_steps"] if run.best else None
    there = [(path, "checkpoint") for path in checkpoint.find(run.path / "checkpoints")]
    there = [(path, what + ", best evaluation" * (int(path.name[5:]) == best)) for path, what in there]
    there += [(path, what) for name, what in _FILES.items() if (path := run.path / name).exists()]
    films = sorted(run.path.glob("[!.]*.mp4"))  # not one that is being written
    files = [
        (link(path, out, path.relative_to(run.path)), what)
        for path, what in there + [(path, "video") for path in films]
    ]
    # Referred to, not embedded: a film has megabytes, and another command makes it when the page has been written.
    shown = [tag("video", src=url(path, out), controls="controls", preload="metadata") for path in films[:1]]
    lines = [part for text, line in commands.items() for part in (tag("p", text), tag("pre", line))]
    words = "The same numbers need the same versions on a processor of the same family."
    return section("To have it again", *lines, note(words), *shown, table("Files", ("file", "what it is"), files))
