"""``python -m ppo_fast.plot RUN...``: compare runs in one picture and one table, and as a page."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from ppo_fast.errors import ConfigError

if TYPE_CHECKING:
    from ppo_fast.scores import RunScores

PROG = "python -m ppo_fast.plot"


@dataclasses.dataclass(frozen=True)
class PlotOptions:
    """Draw the evaluations of runs against steps and wall-clock: mean over seeds, with its 95 % interval."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """run directories"""
    out: str = ""
    """PNG to write; empty: curves.png, and none where --html is given"""
    html: str = ""
    """page to write: of several runs a comparison, of one run its report, even if it has not come to its end"""


def main(args: list[str] | None = None) -> int:
    """Parse the options, draw, print the table; return the exit code."""
    from ppo_fast.cli import parse_options, run_command

    def plot() -> None:
        _plot(parse_options(PlotOptions, args, prog=PROG, description=PlotOptions.__doc__))

    return run_command(plot, prog="ppo_fast.plot")


def _plot(options: PlotOptions) -> None:
    from ppo_fast import scores
    from ppo_fast.cli import target_file

    out = options.out or ("" if options.html else "curves.png")
    for name, path, suffix in (("out", out, ".png"), ("html", options.html, ".html")):
        if path:
            target_file(name, path, suffix)
    if not options.runs:
        raise ConfigError("name at least one run directory")
    places = [Path(path).resolve() for path in options.runs]
    if twice := [path for path, place in zip(options.runs, places, strict=True) if places.count(place) > 1]:
        raise ConfigError(f"{twice[0]} is named more than once")
    alone = len(options.runs) == 1
    runs = [scores.read_run(Path(path)) for path in options.runs] if out or not alone else []
    empty = [str(run.path) for run in runs if not run.means.size]
    if empty:
        raise ConfigError(f"no evaluation yet in {', '.join(empty)}")
    if runs:
        print("\n".join(scores.table(runs)) + "\n")
    try:
        if out:
            from ppo_fast.plotting import draw_runs

            draw_runs(runs, Path(out))
            print(f"picture {out}")
        if options.html:
            _write_page(options, runs)
            print(f"page {options.html}")
    except OSError as err:
        raise ConfigError(f"picture or page cannot be written: {err.strerror}") from None


def _write_page(options: PlotOptions, runs: list[RunScores]) -> None:
    from ppo_fast.files import write_atomic
    from ppo_fast.report.compare import compare_page
    from ppo_fast.report.files import read
    from ppo_fast.report.run import run_page

    page = Path(options.html)
    if len(options.runs) == 1:
        write_atomic(page, run_page(read(Path(options.runs[0])), page))
    else:
        write_atomic(page, compare_page(runs, page))


if __name__ == "__main__":
    sys.exit(main())
