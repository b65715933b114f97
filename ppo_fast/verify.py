"""``python -m ppo_fast.verify``: hold the fast path to the reference trainer on this machine."""

from __future__ import annotations

import dataclasses
import sys
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from ppo_fast.config import Config
    from ppo_fast.lockstep.report import Group, Report

EXIT_DIFFERS = 1
WIDE, NARROW = (21, 10), (18, 9)  # widths of the columns: five implementations fit a terminal of 80, or six


@dataclasses.dataclass(frozen=True)
class VerifyOptions:
    """Run the fast path and the reference trainer in lock-step, on the same seeds, noise and orders, and compare each
    stage of every kernel backend, actor and learner with the reference. Exit code 1 if one is beyond its tolerance.
    """

    env: str = "Hopper-v5"
    """environment id; Gymnasium steps it"""
    iterations: int = 3
    """rollouts that are learned from"""
    num_envs: int = 8
    """parallel environments (N)"""
    num_steps: int = 64
    """steps per environment per rollout (T)"""
    minibatch_size: int = 64
    """rows per optimizer step (M); divides num_envs * num_steps"""
    hidden_sizes: tuple[int, ...] = (64, 64)
    """widths of the hidden layers of actor and critic"""
    shared_trunk: bool = False
    """let actor and critic share their hidden layers"""
    activation: Literal["tanh", "relu", "elu", "silu"] = "tanh"
    """activation of the hidden layers"""
    seed: int = 1
    """seed of environments, noise, orders and first weights"""


def main(args: list[str] | None = None) -> int:
    """Parse the options, compare, print; return the exit code."""
    from ppo_fast.cli import parse_options, run_command

    verdicts: list[bool] = []

    def verify() -> None:
        verdicts.append(_verify(parse_options(VerifyOptions, args, prog="python -m ppo_fast.verify")))

    return run_command(verify, prog="ppo_fast.verify") or (0 if verdicts[0] else EXIT_DIFFERS)


def _verify(options: VerifyOptions) -> bool:
    """Return whether every check holds."""
    import torch
    from rich.console import Console

    from ppo_fast.lockstep.run import make_config, run

    cfg = make_config(**dataclasses.asdict(options))
    torch.set_num_threads(1)
    console = Console(highlight=False, soft_wrap=True)
    console.print(banner(cfg, options.iterations), markup=False)
    with console.status("starting") as status:
        report = run(cfg, options.iterations, status.update)
    show(console, report)
    return not report.failures()


def banner(cfg: Config, iterations: int) -> str:
    """Return what is about to be compared and on what, one fact a line."""
    from ppo_fast.system import build_info

    info = build_info()
    lines = {
        "task": f"{cfg.env} on gymnasium, seed {cfg.seed}",
        "batch": f"{cfg.num_envs} envs x {cfg.num_steps} steps = {cfg.batch_size} rows, minibatches of "
        f"{cfg.minibatch_size}, {cfg.update_epochs} epochs",
        "network": f"{'-'.join(map(str, cfg.hidden_sizes))} {cfg.activation}" + ", shared trunk" * cfg.shared_trunk,
        "iterations": f"{iterations}, and one that warms the statistics up",
        "versions": ", ".join(f"{name} {version}" for name, version in info["versions"].items()),
        "machine": f"{info['machine']['cpu']}, {info['machine']['cpus']} CPUs",
    }
    return "\n".join(f"{name + ':':<14}{text}" for name, text in lines.items())


def show(console: Console, report: Report) -> None:
    """Print a table per group, what was met on the way, every failure, and the verdict."""
    for group in report.groups:
        console.print(table(group))
    console.print(
        "\n2x: root-mean-square error against float64, in units of the float32 reference's\n"
        f"met: {report.transitions:,} transitions, {report.resets:,} reset rows, {report.minibatches:,} minibatches\n"
        f"clipped: {report.clipped_ratios:.0%} of the ratios, {report.clipped_gradients:.0%} of the gradients",
        markup=False,
    )
    failures = report.failures()
    for cell, complaint in failures.items():
        console.print(f"FAIL {', '.join(cell)}: {complaint}", markup=False, style="bold red")
    if failures:
        console.print(f"{len(failures)} of {report.num_checks} checks fail", style="bold red")
    else:
        console.print(f"all {report.num_checks} checks hold", style="bold green")


def table(group: Group) -> Text:
    """Return the worst of each stage by implementation, and its limit; a failure is marked with ``!``."""
    from rich.text import Text

    label, cell = WIDE if len(group.columns) <= 5 else NARROW
    heads = [name.partition(" ") for name in group.columns]
    out = Text()
    if any(below for _, _, below in heads):
        out.append("\n" + " " * label + "".join(f"{above:>{cell}}" for above, _, _ in heads))
        heads = [(below or above, "", "") for above, _, below in heads]
    out.append(f"\n{group.title:<{label}}" + "".join(f"{name:>{cell}}" for name, _, _ in heads) + "  limit")
    out.stylize("bold")
    for stage, kind in group.stages.items():
        out.append(f"\n  {stage:<{label - 2}}")
        for rules in group.columns.values():
            fails = bool(rules[stage].complaint())
            out.append(f"{'! ' * fails + rules[stage].shown():>{cell}}", style="bold red" if fails else "")
        out.append(f"  {kind.allowed}", style="dim")
    for reason, names in group.missing_by_reason().items():
        out.append(f"\n  without {', '.join(names)}: {reason}", style="yellow")
    return out


if __name__ == "__main__":
    sys.exit(main())
