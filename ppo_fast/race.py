"""Which trial of a sweep is worth going on with: trials are compared at equal training time, not at equal steps.

E evaluations of a run · R runs of a trial, one per seed · t seconds of training, evaluations not counted.

    v_r(t) = return of the last evaluation of run r at or before t
    V(t)   = interquartile mean over the runs of v_r(t)

Source: the median rule of Golovin et al., "Google Vizier", KDD 2017, §3.2, with time in place of steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ppo_fast.files import read_jsonl
from ppo_fast.scores import Floats, iqm


@dataclass(frozen=True)
class Curve:
    """Values that hold from a time on, until the next."""

    at: Floats  # (E,) seconds of training, ascending
    values: Floats  # (E,)

    def value(self, t: float) -> float | None:
        """Return the value at ``t``; None before the first. After the last, the last holds."""
        known = int(np.searchsorted(self.at, t, side="right"))
        return float(self.values[known - 1]) if known else None


def read_curve(run: Path) -> Curve | None:
    """Return the evaluations that a run directory has; None if there are none yet."""
    rows = read_jsonl(run / "evaluations.jsonl")
    if not rows:
        return None
    at, means = [row["wall_s"] for row in rows], [np.mean(row["returns"]) for row in rows]
    return Curve(np.array(at, np.float64), np.array(means, np.float64))


def trial_curve(runs: Sequence[Curve]) -> Curve:
    """Return V(t) at every evaluation of any of the runs, from when all have one."""
    start = max(float(run.at[0]) for run in runs)
    at = np.unique(np.concatenate([run.at for run in runs]))
    at = at[at >= start]
    values = [iqm(np.array([run.value(float(t)) for run in runs], np.float64)) for t in at]
    return Curve(at, np.array(values, np.float64))


@dataclass(frozen=True)
class Verdict:
    """How a trial stands among those that have been completed."""

    t: float
    """the time until which all its runs are known"""
    best: float
    """the highest V until then"""
    median: float
    """of the others' V(t); NaN if too few are known"""

    @property
    def hopeless(self) -> bool:
        """Whether at least half of the others were better at that time than this trial has ever been."""
        return self.best < self.median


def judge(runs: Sequence[Curve | None], ended: Sequence[bool], others: Sequence[Curve], least: int) -> Verdict | None:
    """Compare a trial with those that have been completed, at the time until which all its evaluated runs are known.

    Args:
        runs: of the trial, None where there is no evaluation yet. It is not judged by less than half of them.
        ended: which of them have come to their end; their last evaluation holds from there on.
        others: V of every trial that has been completed.
        least: how many of these must be known at that time.

    Returns:
        The comparison, or None if it is too early for one, or too late, because all runs have ended.
    """
    known = [(run, over) for run, over in zip(runs, ended, strict=True) if run is not None]
    if not known or 2 * len(known) < len(runs) or all(ended):
        return None
    own = trial_curve([run for run, _ in known])
    t = min((float(run.at[-1]) for run, over in known if not over), default=float(own.at[-1]))
    until = own.values[own.at <= t]
    if not until.size:
        return None
    theirs = [value for other in others if (value := other.value(t)) is not None]
    return Verdict(t, float(until.max()), float(np.median(theirs)) if len(theirs) >= max(least, 1) else math.nan)
