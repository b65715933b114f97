"""``python -m ppo_fast.plot RUN...``: compare runs in one picture and one table."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import tyro

from ppo_fast.errors import ConfigError

PROG = "python -m ppo_fast.plot"


@dataclasses.dataclass(frozen=True)
class PlotOptions:
    """Draw the evaluations of runs against steps and wall-clock: mean over seeds, with its 95 % interval."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """run directories"""
    out: str = "curves.png"
    """PNG to write"""


def main(args: list[str] | None = None) -> int:
    """Parse the options, draw, print the table; return the exit code."""
    from ppo_fast.cli import parse_options, run_command

    def plot() -> None:
        _plot(parse_options(PlotOptions, args, prog=PROG, description=PlotOptions.__doc__))

    return run_command(plot, prog="ppo_fast.plot")


def _plot(options: PlotOptions) -> None:
    from ppo_fast import scores
    from ppo_fast.plotting import draw_runs

    out = Path(options.out)
    if not options.runs:
        raise ConfigError("name at least one run directory")
    if out.suffix != ".png" or not out.absolute().parent.is_dir():
        raise ConfigError(f"out must be a path that ends in .png, in a directory that exists, got {options.out!r}")
    runs = [scores.read_run(Path(path)) for path in options.runs]
    empty = [str(run.path) for run in runs if not run.means.size]
    if empty:
        raise ConfigError(f"no evaluation yet in {', '.join(empty)}")
    draw_runs(runs, out)
    print("\n".join(scores.table(runs)))
    print(f"\npicture {out}")


if __name__ == "__main__":
    sys.exit(main())
