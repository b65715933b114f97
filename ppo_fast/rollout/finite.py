"""Find NaN or infinity in a rollout before it can reach a statistic."""

from __future__ import annotations

import numpy as np

from ppo_fast.batch import Rollout
from ppo_fast.errors import NonFiniteError


def check_finite(buf: Rollout, steps_done: int) -> None:
    """Raise unless the rewards of valid rows and all observations are finite.

    Args:
        buf: (T, N) rows, the last at step ``steps_done - 1`` of every environment.
        steps_done: steps per environment since the run began, this rollout included.

    Raises:
        NonFiniteError: they are not; the message names steps and environments.
    """
    if np.isfinite(buf.rewards.sum(dtype=np.float64)) and np.isfinite(buf.obs.sum(dtype=np.float64)):
        return
    for name, bad in (
        ("rewards", ~np.isfinite(buf.rewards) & buf.valid),
        ("first obs", ~np.isfinite(buf.obs[:1]).all(-1)),  # from reset(); later ones have been row T before
        ("obs", ~np.isfinite(buf.obs[1:]).all(-1)),
    ):
        where = np.argwhere(bad)
        if len(where):
            first = steps_done - len(buf.rewards)
            raise _error(name, [(first + row[0], buf.first_env + row[1]) for row in where.tolist()])


def check_advantages(buf: Rollout, steps_done: int) -> None:
    """Raise unless values, log-probabilities, advantages and returns of valid rows are finite; as :func:`check_finite`.

    Raises:
        NonFiniteError: they are not; the message names steps and environments.
    """
    for name in ("values", "log_probs", "advantages", "returns"):
        array = getattr(buf, name)
        if np.isfinite(array.sum(dtype=np.float64)):
            continue
        where = np.argwhere(~np.isfinite(array) & buf.valid)
        if len(where):
            first = steps_done - len(buf.rewards)
            raise _error(name, [(first + row[0], buf.first_env + row[1]) for row in where.tolist()])


def _error(name: str, places: list[tuple[int, int]]) -> NonFiniteError:
    shown = ", ".join(f"(step {step}, env {env})" for step, env in places[:5])
    return NonFiniteError(f"{name} has {len(places)} non-finite rows, the first at {shown}", places)
