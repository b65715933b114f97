"""The specification: short, plain NumPy that a student can read, and that every fast path must equal.

Nothing here is tuned. The PPO losses and a whole plain trainer live in ``reference.losses`` and ``reference.ppo``, for
which torch is needed, so they are not imported with the package; ``python -m ppo_fast.reference`` runs them.
"""

from __future__ import annotations

from .advantage import gae, gae_from_definition
from .moments import update_moments
from .rng import env_seeds, inverse_normal_cdf, normals, philox4x32, uniforms
from .shuffle import permutation, stream_id

__all__ = [
    "env_seeds",
    "gae",
    "gae_from_definition",
    "inverse_normal_cdf",
    "normals",
    "permutation",
    "philox4x32",
    "stream_id",
    "uniforms",
    "update_moments",
]
