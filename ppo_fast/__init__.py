"""ppo_fast: fast, checked PPO for vectorised MuJoCo.

Public names load on first use, so that ``import ppo_fast`` imports neither torch nor a simulator.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "Callback": "ppo_fast.sinks",
    "Config": "ppo_fast.config",
    "resolve": "ppo_fast.presets",
    "Trainer": "ppo_fast.trainer",
    "RunResult": "ppo_fast.trainer",
    "Policy": "ppo_fast.evaluation",
    "EpisodeStats": "ppo_fast.evaluation",
    "evaluate": "ppo_fast.evaluation",
    "load_policy": "ppo_fast.evaluation",
    "build_info": "ppo_fast.system",
}
_MODULES = ("kernels", "reference")

__all__ = ["Callback", "Config", "EpisodeStats", "Policy", "RunResult", "Trainer", "build_info", "evaluate", "kernels",
           "load_policy", "reference", "resolve"]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"ppo_fast.{name}")
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'ppo_fast' has no attribute {name!r}")
