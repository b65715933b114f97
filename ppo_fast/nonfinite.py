"""``nonfinite.json``: where NaN or infinity was found, and the range of every array of rollout and networks."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppo_fast import files
from ppo_fast.batch import Rollout
from ppo_fast.errors import NonFiniteError

log = logging.getLogger(__name__)


def write_report(path: Path, err: NonFiniteError, state: Any, rollout: Rollout, parameters: Mapping[str, Any]) -> None:
    """Write what was found, when and where; a failure is logged, because the error itself is what matters.

    Args:
        path: the file.
        err: what was found, and its places.
        state: the run's counters.
        rollout: the one in which it was found.
        parameters: of the networks, by name.
    """
    names = ("obs", "norm_obs", "actions", "log_probs", "rewards", "values_all", "advantages", "returns")
    report = {
        "error": str(err),
        "steps": sorted({step for step, _ in err.places}),
        "env_ids": sorted({env for _, env in err.places}),
        "state": vars(state),
        "arrays": {name: _describe(getattr(rollout, name)) for name in names},
        "parameters": {name: _describe(np.asarray(array)) for name, array in parameters.items()},
    }
    try:
        files.write_atomic(path, files.to_json(report))
    except OSError as failure:
        log.warning("%s could not be written: %s", path.name, failure.strerror)


def _describe(array: NDArray[Any]) -> dict[str, Any]:
    finite = array[np.isfinite(array)]
    return {
        "shape": list(array.shape),
        "non_finite": int(array.size - finite.size),
        "min": float(finite.min()) if finite.size else None,
        "max": float(finite.max()) if finite.size else None,
    }
