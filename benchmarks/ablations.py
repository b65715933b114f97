"""What earned its place: one thing changed at a time, five seeds, one million steps.

python -m benchmarks.ablations --out FOLDER [--variants ...]     make the runs that FOLDER lacks, then print the table
python -m benchmarks.ablations --out FOLDER --table              print the table of what is there

Each variant is ``--preset sample`` and one change (a rate by KL takes the place of annealing and of a KL stop): options
where there are some, else a change made here to the trainer (``VARIANTS``), so that the package holds only what was
found to help. The score is the study's: the mean of the last tenth of the evaluations.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ppo_fast import kernels, train
from ppo_fast.batch import Bool, Rollout
from ppo_fast.learners.choose import critic_config
from ppo_fast.learners.native import NativeLearner
from ppo_fast.normalizers import Moments
from ppo_fast.presets import resolve
from ppo_fast.scores import bootstrap_interval
from ppo_fast.trainer import Trainer

from ._runs import final, keep

TASKS = ("HalfCheetah-v5", "Walker2d-v5", "Ant-v5")
SEEDS = (21, 22, 23, 24, 25)  # none of those whose results are reported
STEPS, EVAL_EVERY, EPISODES = 1_000_000, 50_000, 10
CRITIC_EPOCHS = 10
KL_STOP, NO_KL_STOP = ("--target-kl", "0.02"), ("--target-kl", "None")

Update = Callable[[Rollout], dict[str, float]]
Change = Callable[[Trainer], Update]


@dataclass(frozen=True)
class Variant:
    """One thing that differs from ``--preset sample``: options, or what takes the place of the learner's update."""

    flags: tuple[str, ...] = ()
    change: Change | None = None

    def flags_on(self, task: str) -> tuple[str, ...]:
        """Return the flags; for the KL stop its opposite, where the preset of ``task`` has the stop itself."""
        has_it = resolve(env=task, preset="sample").target_kl is not None
        return NO_KL_STOP if has_it and self.flags == KL_STOP else self.flags


def cut_at_time_limits(trainer: Trainer) -> Update:
    """Take the end of an episode by its time limit for a failure, with nothing to come after it."""

    def update(rollout: Rollout) -> dict[str, float]:
        _judge(trainer, rollout, rollout.values_all, terminated=rollout.done)
        return learn(rollout)

    learn = trainer.learner.update
    return update


def normalised_values(trainer: Trainer) -> Update:
    """Have the critic predict (R − μ) / σ, with the running moments of R, and keep what it says when they move.

    Source: PopArt, van Hasselt et al., arXiv:1602.07714: when (μ, σ) become (μ', σ'), the last layer's weights are
    multiplied with σ / σ', and its bias becomes (σ b + μ − μ') / σ'.
    """
    moments = Moments(1)
    learn = trainer.learner.update

    def constants() -> tuple[float, float]:
        known = moments.count > 0
        return (float(moments.mean[0]), float(np.sqrt(moments.var[0] + 1e-8))) if known else (0.0, 1.0)

    def update(rollout: Rollout) -> dict[str, float]:
        mean, std = constants()
        _judge(trainer, rollout, rollout.values_all * np.float32(std) + np.float32(mean), terminated=rollout.terminated)
        moments.update(rollout.returns.reshape(-1, 1), rollout.valid.reshape(-1))
        new_mean, new_std = constants()
        rescale_head(trainer, mean, std, new_mean, new_std)
        rollout.returns[...] = (rollout.returns - np.float32(new_mean)) / np.float32(new_std)
        return learn(rollout)

    return update


def rescale_head(trainer: Trainer, mean: float, std: float, new_mean: float, new_std: float) -> None:
    """Change the critic's last layer so that ``new_std v' + new_mean`` is what ``std v + mean`` was."""
    named = trainer.model.unflatten(trainer.learner.flat)
    weight, bias = (named[f"critic.{len(trainer.cfg.hidden_sizes)}.{part}"] for part in ("weight", "bias"))
    with torch.no_grad():
        weight.mul_(std / new_std)
        bias.mul_(std / new_std).add_((mean - new_mean) / new_std)


def more_critic_epochs(trainer: Trainer) -> Update:
    """Let the critic go on alone for more passes after each update, by an Adam of its own."""
    cfg = dataclasses.replace(critic_config(trainer.cfg), update_epochs=CRITIC_EPOCHS, target_kl=None, adaptive_kl=None)
    critic = NativeLearner(trainer.model, trainer.learner.flat, cfg)
    learn = trainer.learner.update

    def update(rollout: Rollout) -> dict[str, float]:
        metrics = learn(rollout)
        critic.learning_rate = metrics["learning_rate"]
        critic.flat.copy_(trainer.learner.flat)
        batch = critic.stage(rollout)
        critic.learn({**batch, "advantages": np.zeros_like(batch["advantages"])})
        trainer.learner.flat.copy_(critic.flat)
        return metrics

    return update


def _judge(trainer: Trainer, rollout: Rollout, values: Any, *, terminated: Bool) -> None:
    """Compute advantages and returns again, from other values or other ends."""
    kernels.gae(
        rollout.scaled_rewards, values[:-1], values[1:], terminated, rollout.done,
        gamma=trainer.cfg.gamma, gae_lambda=trainer.cfg.gae_lambda, out=(rollout.advantages, rollout.returns),
    )  # fmt: skip


VARIANTS: dict[str, Variant] = {
    "preset sample": Variant(),
    "no bootstrap at time limits": Variant(change=cut_at_time_limits),
    "advantages recomputed": Variant(("--recompute-adv",)),
    "KL stop of 0.02, on Ant none": Variant(KL_STOP),
    "rate by KL 0.01, not annealed, no stop": Variant(("--no-anneal-lr", "--adaptive-kl", "0.01", *NO_KL_STOP)),
    "rate by KL 0.02, not annealed, no stop": Variant(("--no-anneal-lr", "--adaptive-kl", "0.02", *NO_KL_STOP)),
    "values normalised": Variant(change=normalised_values),
    f"{CRITIC_EPOCHS} more critic epochs": Variant(change=more_critic_epochs),
}


def train_changed(name: str, argv: list[str]) -> int:
    """Run the training command with the change of a variant; return its exit code."""
    change = VARIANTS[name].change
    if change is not None:
        make = Trainer._make

        def make_changed(trainer: Trainer, *args: Any) -> None:
            make(trainer, *args)
            trainer.learner.update = change(trainer)  # type: ignore[method-assign]

        Trainer._make = make_changed  # type: ignore[method-assign]
    return train.main(argv)


# --- results ---------------------------------------------------------------------------------------------------------
def table(results: list[dict[str, Any]]) -> list[str]:
    """Return the scores as Markdown: mean over seeds, its difference from the preset's with a bootstrap interval."""
    base = next(iter(VARIANTS))
    lines = ["| task | variant | mean ± std | worst | against the preset, 95 % | seeds |", "|---|---|--:|--:|--:|---|"]
    for task in TASKS:
        scores = {
            name: np.array([final(r) for r in results if (r["task"], r["variant"]) == (task, name)])
            for name in VARIANTS
        }
        for name, found in scores.items():
            if not found.size:
                continue
            gain = "-"
            if name != base and scores[base].size > 1 and found.size > 1:
                cut, both = found.size, [found, scores[base]]
                low, high = bootstrap_interval(both, lambda x, cut=cut: float(x[:cut].mean() - x[cut:].mean()))
                gain = f"{found.mean() - scores[base].mean():+,.0f} ({low:+,.0f} to {high:+,.0f})"
            std = f" ± {found.std(ddof=1):,.0f}" if found.size > 1 else ""
            seeds = ", ".join(f"{x:,.0f}" for x in found)
            lines.append(f"| {task} | {name} | {found.mean():,.0f}{std} | {found.min():,.0f} | {gain} | {seeds} |")
    return lines


def main() -> int:
    """Make the runs that are missing and print the table; or be one of those runs."""
    if sys.argv[1:2] == ["--train"]:
        return train_changed(sys.argv[2], sys.argv[3:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of results, one file per run")
    parser.add_argument("--tasks", nargs="+", default=TASKS, choices=TASKS)
    parser.add_argument("--variants", nargs="+", default=tuple(VARIANTS), choices=tuple(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--table", action="store_true", help="make no runs")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    wanted = [(seed, task, name) for seed in args.seeds for task in args.tasks for name in args.variants]
    failed = 0
    for seed, task, name in wanted if not args.table else []:
        path = args.out / f"{task}_{name.replace(', ', '_').replace(' ', '_')}_seed{seed}.json"
        options = {
            "env": task, "preset": "sample", "seed": seed, "total-timesteps": STEPS, "eval-every": EVAL_EVERY,
            "eval-episodes": EPISODES, "checkpoint-every": 0,
        }  # fmt: skip
        module = ["benchmarks.ablations", "--train", name]
        try:
            keep(path, module, options, VARIANTS[name].flags_on(task), task=task, variant=name, seed=seed)
        except subprocess.CalledProcessError as err:  # as a change that diverges, which the others need not wait for
            print(f"{path.stem}: {err}", file=sys.stderr)
            failed += 1
    results = [json.loads(path.read_text()) for path in sorted(args.out.glob("*_seed*.json"))]
    print("\n".join(table(results)))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
