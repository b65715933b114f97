"""REINFORCE, TRPO and PPO on the same rollouts: the runs behind docs/lineage.md, one after the other.

python -m benchmarks.lineage --out FOLDER               make the runs that FOLDER lacks, then print the table
python -m benchmarks.lineage --out FOLDER --table       print the table of what is there
python -m benchmarks.lineage --out FOLDER --draw PNG    draw the curves of what is there
python -m benchmarks.lineage --variance JSON            measure the noise of REINFORCE's three weights, and print it
python -m benchmarks.lineage --draw-clip PNG            draw PPO's clipped objective and its slope

Every run has the rollout, networks and normalisers of ``--preset sample``; only the update differs. Scores, chosen
before any run was made: the last evaluation (10 episodes, mean actions) and, beside it, the last ``episode_return``
(sampled actions, 100 episodes).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ppo_fast.reference import losses, reinforce

from ._runs import keep

TASKS = ("Hopper-v5", "HalfCheetah-v5", "Ant-v5", "Humanoid-v5")
ALGOS: dict[str, list[str]] = {
    "PPO": ["--algo", "ppo", "--norm-adv", "minibatch", "--target-kl", "None"],
    "PPO, KL stop": ["--algo", "ppo", "--norm-adv", "minibatch", "--target-kl", "0.02"],
    "TRPO": ["--algo", "trpo"],
    "REINFORCE": ["--algo", "reinforce"],
}
COLORS = {"PPO": "#d1495b", "PPO, KL stop": "#edae49", "TRPO": "#00798c", "REINFORCE": "#7a8fa6"}
# What the preset had when these runs were made, and no longer has.
THEN = {"num-steps": 32, "minibatch-size": 64, "max-grad-norm": 0.5, "hidden-sizes": (64, 64)}
OPTIONS_THEN = {**dict.fromkeys(TASKS, THEN), "Ant-v5": {"hidden-sizes": (64, 64)}}
SEEDS = (11, 12, 13)  # no preset was chosen on them
STEPS, EVAL_EVERY = 1_000_000, 100_000


def train(path: Path, task: str, algo: str, seed: int, extra: list[str]) -> None:
    """Make one run, unless it has been made."""
    options = {
        "env": task, "preset": "sample", "seed": seed, "total-timesteps": STEPS, "eval-every": EVAL_EVERY,
        "eval-episodes": 10, "checkpoint-every": 0, **OPTIONS_THEN[task],
    }  # fmt: skip
    keep(path, ["ppo_fast.train"], options, [*ALGOS[algo], *extra], task=task, algo=algo, seed=seed)


def scores(results: list[dict[str, Any]], task: str, algo: str) -> tuple[list[float], list[float], list[float]]:
    """Return last evaluation and last training return, seed by seed, and the share of physics where it was timed."""
    mine = sorted((r for r in results if (r["task"], r["algo"]) == (task, algo)), key=lambda r: int(r["seed"]))
    return (
        [float(np.mean(r["evaluations"][-1][1:])) for r in mine],
        [r["last"]["episode_return"] for r in mine],
        [r["seconds"]["physics"] / sum(r["seconds"].values()) for r in mine if r["seconds"]],
    )


def table(results: list[dict[str, Any]]) -> list[str]:
    """Return the scores as Markdown: mean over seeds, and each seed."""
    out = ["| task | algorithm | last evaluation | seeds | sampled actions | physics |", "|---|---|--:|---|--:|--:|"]
    for task in TASKS:
        for algo in ALGOS:
            final, sampled, physics = scores(results, task, algo)
            if final:
                std = f" ± {np.std(final, ddof=1):,.0f}" if len(final) > 1 else ""
                out.append(
                    f"| {task} | {algo} | {np.mean(final):,.0f}{std} | {', '.join(f'{x:,.0f}' for x in final)} | "
                    f"{np.mean(sampled):,.0f} | {f'{np.mean(physics):.0%}' if physics else '-'} |"
                )
    return out


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """Draw evaluations against steps, a panel per task: the mean over seeds, and each seed thinner."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 7.4), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    for axis, task in zip(figure.subplots(2, 2).flat, TASKS, strict=True):
        for algo in ALGOS:
            mine = [r["evaluations"] for r in results if (r["task"], r["algo"]) == (task, algo)]
            if not mine:
                continue
            curves = [([e[0] / 1e6 for e in run], [float(np.mean(e[1:])) for e in run]) for run in mine]
            for x, y in curves:
                axis.plot(x, y, color=COLORS[algo], linewidth=0.8, alpha=0.35)
            grid = np.linspace(max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves), 50)
            mean = np.mean([np.interp(grid, x, y) for x, y in curves], axis=0)
            axis.plot(grid, mean, color=COLORS[algo], linewidth=2.2, label=algo)
        axis.set_title(task, fontsize=11)
        axis.set_xlim(0, STEPS / 1e6)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_xlabel("environment steps (millions)")
        axis.set_ylabel("return, mean actions")
    figure.axes[0].legend(loc="best", frameon=False, fontsize=9)
    figure.savefig(path)


def draw_clip(path: Path, clip_coef: float = 0.2) -> None:
    """Draw the clipped objective and its slope against the ratio, for an advantage of 1 and of -1."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.4), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    for axis, advantage in zip(figure.subplots(1, 2), (1.0, -1.0), strict=True):
        ratio = torch.linspace(0.4, 1.6, 601, requires_grad=True)
        value = torch.stack([losses.clipped_surrogate(r[None], torch.tensor([advantage]), clip_coef) for r in ratio])
        (slope,) = torch.autograd.grad(value.sum(), ratio)
        x = ratio.detach().numpy()
        axis.plot(x, value.detach().numpy(), color="#d1495b", linewidth=2.2, label="objective of one row")
        axis.plot(x, slope.numpy(), color="#00798c", linewidth=1.4, linestyle="--", label="its slope")
        for bound in (1 - clip_coef, 1 + clip_coef):
            axis.axvline(bound, color="#7a8fa6", linewidth=0.8, linestyle=":")
        axis.plot([1], [advantage], "o", color="#d1495b", markersize=5)
        axis.set_title("the action was better than expected, A = 1" if advantage > 0 else "worse, A = -1", fontsize=10)
        axis.set_xlabel("r, how much more likely the action has become")
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(loc="best", frameon=False, fontsize=8)
    figure.savefig(path)


# --- the noise of an estimate ----------------------------------------------------------------------------------------
def variance(task: str, rollouts: int = 100) -> dict[str, Any]:
    """Measure how noisy the policy gradient of one rollout is with each weight: one policy, many rollouts.

    The policy stays the initial one. The critic has been fitted to it on rollouts that are not used.

    Returns:
        For each weight the trace of the covariance of the gradient over rollouts, and the squared norm of its mean.
    """
    torch.set_num_threads(1)
    settings = reinforce.Settings(env=task, num_envs=8, num_steps=512, gae_lambda=1.0, total_timesteps=10**9)
    agent = reinforce.Reinforce(settings)
    agent.warm_up()
    for _ in range(20):
        batch = agent.rollout()
        agent.judge(batch)
        agent.fit_critic(agent.rows(batch))
    gradients: dict[str, list[NDArray[np.float64]]] = {"total_return": [], "reward_to_go": [], "advantage": []}
    for _ in range(rollouts):
        batch = agent.rollout()
        agent.judge(batch)
        for kind, found in gradients.items():
            found.append(gradient(agent, batch, kind))
    agent.envs.close()
    return {
        kind: {
            "trace_of_covariance": float(np.var(found, axis=0, ddof=1).sum()),
            "norm_of_mean_squared": float((np.mean(found, axis=0) ** 2).sum()),
        }
        for kind, found in gradients.items()
    }


def gradient(agent: reinforce.Reinforce, batch: dict[str, Any], kind: str) -> NDArray[np.float64]:
    """Return the policy's gradient by one rollout, (P,), with weights as they are, not normalised."""
    agent.settings = dataclasses.replace(agent.settings, policy_weight=kind)
    weights = agent.weights(batch)
    rows = {key: value[torch.from_numpy(batch["valid"].reshape(-1))] for key, value in agent.rows(batch).items()}
    psi = torch.from_numpy(weights[batch["valid"]])
    loss = reinforce.policy_gradient_loss(agent.log_prob(rows), psi)
    parts = torch.autograd.grad(loss, agent.policy_parameters)
    return np.concatenate([part.numpy().ravel() for part in parts]).astype(np.float64)


def main() -> None:
    """Make the runs that are missing and print the table, or do what else was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder of results, one file per run")
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--algos", nargs="+", default=tuple(ALGOS))
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--table", action="store_true", help="make no runs")
    parser.add_argument("--draw", type=Path, help="make no runs, draw")
    parser.add_argument("--variance", type=Path, help="measure the noise of the three weights")
    parser.add_argument("--draw-clip", type=Path, help="draw PPO's clipped objective")
    args, extra = parser.parse_known_args()
    if args.variance:
        found = {task: variance(task) for task in ("Hopper-v5", "HalfCheetah-v5")}
        args.variance.write_text(json.dumps(found, indent=1) + "\n")
        print(json.dumps(found, indent=1))
    if args.draw_clip:
        draw_clip(args.draw_clip)
    if not args.out:
        return
    args.out.mkdir(parents=True, exist_ok=True)
    wanted = [(task, algo, seed) for seed in args.seeds for task in args.tasks for algo in args.algos]
    for task, algo, seed in wanted if not (args.table or args.draw) else []:
        path = args.out / f"{task}_{algo.replace(', ', '_').replace(' ', '_')}_seed{seed}.json"
        train(path, task, algo, seed, extra)
    results = [json.loads(path.read_text()) for path in sorted(args.out.glob("*_seed*.json"))]
    if args.draw:
        draw(results, args.draw)
    print("\n".join(table(results)))


if __name__ == "__main__":
    main()
