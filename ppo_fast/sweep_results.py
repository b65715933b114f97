"""What a sweep has found, as files and in words: table.md, results.json, best.toml."""

from __future__ import annotations

import json
import logging
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ppo_fast import files
from ppo_fast.config import Config
from ppo_fast.presets import resolve_options
from ppo_fast.trials import COMPLETED, Record

log = logging.getLogger(__name__)

_OF_THE_RUN = ("seed", "run_dir", "resume", "eval_every", "quiet")  # not in best.toml
_SHOWN = 10


def write(
    out: Path, records: Sequence[Record], names: Sequence[str], config_of: Callable[[Mapping[str, Any]], Config]
) -> None:
    """Write the files.

    Args:
        out: directory of the sweep.
        records: of all trials.
        names: the options that are searched.
        config_of: gives all options of a run with those that are searched.
    """
    results = [
        {**asdict(each), "seconds": None if math.isnan(each.seconds) else each.seconds, "ending": each.ending or None}
        for each in records
    ]
    try:
        files.write_atomic(out / "results.json", files.to_json(results))
        files.write_atomic(out / "table.md", ("\n".join(table(records, names)) + "\n").encode())
        if best := best_of(records):
            files.write_atomic(out / "best.toml", best_toml(best, config_of(best.options)).encode())
    except OSError as err:  # a full disk stops no run
        log.warning("results of %s not written, tried again when a run ends: %s", out, err.strerror)


def best_of(records: Sequence[Record]) -> Record | None:
    """Return the completed trial with the highest score, the first of equals; None without one."""
    completed = [each for each in records if each.ending == COMPLETED]
    return max(completed, key=_score, default=None)


def best_toml(best: Record, cfg: Config) -> str:
    """Return the options of a trial that a training does not have by its task, preset and algorithm, as a TOML file."""
    of_task = resolve_options({"env": cfg.env, "preset": cfg.preset, "algo": cfg.algo})
    lines = [
        f"# Trial {best.number}: {_score(best):,.1f}, the interquartile mean of {len(best.finals)} seeds.",
        *(f"{name} = {files.to_toml(getattr(cfg, name))}" for name in ("env", "preset", "algo")),
    ]
    for name, value in asdict(cfg).items():
        if name in _OF_THE_RUN or value == of_task[name]:
            continue
        flag = f"--{name.replace('_', '-')}"
        if value is None:
            lines.append(f"# {name} must be unset, for which TOML has no word: add {flag} None")
            continue
        try:
            lines.append(f"{name} = {files.to_toml(value)}")
        except TypeError:  # None within
            lines.append(f"# {name} is {json.dumps(value)}, for which TOML has no word: say so with {flag}")
    return "\n".join(lines) + "\n"


def table(records: Sequence[Record], names: Sequence[str]) -> list[str]:
    """Return the trials as lines of a Markdown table: the completed ones by their score, then the others."""
    rows = [("trial", "score", "of each seed", "s", *names, "")]
    rows += [
        (
            f"{each.number}", "-" if each.score is None else f"{each.score:,.1f}",
            " ".join(f"{final:,.1f}" for final in each.finals) or "-",
            "-" if math.isnan(each.seconds) else f"{each.seconds:,.0f}",
            *(_shown(each.words.get(name)) for name in names),
            f"{each.ending or 'begun'}{f': {each.why}' if each.why else ''}".replace("|", "/"),
        )
        for each in sorted(records, key=_order)
    ]  # fmt: skip
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return [lines[0], f"|{'---|' * len(rows[0])}", *lines[1:]]


def summary(records: Sequence[Record], names: Sequence[str], out: Path) -> str:
    """Return what there is to say at the end of a sweep: the best trials, how many there are, how to go on."""
    endings = [each.ending or "begun elsewhere" for each in records]
    counts = ", ".join(f"{endings.count(ending)} {ending}" for ending in dict.fromkeys(endings))
    lines = ["", *table(records, names)[: 2 + _SHOWN], "", f"{counts}; all of them in {out / 'table.md'}"]
    if best := best_of(records):
        lines.append(
            f"best: trial {best.number}, {_score(best):,.1f}\n"
            f"  python -m ppo_fast.train --config {shlex.quote(str(out / 'best.toml'))} --seed 1"
        )
    return "\n".join(lines)


def _score(record: Record) -> float:
    return -math.inf if record.score is None else record.score


def _order(record: Record) -> tuple[bool, float, int]:
    return record.ending != COMPLETED, -_score(record), record.number


def _shown(value: Any) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
