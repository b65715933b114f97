"""Numbers about a rollout that are for people to read."""

from __future__ import annotations

import numpy as np

from ppo_fast.batch import Rollout
from ppo_fast.distributed import ALONE, Peers
from ppo_fast.normalizers import Moments


def explained_variance(rollout: Rollout, peers: Peers = ALONE) -> float | None:
    """Return ``1 − Var(R − V) / Var(R)`` over the valid rows of all processes; None where the returns do not vary."""
    if peers.size > 1:
        moments = Moments(2)
        both = np.stack([rollout.returns, rollout.returns.astype(np.float64) - rollout.values], -1).reshape(-1, 2)
        moments.update(both, rollout.valid.reshape(-1), peers)
        of_returns, left = moments.m2.tolist()
        return 1.0 - left / of_returns if of_returns > 0 else None
    returns = rollout.returns[rollout.valid].astype(np.float64)
    values = rollout.values[rollout.valid].astype(np.float64)
    variance = returns.var() if returns.size else 0.0
    return float(1.0 - (returns - values).var() / variance) if variance > 0 else None
