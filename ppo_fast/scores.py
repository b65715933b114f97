"""What runs are worth: their evaluations, read from their directories, and honest statistics over seeds.

E evaluations of a run · R runs of a task, one per seed · G points of a common grid.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppo_fast.errors import ConfigError
from ppo_fast.files import read_jsonl

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], float]

LAST_SHARE = 0.1  # of the evaluations make the final score
ON_GYMNASIUM = "gymnasium.json"  # in a run's directory
WINDOW = 3  # evaluations whose mean must pass a mark

# Marks to time, and the one that separates the good runs from the bad ones where a task has two kinds.
TIMED: dict[str, tuple[float, ...]] = {
    "Ant-v5": (2000, 3000),
    "HalfCheetah-v5": (5000, 6500),
    "Walker2d-v5": (4000,),
    "Hopper-v5": (3000,),
    "Humanoid-v5": (5000,),
}
SOUND: dict[str, float] = {"HalfCheetah-v5": 4000}


@dataclass(frozen=True)
class RunScores:
    """The evaluations of one run, and the return of its training episodes."""

    path: Path
    env: str
    algo: str
    preset: str
    seed: int
    total_timesteps: int
    steps: Floats  # (E,) environment steps
    wall_s: Floats  # (E,) seconds of training, evaluation excluded
    means: Floats  # (E,) mean return over the episodes of the evaluation, mean actions
    sampled: float  # mean return of the last training episodes, sampled actions
    gymnasium: float  # mean return of the final policy on Gymnasium's environments; NaN if it was not taken there
    options: Mapping[str, Any] = field(default_factory=dict)  # of the run, as its config.json has them

    @property
    def finished(self) -> bool:
        """Whether the run has come to its end."""
        return bool(self.steps.size) and bool(self.steps[-1] >= self.total_timesteps)

    @property
    def final(self) -> float:
        """Mean of the last tenth of the evaluations, at least of one."""
        return float(self.means[-max(1, round(LAST_SHARE * self.means.size)) :].mean())

    def time_to(self, mark: float) -> float | None:
        """Return the seconds of training until the mean of three evaluations passed ``mark``; None if it never did."""
        if self.means.size < WINDOW:
            return None
        moving = np.convolve(self.means, np.full(WINDOW, 1 / WINDOW), "valid")
        passed = np.flatnonzero(moving >= mark)
        return float(self.wall_s[passed[0] + WINDOW - 1]) if passed.size else None


def _on_gymnasium(path: Path, last: int) -> float:
    """Return the mean return on Gymnasium of the policy after ``last`` steps; NaN if there is none, or of another."""
    kept = json.loads(path.read_bytes()) if path.exists() else {"env_steps": -1}
    return float(np.mean(kept["returns"])) if kept.get("env_steps", last) == last else math.nan


def read_run(path: Path) -> RunScores:
    """Read what a run directory says of its evaluations.

    Raises:
        ConfigError: it is no run directory, or one of another kind.
    """
    if not path.exists():
        raise ConfigError(f"no run at {str(path)!r}")
    try:
        config = json.loads((path / "config.json").read_bytes())
        rows = read_jsonl(path / "evaluations.jsonl")
        last = read_jsonl(path / "metrics.jsonl")[-1:]
        sampled = last[0]["episode_return"] if last else None
        return RunScores(
            path, config["env"], config.get("algo", "ppo"), config["preset"], config["seed"],
            config["total_timesteps"],
            np.array([row["env_steps"] for row in rows], np.float64),
            np.array([row["wall_s"] for row in rows], np.float64),
            np.array([np.mean(row["returns"]) for row in rows], np.float64),
            math.nan if sampled is None else float(sampled),
            _on_gymnasium(path / ON_GYMNASIUM, int(rows[-1]["env_steps"]) if rows else 0),
            config,
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise ConfigError(f"{path} is not the directory of a run: {err}") from None


# --- statistics over seeds -------------------------------------------------------------------------------------------
def iqm(scores: Floats) -> float:
    """Return the interquartile mean: a quarter of the scores, rounded down, is left out at either end.

    Source: Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice", arXiv:2108.13264.
    """
    cut = scores.size // 4
    return float(np.sort(scores)[cut : scores.size - cut].mean())


def bootstrap_interval(
    groups: Sequence[Floats], statistic: Statistic, *, samples: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Return the 95 % interval of ``statistic`` over all scores, resampling runs within each task.

    Args:
        groups: the scores of each task, (R,) each, comparable with each other.
        statistic: of the scores of all tasks together.
        samples: how many times to resample.
        seed: of the resampling.

    Source: stratified percentile bootstrap, Agarwal et al., arXiv:2108.13264, §4.
    """
    rng = np.random.default_rng(seed)
    drawn = [group[rng.integers(group.size, size=(samples, group.size))] for group in groups]
    values = [statistic(row) for row in np.concatenate(drawn, axis=1)]
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


@dataclass(frozen=True)
class TaskScores:
    """One task, several seeds."""

    runs: list[RunScores]

    @property
    def finals(self) -> Floats:
        """Final scores, (R,)."""
        return np.array([run.final for run in self.runs])

    def until(self, steps: float) -> TaskScores:
        """Return the same runs as they stood when they had taken ``steps``, up to 1 % more."""
        cut = [
            replace(
                run,
                **{name: getattr(run, name)[run.steps <= 1.01 * steps] for name in _CURVE},
                sampled=math.nan,
                gymnasium=math.nan,
            )
            for run in self.runs
        ]
        return TaskScores([run for run in cut if run.means.size])


_CURVE = ("steps", "wall_s", "means")
_AT_THE_END = ("sampled", "gymnasium")  # what is known of the end of a run only


# In these runs of one curve may differ: they say which run it is, or how it is watched and kept.
_NOT_COMPARED = {
    "env", "algo", "preset", "seed", "run_dir", "resume", "env_threads", "learner_threads", "torch_threads", "kernels",
    "eval_every", "eval_episodes", "checkpoint_every", "keep_checkpoints", "on_nan", "log", "quiet",
}  # fmt: skip


def by_task(runs: Sequence[RunScores]) -> dict[tuple[str, str, str], TaskScores]:
    """Group runs by (environment, algorithm, preset), seeds in order; runs without an evaluation are left out.

    Where other options differ, the preset is followed by those, as in ``'fast, gamma 0.9'``, so that only seeds share a
    curve. A run of an older version, which does not have such an option, has a curve of its own.
    """
    groups: dict[tuple[str, str, str], list[RunScores]] = {}
    for run in sorted(runs, key=lambda run: (run.env, run.algo, run.preset, run.seed)):
        if run.means.size:
            groups.setdefault((run.env, run.algo, run.preset), []).append(run)
    tasks: dict[tuple[str, str, str], list[RunScores]] = {}
    for (env, algo, preset), group in groups.items():
        varied = _varied(group)
        for run in group:
            words = (f"{name} {_word(run.options[name])}" for name in varied if name in run.options)
            label = ", ".join([preset, *words])
            tasks.setdefault((env, algo, label), []).append(run)
    return {key: TaskScores(group) for key, group in tasks.items()}


def _varied(runs: Sequence[RunScores]) -> list[str]:
    """Return the options in which those of these runs that have them are not the same."""
    values: dict[str, list[Any]] = {}
    for run in runs:
        for name, value in run.options.items():
            if name not in _NOT_COMPARED:
                values.setdefault(name, []).append(value)
    return [name for name, found in values.items() if any(value != found[0] for value in found)]


def _word(value: Any) -> str:
    return "-".join(map(str, value)) if isinstance(value, list) else str(value)


HEAD = (
    "task", "algorithm, preset", "steps", "seeds", "mean ± std", "IQM, 95 %", "worst", "sampled actions",
    "on Gymnasium", "marks",
)  # fmt: skip


def rows(runs: Sequence[RunScores], at: Sequence[int] = ()) -> list[tuple[str, ...]]:
    """Return the table of all tasks below ``HEAD``, with every number that the protocol asks for.

    Args:
        runs: of any tasks.
        at: further rows say how the same runs stood after so many steps, where they went beyond.
    """
    found = []
    for (env, algo, preset), task in by_task(runs).items():
        end = min(float(run.steps[-1]) for run in task.runs)
        earlier = [task.until(steps) for steps in sorted(at) if 1.01 * steps < end]
        found += [(env, f"{algo}, {preset}", *_cells(env, stand)) for stand in (*earlier, task) if stand.runs]
    return found


def table(runs: Sequence[RunScores], at: Sequence[int] = ()) -> list[str]:
    """Return :func:`rows` as lines of Markdown."""
    head, *body = (f"| {' | '.join(row)} |" for row in (HEAD, *rows(runs, at)))
    return [head, f"|---|---|{'--:|' * 7}---|", *body]


def _cells(env: str, task: TaskScores) -> tuple[str, ...]:
    finals = task.finals
    low, high = bootstrap_interval([finals], iqm)
    digits = 1 if np.abs(finals).max() < 100 else 0
    steps = f"{min(float(run.steps[-1]) for run in task.runs) / 1e6:.2f}M"
    if unfinished := sum(not run.finished for run in task.runs if not math.isnan(run.sampled)):
        steps += f", {unfinished} unfinished"
    std = f" ± {finals.std(ddof=1):,.{digits}f}" if finals.size > 1 else ""

    def mean(name: str) -> str:
        known = [value for run in task.runs if not math.isnan(value := getattr(run, name))]
        return f"{np.mean(known):,.{digits}f}" if known else "-"

    return (
        steps,
        f"{finals.size}",
        f"{finals.mean():,.{digits}f}{std}",
        f"{iqm(finals):,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})",
        f"{finals.min():,.{digits}f}",
        mean("sampled"),
        mean("gymnasium"),
        _marks(env, task),
    )


def _marks(env: str, task: TaskScores) -> str:
    """Return how many seeds passed the marks of a task, and after how long in the median of those that did."""
    parts = []
    if env in SOUND:
        parts.append(f"{np.mean(task.finals > SOUND[env]):.0%} above {SOUND[env]:,.0f}")
    for mark in TIMED.get(env, ()):
        times = [time for run in task.runs if (time := run.time_to(mark)) is not None]
        passed = f"{mark:,.0f}: {len(times)} of {len(task.runs)}"
        parts.append(passed + (f", {np.median(times):,.0f} s" if times else ""))
    return "; ".join(parts)


def to_json(runs: Sequence[RunScores]) -> list[dict[str, Any]]:
    """Return the runs as JSON-ready values, for results that are kept."""
    return [
        {
            **{name: getattr(run, name) for name in ("env", "algo", "preset", "seed", "total_timesteps", "finished")},
            "final": run.final if run.means.size else None,
            **{name: None if math.isnan(value := getattr(run, name)) else value for name in _AT_THE_END},
            **{name: getattr(run, name).round(3).tolist() for name in _CURVE},
        }
        for run in runs
    ]


def mean_curve(curves: Sequence[tuple[Floats, Floats]], points: int = 100) -> tuple[Floats, Floats, Floats, Floats]:
    """Return a grid (G,) that all curves cover, and on it the mean and its 95 % bootstrap interval, (G,) each.

    Where they have no stretch in common, G is 0.
    """
    start, end = max(float(x[0]) for x, _ in curves), min(float(x[-1]) for x, _ in curves)
    grid = np.linspace(start, end, points if start <= end else 0)
    values = np.array([np.interp(grid, x, y) for x, y in curves])
    drawn = values[np.random.default_rng(0).integers(len(values), size=(2000, len(values)))].mean(1)
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
    return grid, values.mean(0), low, high
