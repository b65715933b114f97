"""What the files of a run say, with nothing taken for granted: they may be old, cut short, or of a run that stopped.

E evaluations of a run.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from ppo_fast.errors import ConfigError
from ppo_fast.evaluation import EpisodeStats
from ppo_fast.files import read_jsonl

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class RunFiles:
    """The files of one run."""

    path: Path
    config: dict[str, Any]
    info: dict[str, Any]  # of run_info.json; empty if missing
    rows: list[dict[str, Any]]  # of metrics.jsonl
    evaluations: list[dict[str, Any]]  # of evaluations.jsonl
    nonfinite: dict[str, Any]  # of nonfinite.json; empty if missing
    stats: list[EpisodeStats]  # of the evaluations, E

    @property
    def env_steps(self) -> int:
        """Steps taken."""
        return max((int(row["env_steps"]) for row in self.rows[-1:] + self.evaluations[-1:]), default=0)

    @property
    def wall_s(self) -> float:
        """Seconds of training, evaluation excluded."""
        return max((float(row["wall_s"]) for row in self.rows[-1:] + self.evaluations[-1:]), default=0.0)

    @property
    def finished(self) -> bool:
        """Whether the final evaluation has been made."""
        total = self.config.get("total_timesteps")
        return is_number(total) and any(row["env_steps"] >= total for row in self.evaluations[-1:])

    @property
    def best(self) -> dict[str, Any]:
        """The row of the evaluation with the highest mean; empty if there is none."""
        rows = zip(self.evaluations, self.stats, strict=True)
        return max(rows, key=lambda pair: pair[1].mean, default=({}, None))[0]

    def curve(self, name: str, against: str = "env_steps") -> tuple[Floats, Floats]:
        """Return (x, y) of a metric over the rows that have a finite number of it."""
        points = [(row[against], row[name]) for row in self.rows if is_number(row.get(name))]
        x, y = np.array(points, np.float64).reshape(-1, 2).T
        return x, y


def read(path: Path) -> RunFiles:
    """Read a run directory; rows that do not tell steps and seconds are skipped.

    Raises:
        ConfigError: it holds no config.json, or one that is none.
    """
    config = _object(path / "config.json")
    if not isinstance(config.get("env"), str):
        raise ConfigError(f"{path} is not the directory of a run: it has no config.json with options in it")
    rows, evaluations = (
        [row for row in read_jsonl(path / name) if is_number(row.get("env_steps")) and is_number(row.get("wall_s"))]
        for name in ("metrics.jsonl", "evaluations.jsonl")
    )
    evaluations = [row for row in evaluations if _numbers(row.get("returns"))]
    stats = [EpisodeStats(np.array(row["returns"], float), np.array(_numbers(row.get("lengths")), int))
             for row in evaluations]  # fmt: skip
    info, nonfinite = (_object(path / name) for name in ("run_info.json", "nonfinite.json"))
    return RunFiles(path, config, info, rows, evaluations, nonfinite, stats)


def is_number(value: object) -> TypeGuard[int | float]:
    """Return whether a value of a file is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _numbers(value: object) -> list[float]:
    """Return a list of finite numbers, or an empty one for anything else."""
    return value if isinstance(value, list) and all(map(is_number, value)) else []


def _object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
