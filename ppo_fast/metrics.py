"""Numbers about a rollout that are for people to read."""

from __future__ import annotations

import numpy as np

from ppo_fast.batch import Rollout


def explained_variance(rollout: Rollout) -> float | None:
    """Return ``1 − Var(R − V) / Var(R)`` over the valid rows; None where the returns do not vary."""
    returns = rollout.returns[rollout.valid].astype(np.float64)
    values = rollout.values[rollout.valid].astype(np.float64)
    variance = returns.var() if returns.size else 0.0
    return float(1.0 - (returns - values).var() / variance) if variance > 0 else None
