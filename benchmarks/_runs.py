"""A training run as a child process, and what is kept of it: one small JSON file."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ppo_fast.cli import parse_config
from ppo_fast.files import write_atomic
from ppo_fast.runs import difference
from ppo_fast.scores import LAST_SHARE


def keep(path: Path, module: Sequence[str], options: Mapping[str, Any], flags: Sequence[str], **about: Any) -> None:
    """Make a run unless ``path`` tells of it already, and write what is kept of it.

    Args:
        path: the file to write.
        module: what follows ``python -m``.
        options: of the run; it gets a directory of its own, which is not kept.
        flags: more of them, as on the command line.
        about: what else the file says.

    Raises:
        SystemExit: ``path`` tells of a run with other options.
        CalledProcessError: the run failed.
    """
    flags = [*as_flags(options), *flags]
    if path.exists():
        require_same(path, flags)
        return
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [sys.executable, "-m", *module, *flags, "--run-dir", str(run), "--quiet", "--log"]
        subprocess.run(command, check=True)
        write_atomic(path, (json.dumps({**about, **_read(run)}) + "\n").encode())


def require_same(path: Path, flags: Sequence[str]) -> None:
    """Raise ``SystemExit`` unless ``path`` tells of a run with the options that ``flags`` make."""
    cfg = parse_config(flags, prog="", description="")
    if found := difference(json.loads(path.read_text())["config"], cfg):
        raise SystemExit(f"{path} is of a run with {found}; take another folder")


def as_flags(options: Mapping[str, Any]) -> list[str]:
    """Return options as on the command line; a tuple is several words."""
    words = {name: value if isinstance(value, tuple) else (value,) for name, value in options.items()}
    return [text for name, values in words.items() for text in (f"--{name}", *map(str, values))]


def final(result: Mapping[str, Any]) -> float:
    """Return the study's score of a run that was kept: the mean of the last tenth of its evaluations."""
    means = [float(np.mean(returns)) for _, *returns in result["evaluations"]]
    return float(np.mean(means[-max(1, round(LAST_SHARE * len(means))) :]))


def _read(run: Path) -> dict[str, Any]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    evaluations = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
    info = json.loads((run / "run_info.json").read_text())
    config = json.loads((run / "config.json").read_text())
    phases = {name for row in rows for name in row if name.startswith("time/")}
    return {
        "wall_s": rows[-1]["wall_s"],
        "seconds": {name.removeprefix("time/"): sum(row.get(name, 0.0) for row in rows) for name in sorted(phases)},
        "evaluations": [[e["env_steps"], *map(float, e["returns"])] for e in evaluations],
        "evaluated_s": [e["wall_s"] for e in evaluations],
        "curve": [[row["env_steps"], row["episode_return"]] for row in rows[:: max(1, len(rows) // 100)]],
        "last": {k: v for k, v in rows[-1].items() if not k.startswith("time/")},
        "config": {**config, "run_dir": ""},
        "ran": {name: info[name] for name in ("actor", "learner", "update", "versions", "machine")},
    }
