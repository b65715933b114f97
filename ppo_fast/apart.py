"""What an environment's own process does first; a module of its own, so that such a process imports little."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any


def make_apart(make: Callable[[], Any], trainer: int) -> Any:
    """Leave the process group of the trainer, then make an environment.

    Ctrl-C and a scheduler's signal reach a whole group, and the trainer needs its environments to end the rollout that
    it saves after. They end with it all the same: when its end of their pipes is closed.

    Args:
        make: makes the environment.
        trainer: the process that stays where it is, for Gymnasium makes one there too, to see its spaces.
    """
    if os.getpid() != trainer and hasattr(os, "setpgid"):  # not on Windows
        os.setpgid(0, 0)
    return make()
