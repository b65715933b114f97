"""The door to the C++ learner and actor: whether they can be had here, and what they are told of the networks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ppo_fast import kernels
from ppo_fast.errors import BackendError
from ppo_fast.models import ActorCritic

if TYPE_CHECKING:
    from ppo_fast import _core

ACTIVATIONS = ("tanh", "relu", "elu", "silu")  # csrc/ppo_state.hpp


def lacks(model: ActorCritic) -> str:
    """Return what keeps the core from running this model; empty if nothing does."""
    try:
        from ppo_fast import _core
    except ImportError:
        return kernels.why_not().get("cpp", "the C++ core does not load")
    if not hasattr(_core, "PpoLearner"):
        return "the C++ core was built without it, which needs GCC or Clang"
    if model.activation not in ACTIVATIONS:
        return f"it has no activation {model.activation!r}, only {', '.join(ACTIVATIONS)}"
    if len(model.hidden_sizes) > _core.MAX_HIDDEN_LAYERS:
        return f"it runs at most {_core.MAX_HIDDEN_LAYERS} hidden layers, and there are {len(model.hidden_sizes)}"
    return ""


def networks(model: ActorCritic) -> _core.Networks:
    """Return the core's description of ``model``."""
    from ppo_fast import _core

    return _core.Networks(
        obs_dim=model.obs_dim,
        act_dim=model.act_dim,
        num_actions=model.num_actions,
        hidden_sizes=list(model.hidden_sizes),
        activation=model.activation,
        shared_trunk=model.shared_trunk,
    )


def simd_level() -> str:
    """Return the SIMD level that the core runs here: the best there is, or what ``PPO_FAST_SIMD`` says.

    Raises:
        BackendError: ``PPO_FAST_SIMD`` names a level that this processor does not run.
    """
    from ppo_fast import _core

    try:
        return _core.simd_level()
    except ValueError as err:
        raise BackendError(str(err)) from None


def simd_levels() -> list[str]:
    """Return the SIMD levels that the core runs here, the best first; none where it has no actor and learner."""
    try:
        from ppo_fast import _core
    except ImportError:
        return []
    return _core.simd_levels() if hasattr(_core, "simd_levels") else []
