"""Do the native learner and actor learn what torch's learn? Curves over seeds, one run after the other.

python -m benchmarks.compare_learners --out FOLDER            make the runs that FOLDER lacks, then print the table
python -m benchmarks.compare_learners --out FOLDER --table    print the table of what is there

Score of a run, chosen before any was made: the mean of ``episode_return`` (stochastic, over the last 100 episodes) in
the rows of its last tenth. Rounding separates two runs of one seed within a few updates, so seeds are independent
samples, not pairs.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ._runs import as_flags, require_same

TASKS = ("HalfCheetah-v5", "Hopper-v5")
LEARNERS = ("native", "torch")
PRESET = "sample"
# What that preset had when the first runs were made; runs that are added to them have it too.
RECIPE = {
    "num-steps": 32, "minibatch-size": 64, "norm-adv": "minibatch", "max-grad-norm": 0.5, "hidden-sizes": (64, 64),
}  # fmt: skip
# Two-sided 97.5 % quantiles of Student's t, by degrees of freedom: 2 n - 2 for n seeds of each learner, rounded down.
T_975 = {2: 4.303, 4: 2.776, 8: 2.306, 18: 2.101, 28: 2.048, 38: 2.024, 58: 2.002, 78: 1.991, 98: 1.984, 126: 1.979}


@dataclass(frozen=True)
class Difference:
    """Mean of native minus mean of torch, with its 95 % interval (Student's t, pooled variance)."""

    mean: float
    half_width: float
    relative: float  # half width over the mean of both

    @property
    def contains_zero(self) -> bool:
        """Whether the learners cannot be told apart."""
        return abs(self.mean) <= self.half_width


def difference(native: list[float], torch: list[float]) -> Difference:
    """Compare two samples of the same size n >= 2."""
    n = len(native)
    quantile = T_975[max(df for df in T_975 if df <= 2 * n - 2)]
    pooled = (np.var(native, ddof=1) + np.var(torch, ddof=1)) / 2
    half_width = quantile * math.sqrt(2 * pooled / n)
    both = float(np.mean([*native, *torch]))
    return Difference(float(np.mean(native) - np.mean(torch)), half_width, half_width / abs(both))


def score(rows: list[dict[str, Any]], steps: int) -> float:
    """Return the mean return of the rows of the last tenth of ``steps``."""
    return float(np.mean([row["episode_return"] for row in rows if row["env_steps"] > 0.9 * steps]))


def flags(task: str, learner: str, seed: int, steps: int) -> list[str]:
    """Return the options of a run."""
    return as_flags({
        "env": task, "preset": PRESET, "seed": seed, "total-timesteps": steps, "learner": learner, "actor": learner,
        "eval-every": 0, "checkpoint-every": 0, **RECIPE,
    })  # fmt: skip


def train(task: str, learner: str, seed: int, steps: int) -> dict[str, Any]:
    """Make one run and return what is kept of it."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [sys.executable, "-m", "ppo_fast.train", *flags(task, learner, seed, steps)]
        command += ["--run-dir", str(run), "--quiet", "--log"]
        subprocess.run(command, check=True)
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        evaluation = json.loads((run / "evaluations.jsonl").read_text().splitlines()[-1])
        info = json.loads((run / "run_info.json").read_text())
        return {
            "task": task,
            "learner": learner,
            "seed": seed,
            "score": score(rows, steps),
            "final_evaluation": float(np.mean(evaluation["returns"])),
            "wall_s": rows[-1]["wall_s"],
            "config": json.loads((run / "config.json").read_text()),
            "ran": {name: info[name] for name in ("actor", "learner", "update", "versions", "machine")},
            "curve": [[row["env_steps"], row["episode_return"]] for row in rows[::8]],
        }


def table(results: list[dict[str, Any]]) -> list[str]:
    """Return the comparison as Markdown."""
    out = [
        "| task | seeds | native | torch | difference, 95 % | half width / mean | contains 0 |",
        "|---|--:|--:|--:|--:|--:|---|",
    ]
    for task in sorted({r["task"] for r in results}):
        by_seed = {
            learner: {r["seed"]: r["score"] for r in results if (r["task"], r["learner"]) == (task, learner)}
            for learner in LEARNERS
        }
        seeds = sorted(set.intersection(*(set(scores) for scores in by_seed.values())))
        if len(seeds) < 2:
            continue
        native, torch = ([by_seed[learner][seed] for seed in seeds] for learner in LEARNERS)
        d = difference(native, torch)
        out.append(
            f"| {task} | {len(seeds)} | {np.mean(native):.0f} ± {np.std(native, ddof=1):.0f} | {np.mean(torch):.0f} ± "
            f"{np.std(torch, ddof=1):.0f} | {d.mean:+.0f} ± {d.half_width:.0f} | {d.relative:.1%} | "
            f"{'yes' if d.contains_zero else 'no'} |"
        )
    return out


def main() -> None:
    """Make the runs that are missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of results, one file per run")
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--seeds", type=int, default=10, help="seeds 1 to this")
    parser.add_argument("--steps", type=int, default=300_000)
    parser.add_argument("--table", action="store_true", help="make no runs")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for seed in range(1, 1 + args.seeds):
        for task in args.tasks:
            for learner in LEARNERS:
                path = args.out / f"{task}_{learner}_seed{seed}.json"
                if path.exists():
                    require_same(path, flags(task, learner, seed, args.steps))
                elif not args.table:
                    result = json.dumps(train(task, learner, seed, args.steps))
                    path.with_suffix(".tmp").write_text(result + "\n")
                    path.with_suffix(".tmp").rename(path)
    print("\n".join(table([json.loads(path.read_text()) for path in sorted(args.out.glob("*.json"))])))


if __name__ == "__main__":
    main()
