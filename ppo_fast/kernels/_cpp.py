"""The kernels in C++ (csrc/), or the true reason why they are missing.

The natural ImportError of a missing extension misleads ("cannot import name '_core' ... circular import"), so setup.py
leaves what happened in ``_build_info.json``.
"""

from __future__ import annotations

import json
from pathlib import Path

from ..errors import BackendError

__all__ = ["gae_into", "gather_into", "moments_into", "normals_into", "permutation_into", "uniforms_into"]


def _reason(err: ImportError) -> str:
    """Say why the compiled core does not load."""
    try:
        info = json.loads((Path(__file__).parents[1] / "_build_info.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return f"ppo_fast was not installed by its setup.py, so the C++ core was never built ({err})"
    if not info["built"]:
        return f"the C++ core was not built: {info['error']}"
    return f"the C++ core was built (by {info['compiler']} {info['compiler_version']}) but does not load: {err}"


try:
    from .._core import gae_into, gather_into, moments_into, normals_into, permutation_into, uniforms_into
except ImportError as err:
    raise BackendError(_reason(err)) from err
