"""Time training by several processes of one machine against one, and what an exchange between them takes.

python -m benchmarks.ranks --env Ant-v5 --ranks 1 2 4 --rounds 3

W processes share min(W, cores of this machine) cores, to which they are not pinned one by one. The number of
environments, the rollout and the minibatches are per process, so that W processes do W times the work (weak scaling).
Rounds take turns. Speeds leave out the first iterations. The last columns hold ``docs/scaling.md`` to the measurement:
by how much an update by several processes took longer, and its t_talk from the measured exchanges.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from ppo_fast import envs
from ppo_fast.cpus import num_cpus
from ppo_fast.presets import resolve
from ppo_fast.state import make_model

from ._results import provenance, write

WARM = 3  # iterations that are not counted
EXCHANGES = 500
ROOT = Path(__file__).parents[1]


def torchrun(ranks: int, command: list[str]) -> None:
    """Run ``python command`` in so many processes, on as many cores as there are and no more than they are."""
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))[:ranks]))
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path[1:]])}
    subprocess.run(["taskset", "-c", cores, *start, *command], check=True, cwd=ROOT, env=env, stdout=subprocess.DEVNULL)


def train(env: str, preset: str, ranks: int, iterations: int) -> dict[str, float]:
    """Train; return env steps per second of all processes, and seconds per iteration by phase in the first of them."""
    with tempfile.TemporaryDirectory() as folder:
        cfg = resolve(env=env, preset=preset)
        steps = ranks * cfg.batch_size * (WARM + iterations)
        options = ["--env", env, "--preset", preset, "--total-timesteps", str(steps), "--eval-every", "0"]
        options += ["--eval-episodes", "1", "--checkpoint-every", "0", "--run-dir", f"{folder}/run", "--quiet", "--log"]
        torchrun(ranks, ["-m", "ppo_fast.train", "--", *options])
        rows = [json.loads(line) for line in Path(folder, "run", "metrics.jsonl").read_text().splitlines()]
    before, rows = rows[WARM - 1], rows[WARM:]
    seconds = rows[-1]["wall_s"] - before["wall_s"]
    phases = {name for row in rows for name in row if name.startswith("time/")}
    return {
        "sps": (rows[-1]["env_steps"] - before["env_steps"]) / seconds,
        "iteration_s": seconds / len(rows),
        "epochs": sum(row["epochs"] for row in rows) / len(rows),  # fewer where the KL stop ends updates
        **{name: sum(row.get(name, 0.0) for row in rows) / len(rows) for name in sorted(phases)},
    }


def exchange(path: str, parameters: int) -> None:
    """Be one of the processes that time the sum of a gradient and the gathering of a few numbers; the first writes."""
    from ppo_fast.distributed import connect

    peers = connect()
    took: dict[str, list[float]] = {"sum": [], "gather": []}
    gradient, few = np.zeros(parameters, np.float32), np.zeros(3)
    for _ in range(EXCHANGES):
        for name, call, array in (("sum", peers.sum_, gradient), ("gather", peers.gather, few)):
            start = time.perf_counter()
            call(array)
            took[name].append(time.perf_counter() - start)
    if peers.rank == 0:
        medians = {name: statistics.median(values[EXCHANGES // 10 :]) for name, values in took.items()}
        Path(path).write_text(json.dumps(medians))
    peers.close()


def parameters_of(env: str, preset: str) -> int:
    """Return how many numbers a gradient has."""
    cfg = resolve(env=env, preset=preset)
    return make_model(cfg, envs.spec(cfg.env)).num_params


def measure(env: str, preset: str, ranks: list[int], rounds: int, iterations: int) -> dict[str, Any]:
    """Return every round of every number of processes, and the exchanges."""
    cfg, parameters = resolve(env=env, preset=preset), parameters_of(env, preset)
    trained: dict[int, list[dict[str, float]]] = {n: [] for n in ranks}
    talked: dict[int, list[dict[str, float]]] = {n: [] for n in ranks if n > 1}
    for _ in range(rounds):
        for n in ranks:
            trained[n].append(train(env, preset, n, iterations))
            if n > 1:
                with tempfile.TemporaryDirectory() as folder:
                    torchrun(n, ["-m", "benchmarks.ranks", "--exchange", f"{folder}/out", str(parameters)])
                    talked[n].append(json.loads(Path(folder, "out").read_text()))
    return {
        **provenance(), "machine": platform.machine(), "cores": num_cpus(), "env": env, "preset": preset,
        "parameters": parameters, "minibatches": cfg.update_epochs * cfg.num_minibatches, "epochs": cfg.update_epochs,
        "trained": trained, "talked": talked,
    }  # fmt: skip


def table(result: dict[str, Any]) -> str:
    """Return the measurement as a table, with what the model makes of the measured exchanges."""
    alone = _median(result["trained"][1])
    lines = [
        "| processes | steps/s | over so many times one | sum, ms | gather, ms | update longer by, ms | model, ms |",
        "|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for n, rounds in result["trained"].items():
        here = _median(rounds)
        cells = [f"{n}", f"{here['sps']:,.0f}", f"{here['sps'] / n / alone['sps']:.2f}"]
        if n in result["talked"]:
            talk = _median(result["talked"][n])
            epochs = here.get("epochs", result["epochs"])
            minibatches = result["minibatches"] * epochs / result["epochs"]
            model = minibatches * talk["sum"] + (2 * epochs + 9) * talk["gather"]
            longer = here["time/update"] - alone["time/update"]
            cells += [f"{1e3 * value:.{2 if i < 2 else 0}f}" for i, value in enumerate((*talk.values(), longer, model))]
        else:
            cells += [""] * 4
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _median(rounds: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}


def main() -> None:
    """Parse the options, measure, write and print."""
    if sys.argv[1:2] == ["--exchange"]:
        return exchange(sys.argv[2], int(sys.argv[3]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="Ant-v5")
    parser.add_argument("--preset", default="fast")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4], help="the first is 1")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=12, help="counted in each round")
    given = parser.parse_args()
    if given.ranks[0] != 1:
        parser.error("--ranks must begin with 1, which the others are compared with")
    result = measure(given.env, given.preset, given.ranks, given.rounds, given.iterations)
    print(table(result))
    print(write(result, "ranks.json", kind="ranks"))


if __name__ == "__main__":
    main()
