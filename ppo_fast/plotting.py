"""The learning curve as a picture."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np

from ppo_fast.algos import NAMES
from ppo_fast.files import read_jsonl, write_atomic


def draw_learning_curve(run_dir: Path) -> Path:
    """Draw training and evaluation returns against steps and against wall-clock; return the PNG's path."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    config = json.loads((run_dir / "config.json").read_bytes())
    rows = [row for row in read_jsonl(run_dir / "metrics.jsonl") if row["episode_return"] is not None]
    evaluations = read_jsonl(run_dir / "evaluations.jsonl")
    figure = Figure(figsize=(11, 4.2), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2, sharey=True)
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
