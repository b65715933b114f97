"""The algorithms that share a rollout, and which options belong to which of them."""

from __future__ import annotations

from collections.abc import Iterable

NAMES = {"ppo": "PPO", "trpo": "TRPO", "reinforce": "REINFORCE"}

_PPO, _TRPO, _REINFORCE = ("ppo",), ("trpo",), ("reinforce",)
BELONGS: dict[str, tuple[str, ...]] = {  # an option that is not here belongs to all
    "update_epochs": _PPO,
    "recompute_adv": _PPO,
    "clip_coef": _PPO,
    "clip_vloss": _PPO,
    "ent_coef": _PPO,
    "vf_coef": _PPO,
    "target_kl": _PPO,
    "adaptive_kl": _PPO,
    "precision": _PPO,
    "overlap": _PPO,  # whose ratio is of the policy that acted
    "shared_trunk": _PPO,  # the others fit the critic on its own
    "critic_epochs": _TRPO + _REINFORCE,
    "delta": _TRPO,
    "cg_steps": _TRPO,
    "cg_damping": _TRPO,
    "backtrack_steps": _TRPO,
    "backtrack_coef": _TRPO,
    "policy_lr": _REINFORCE,
    "policy_weight": _REINFORCE,
}


def foreign(algo: str) -> set[str]:
    """Return the options that do not belong to ``algo``."""
    return {option for option, owners in BELONGS.items() if algo not in owners}


def why_foreign(options: Iterable[str], algo: str) -> str:
    """Return in words which of ``options`` does not belong to ``algo``; empty if all do."""
    for option in options:
        if algo in NAMES and option in foreign(algo):
            owners = " and ".join(NAMES[owner] for owner in BELONGS[option])
            return f"{option} belongs to {owners}, and algo is {algo!r}"
    return ""
