"""Learning curves as pictures: of one run, and of several side by side."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ppo_fast.algos import NAMES
from ppo_fast.files import read_jsonl, write_atomic
from ppo_fast.scores import RunScores, by_task, mean_curve


def draw_learning_curve(run_dir: Path) -> Path:
    """Draw training and evaluation returns against steps and against wall-clock; return the PNG's path."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    config = json.loads((run_dir / "config.json").read_bytes())
    rows = [row for row in read_jsonl(run_dir / "metrics.jsonl") if row["episode_return"] is not None]
    evaluations = read_jsonl(run_dir / "evaluations.jsonl")
    figure = Figure(figsize=(11, 4.2), dpi=110)
    FigureCanvasAgg(figure)
    # Margins by hand: matplotlib's layout engine draws all text twice, at the end of every run.
    axes = figure.subplots(1, 2, sharey=True, gridspec_kw={
        "left": 0.075, "right": 0.99, "bottom": 0.125, "top": 0.91, "wspace": 0.04,
    })  # fmt: skip
    for axis, key, label, scale in (
        (axes[0], "env_steps", "environment steps (millions)", 1e6),
        (axes[1], "wall_s", "wall-clock (minutes, evaluation excluded)", 60.0),
    ):
        axis.plot(
            [row[key] / scale for row in rows], [row["episode_return"] for row in rows],
            color="#7a8fa6", linewidth=1.2, label="training (last 100 episodes, sampled actions)",
        )  # fmt: skip
        if evaluations:
            x = np.array([row[key] / scale for row in evaluations])
            mean = np.array([np.mean(row["returns"]) for row in evaluations])
            low, high = (np.array([np.percentile(row["returns"], q) for row in evaluations]) for q in (10, 90))
            axis.fill_between(
                x, low, high, color="#d1495b", alpha=0.15, linewidth=0, label="evaluation, 10-90 % of episodes"
            )
            axis.plot(
                x, mean, color="#d1495b", marker="o", markersize=3.5, linewidth=1.8, label="evaluation (mean action)"
            )
        axis.set_xlabel(label)
        axis.set_xlim(left=0)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("episode return")
    axes[0].legend(loc="best", frameon=False, fontsize=8)
    algo = NAMES[config.get("algo", "ppo")]  # older runs do not name it
    figure.suptitle(f"{algo} on {config['env']}, preset {config['preset']}, seed {config['seed']}", fontsize=11)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    path = run_dir / "learning_curve.png"
    write_atomic(path, buffer.getvalue())
    return path


COLORS = ("#d1495b", "#00798c", "#edae49", "#7a8fa6", "#66a182", "#8d5a97")


def draw_runs(runs: Sequence[RunScores], path: Path) -> None:
    """Draw evaluations of runs, a row of panels per environment: against steps and against wall-clock.

    Runs that differ in nothing but their seeds make one line: their mean, with its 95 % bootstrap interval over seeds;
    each seed is drawn thinner.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    tasks = by_task(runs)
    envs = sorted({env for env, _, _ in tasks})
    labels = sorted({key[1:] for key in tasks})
    figure = Figure(figsize=(11, 3.6 * len(envs)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(envs), 2, squeeze=False)
    for (env, *label), task in tasks.items():
        color = COLORS[labels.index((label[0], label[1])) % len(COLORS)]
        for axis, key, scale in zip(panels[envs.index(env)], ("steps", "wall_s"), (1e6, 60), strict=True):
            curves = [(getattr(run, key) / scale, run.means) for run in task.runs]
            for x, y in curves:
                axis.plot(x, y, color=color, linewidth=0.7, alpha=0.35)
            x, mean, low, high = mean_curve(curves)
            axis.plot(x, mean, color=color, linewidth=2, label=f"{NAMES[label[0]]}, {label[1]}, {len(curves)} seeds")
            axis.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
    for row, env in zip(panels, envs, strict=True):
        for axis, text in zip(row, ("environment steps (millions)", "minutes of training"), strict=True):
            axis.set_xlabel(text)
            axis.set_xlim(left=0)
            axis.grid(alpha=0.25)
            axis.spines[["top", "right"]].set_visible(False)
        row[0].set_title(env, loc="left", fontsize=11)
        row[0].set_ylabel("return, mean actions")
        row[0].legend(loc="best", frameon=False, fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_atomic(path, buffer.getvalue())
