"""Print the table of learning results: ``python benchmarks/learning.py benchmarks/results/<folder>/*``.

Each argument is a run directory (config.json and evaluations.jsonl are read). A cell is the mean over the episodes of
an evaluation; the spread is that over the episodes of the last one, which falls make large.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

MARKS = (200_000, 400_000, 600_000, 800_000)


def row(run: Path) -> tuple[str, str, int, list[float], float, float]:
    """Return task, preset, seed, returns at the marks and at the end, spread of the last, and wall-clock seconds."""
    config = json.loads((run / "config.json").read_text())
    evaluations = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
    at = [next(e for e in evaluations if e["env_steps"] >= mark) for mark in MARKS if mark < config["total_timesteps"]]
    means = [float(np.mean(e["returns"])) for e in (*at, evaluations[-1])]
    last = evaluations[-1]
    return config["env"], config["preset"], config["seed"], means, float(np.std(last["returns"])), last["wall_s"]


def main() -> None:
    """Print one line per run, and a line of statistics per task and preset."""
    rows = sorted(row(Path(arg)) for arg in sys.argv[1:] if (Path(arg) / "evaluations.jsonl").exists())
    if not rows:
        sys.exit("usage: python benchmarks/learning.py RUN_DIR [RUN_DIR ...]")
    marks = " | ".join(f"{mark // 1000}k" for mark in MARKS)
    print(f"| task | preset | seed | {marks} | end | std over episodes | wall s |\n|{'---|' * (len(MARKS) + 6)}")
    for env, preset, seed, means, std, wall in rows:
        cells = " | ".join(f"{mean:.0f}" for mean in means)
        print(f"| {env} | {preset} | {seed} | {cells} | {std:.0f} | {wall:.0f} |")
    for env, preset in sorted({(r[0], r[1]) for r in rows}):
        final = np.array([r[3][-1] for r in rows if r[:2] == (env, preset)])
        print(
            f"\n{env}, {preset}: mean {final.mean():.0f}, median {np.median(final):.0f}, worst {final.min():.0f}, "
            f"best {final.max():.0f} over {len(final)} seeds"
        )


if __name__ == "__main__":
    main()
