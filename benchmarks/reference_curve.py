"""The readable trainer beside the fast one: Hopper, the same options and seeds, three runs each.

python -m benchmarks.reference_curve --out FOLDER               make the runs that FOLDER lacks, then print the table
python -m benchmarks.reference_curve --out FOLDER --draw PNG    draw the curves of what is there

Both evaluate mean actions with frozen statistics over 20 episodes every 50,000 steps; the reference does so on
Gymnasium's environments. The two do not share a random number of the simulator, so their runs differ as two seeds do.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ppo_fast import presets
from ppo_fast.files import write_atomic
from ppo_fast.reference.ppo import PPO
from ppo_fast.scores import mean_curve

from ._runs import final, keep
from ._training import reference_settings

TASK, SEEDS = "Hopper-v5", (51, 52, 53)
STEPS, EVAL_EVERY, EPISODES = 1_000_000, 50_000, 20
# The preset's but for what the reference does not have: it scales advantages by minibatch.
OPTIONS: dict[str, Any] = {"preset": "sample", "norm_adv": "minibatch", "max_grad_norm": 0.5}
COLORS = {"reference": "#7a8fa6", "fast": "#d1495b"}


def train_reference(path: Path, seed: int, steps: int = STEPS, every: int = EVAL_EVERY, **options: Any) -> None:
    """Train the reference, unless it has been done, and write the same facts of it as are kept of a fast run."""
    settings = reference_settings(presets.resolve(env=TASK, seed=seed, total_timesteps=steps, **OPTIONS, **options))
    if path.exists():
        if json.loads(path.read_text())["config"] != json.loads(json.dumps(dataclasses.asdict(settings))):
            raise SystemExit(f"{path} is of a run with other options; take another folder")
        return
    torch.set_num_threads(1)  # its command line does the same
    trainer = PPO(settings)
    evaluations: list[list[float]] = []
    evaluated_s: list[float] = []
    evaluating, last = 0.0, {}

    def report(row: dict[str, Any]) -> None:
        nonlocal evaluating, last
        last = {**row, "wall_s": row["wall_s"] - evaluating}
        if row["env_steps"] // every > (evaluations[-1][0] // every if evaluations else 0) or row["env_steps"] >= steps:
            start = time.perf_counter()
            evaluations.append([row["env_steps"], *trainer.evaluate(EPISODES).tolist()])
            evaluated_s.append(last["wall_s"])
            evaluating += time.perf_counter() - start

    trainer.run(report)
    kept = {
        "who": "reference", "seed": seed, "wall_s": last["wall_s"], "evaluations": evaluations,
        "evaluated_s": evaluated_s, "last": last, "config": dataclasses.asdict(settings),
    }  # fmt: skip
    write_atomic(path, (json.dumps(kept) + "\n").encode())


def train_fast(path: Path, seed: int) -> None:
    """Train with the fast path, unless it has been done."""
    options = {
        "env": TASK, "seed": seed, "total-timesteps": STEPS, "eval-every": EVAL_EVERY, "eval-episodes": EPISODES,
        "checkpoint-every": 0, **{name.replace("_", "-"): value for name, value in OPTIONS.items()},
    }  # fmt: skip
    keep(path, ["ppo_fast.train"], options, [], who="fast", seed=seed)


def table(results: list[dict[str, Any]]) -> list[str]:
    """Return the scores as Markdown."""
    lines = ["| trainer | mean ± std | seeds | steps per second of training |", "|---|--:|---|--:|"]
    for who in COLORS:
        mine = [result for result in results if result["who"] == who]
        if mine:
            scores = np.array([final(result) for result in mine])
            rate = np.median([result["last"]["env_steps"] / result["wall_s"] for result in mine])
            std = f" ± {scores.std(ddof=1):,.0f}" if scores.size > 1 else ""
            seeds = ", ".join(f"{score:,.0f}" for score in scores)
            lines.append(f"| {who} | {scores.mean():,.0f}{std} | {seeds} | {rate:,.0f} |")
    return lines


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """Draw the evaluations against steps: the mean over seeds with its 95 % interval, and each seed thinner."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.8), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    for who, color in COLORS.items():
        runs = [np.array([[e[0], np.mean(e[1:])] for e in r["evaluations"]]).T for r in results if r["who"] == who]
        if not runs:
            continue
        for steps, means in runs:
            axis.plot(steps / 1e6, means, color=color, linewidth=0.7, alpha=0.4)
        grid, mean, low, high = mean_curve([(steps / 1e6, means) for steps, means in runs])
        axis.plot(grid, mean, color=color, linewidth=2, label=f"{who}, {len(runs)} seeds")
        axis.fill_between(grid, low, high, color=color, alpha=0.15, linewidth=0)
    axis.set(title=TASK, xlabel="environment steps (millions)", ylabel="return, mean actions")
    axis.set_xlim(left=0)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(loc="best", frameon=False, fontsize=9)
    figure.savefig(path)


def main() -> None:
    """Make the runs that are missing and print the table; or draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of results, one file per run")
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--draw", type=Path, help="make no runs, draw")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for seed in args.seeds if not args.draw else ():
        train_reference(args.out / f"reference_seed{seed}.json", seed)
        train_fast(args.out / f"fast_seed{seed}.json", seed)
    results = [json.loads(path.read_text()) for path in sorted(args.out.glob("*_seed*.json"))]
    if args.draw:
        draw(results, args.draw)
    print("\n".join(table(results)))


if __name__ == "__main__":
    main()
