"""``python -m benchmarks.peers.race``: how long ppo_fast, rl_games and Stable-Baselines3 take to reach a return.

python -m benchmarks.peers.race --out FOLDER --env Ant-v5     make the runs that FOLDER lacks, one at a time
python -m benchmarks.peers.race --out FOLDER --table          print the table of what is there

A run has the whole machine. Its clock stands still while it is evaluated (20 episodes, mean actions, frozen statistics,
about every 50,000 env steps) and includes compilation. A mark is passed where the mean of three evaluations is.
ppo_fast goes first; a peer that has not passed the last mark after ten times as long, or three million env steps, is
stopped, and counts with the time it had.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ppo_fast.envs.envpool import default_num_threads
from ppo_fast.files import write_atomic
from ppo_fast.scores import TIMED, WINDOW

from .._runs import keep
from .cases import OURS, PEERS, RECIPES, SETTINGS, Recipe
from .child import Child
from .venvs import python_of

EVAL_EVERY, EPISODES = 50_000, 20
PATIENCE = 10  # times our own wall-clock
BUDGET = 3_000_000  # env steps, over which ppo_fast and Stable-Baselines3 schedule their rates
ENTRIES: dict[str, Recipe] = dict(zip(PEERS, RECIPES, strict=True))  # rl_games has its own recipe

Evaluations = list[dict[str, Any]]  # env_steps, seconds, returns


def time_to(evaluations: Evaluations, mark: float) -> float | None:
    """Return the seconds until the mean of three evaluations passed ``mark``; None if it never did."""
    means = [float(np.mean(each["returns"])) for each in evaluations]
    for i in range(WINDOW - 1, len(means)):
        if np.mean(means[i + 1 - WINDOW : i + 1]) >= mark:
            return float(evaluations[i]["seconds"])
    return None


def run_ours(path: Path, env_id: str, seed: int) -> None:
    """Make our run, unless it has been made."""
    options = {
        "env": env_id, "seed": seed, "total-timesteps": BUDGET, "eval-every": EVAL_EVERY, "eval-episodes": EPISODES,
    }  # fmt: skip
    keep(path, ["ppo_fast.train"], options, [], trainer=OURS, env=env_id, seed=seed)


def run_peer(path: Path, peer: str, env_id: str, seed: int, bound: float) -> None:
    """Let a peer train until it has passed the last mark or ``bound`` seconds are over, unless it has been done.

    It runs under the first of the settings that are marked as best, which is fast on busy machines too.
    """
    recipe = ENTRIES[peer]
    setting = next(setting for setting in SETTINGS[peer] if setting.best)
    options = recipe.options(env_id)
    job = {
        "env_id": env_id,
        "seed": seed,
        "recipe": recipe.name,
        "options": options,
        "setting": dict(setting.options),
        "env_threads": default_num_threads(options["num_envs"]),
        "evaluate": EPISODES,
        "total_timesteps": BUDGET,
    }
    if path.exists():
        if json.loads(path.read_text())["job"] != json.loads(json.dumps(job)):
            raise SystemExit(f"{path} is of a run with other options; take another folder")
        return
    with tempfile.TemporaryDirectory() as folder:
        child = Child(peer, python_of(peer), job, dict(setting.variables), Path(folder) / "run")
        try:
            evaluations = race(child, TIMED[env_id][-1], bound, BUDGET)
            kept = {"trainer": peer, "env": env_id, "seed": seed, "bound_s": bound, "evaluations": evaluations}
            write_atomic(path, (json.dumps({**kept, "job": job, "ran": child.describe()}) + "\n").encode())
        finally:
            child.close()


def race(child: Child, mark: float, bound: float, budget: int) -> Evaluations:
    """Let a warm trainer go on until it has passed ``mark``, or ``bound`` seconds or ``budget`` env steps are over.

    It ends before a stretch of iterations that would not fit into the budget, where a trainer may be done by itself.
    """
    steps, seconds, evaluations = child.warm_up.env_steps, child.warm_up.seconds, Evaluations()
    per_iteration = steps / child.warm_up_iterations
    stretch = max(1, round(EVAL_EVERY / per_iteration))
    while seconds < bound and steps + stretch * per_iteration < budget and time_to(evaluations, mark) is None:
        sample = child.advance(stretch)
        steps, seconds = steps + sample.env_steps, seconds + sample.seconds
        returns = child.facts["evaluation"]
        evaluations.append({"env_steps": steps, "seconds": round(seconds, 3), "returns": returns})
    return evaluations


def evaluations_of(result: dict[str, Any]) -> Evaluations:
    """Return the evaluations of a kept run, ours or a peer's."""
    if result["trainer"] != OURS:
        return list(result["evaluations"])
    return [
        {"env_steps": steps, "seconds": seconds, "returns": returns}
        for (steps, *returns), seconds in zip(result["evaluations"], result["evaluated_s"], strict=True)
    ]


def gave_up_after(result: dict[str, Any]) -> float:
    """Return for how many seconds a run that did not pass a mark was watched: its bound, or less if its steps ended."""
    if result["trainer"] == OURS:
        return float("inf")
    return float(min([result["bound_s"], *(each["seconds"] for each in result["evaluations"][-1:])]))


def table(results: Sequence[dict[str, Any]]) -> list[str]:
    """Return seconds to every mark as Markdown, and ours over each peer's, by medians.

    Who did not pass counts with the time it had.
    """
    lines = [
        "| task | mark | trainer | seconds, seed by seed | median | ppo_fast / this |",
        "|---|--:|---|---|--:|--:|",
    ]
    for env_id in sorted({result["env"] for result in results}):
        for mark in TIMED[env_id]:
            ours = float("nan")
            for trainer in (OURS, *PEERS):
                mine = sorted(
                    (r for r in results if (r["env"], r["trainer"]) == (env_id, trainer)), key=lambda r: r["seed"]
                )
                if not mine:
                    continue
                times = [time_to(evaluations_of(r), mark) for r in mine]
                counted = [gave_up_after(r) if t is None else t for t, r in zip(times, mine, strict=True)]
                median = float(np.median(counted))
                ours = median if trainer == OURS else ours
                cells = ", ".join(
                    f"{t:,.0f}" if t is not None else f"not in {c:,.0f}" for t, c in zip(times, counted, strict=True)
                )
                bound = "> " if trainer != OURS and sum(t is None for t in times) * 2 > len(times) else ""
                ratio = "-" if trainer == OURS else f"{'< ' if bound else ''}{ours / median:.2f}"
                lines.append(f"| {env_id} | {mark:,.0f} | {trainer} | {cells} | {bound}{median:,.0f} | {ratio} |")
    return lines


def main(argv: list[str] | None = None) -> int:
    """Parse the options, make the runs that are missing, print the table; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers.race", description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of results, one file per run")
    parser.add_argument("--env", nargs="+", default=list(TIMED), choices=list(TIMED), metavar="ID", help="tasks")
    parser.add_argument("--seeds", nargs="+", type=int, default=[31, 32, 33])
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS), help="whom to race")
    parser.add_argument("--table", action="store_true", help="make no runs")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)

    def path(env_id: str, trainer: str, seed: int) -> Path:
        return args.out / f"{env_id}_{trainer}_seed{seed}.json"

    for env_id in [] if args.table else args.env:
        for seed in args.seeds:
            run_ours(path(env_id, OURS, seed), env_id, seed)
        for seed in args.seeds:
            ours = json.loads(path(env_id, OURS, seed).read_text())
            took = time_to(evaluations_of(ours), TIMED[env_id][-1])
            for peer in args.peers:
                if took is None:
                    print(f"{env_id}, seed {seed}: ppo_fast itself did not pass the last mark", file=sys.stderr)
                else:
                    run_peer(path(env_id, peer, seed), peer, env_id, seed, PATIENCE * took)
    print("\n".join(table([json.loads(file.read_text()) for file in sorted(args.out.glob("*_seed*.json"))])))
    return 0


if __name__ == "__main__":
    sys.exit(main())
