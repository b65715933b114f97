"""Which observation and action spaces can be had, and how an observation of several parts becomes one vector.

Axes: N environments · D = obs_dim.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ppo_fast.envs.base import EnvSpec
from ppo_fast.envs.lifecycle import F32, F64
from ppo_fast.errors import EnvError

#: A matrix of more numbers is taken for an image.
MAX_MATRIX = 4096
#: One policy over all combinations of a MultiDiscrete space has as many logits.
MAX_COMBINATIONS = 4096

_ALLOWED = {
    "observation": f"a Box of float32 or float64 (of more than one dimension: up to {MAX_MATRIX} numbers, which are "
    "flattened) or a Dict of such Boxes: no images, text or discrete values",
    "action": "a one-dimensional Box of float32 or float64, Discrete, or a one-dimensional MultiDiscrete from 0 with "
    f"up to {MAX_COMBINATIONS} combinations",
}


class Part(NamedTuple):
    """One Box of an observation: where it is in the Dict (empty where the observation is the Box), and its shape."""

    path: tuple[str, ...]
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """How many numbers of the vector it takes."""
        return math.prod(self.shape)


def parts_of(space: Any) -> list[Part] | None:
    """Return the Boxes of an observation space in the order of the vector: by name, alphabetically, at every level.

    Each is flattened row by row. None if the space is not supported.
    """
    parts = _parts(space, ())
    if not parts or any(p.size == 0 or (len(p.shape) > 1 and p.size > MAX_MATRIX) for p in parts):
        return None
    return parts


def spec_from_spaces(
    env_id: str,
    backend: str,
    observation_space: Any,
    action_space: Any,
    max_episode_steps: int | None,
    env_kwargs: Mapping[str, Any] | None = None,
) -> EnvSpec:
    """Describe an environment by its Gymnasium spaces.

    Bounds are rounded to float32 first, the type in which Gymnasium keeps them, so that both backends rescale alike.

    Raises:
        EnvError: a space is not supported.
    """
    parts = parts_of(observation_space)
    if parts is None:
        raise _refused(env_id, "observation", observation_space)
    num_actions, choices = count_actions(action_space)
    if not num_actions and not _is_float_vector(action_space):
        raise _refused(env_id, "action", action_space)
    bounds = (np.array([-np.inf]), np.array([np.inf])) if num_actions else (action_space.low, action_space.high)
    with np.errstate(over="ignore"):  # the largest float64 is some environment's word for infinity
        low, high = (np.asarray(bound).astype(np.float32).astype(np.float64) for bound in bounds)
    low.setflags(write=False)
    high.setflags(write=False)
    return EnvSpec(
        env_id,
        backend,
        sum(part.size for part in parts),
        len(low),
        low,
        high,
        max_episode_steps,
        num_actions=num_actions,
        first_action=int(action_space.start) if num_actions and not choices else 0,
        env_kwargs=dict(env_kwargs or {}),
        obs_layout=_layout(parts),
        choices=choices,
    )


def write_flat(parts: list[Part], tree: Any, obs: NDArray[np.float32]) -> None:
    """Write the observations ``tree``, as Gymnasium batches those of N environments, into ``obs`` (N, D) float32."""
    end = 0
    for part in parts:
        leaf = tree
        for name in part.path:
            leaf = leaf[name]
        begin, end = end, end + part.size
        np.copyto(obs[:, begin:end], leaf.reshape(len(obs), part.size), casting="same_kind")


def _parts(space: Any, path: tuple[str, ...]) -> list[Part] | None:
    from gymnasium.spaces import Box, Dict

    if isinstance(space, Box) and space.dtype in (F32, F64):
        return [Part(path, tuple(space.shape))]
    if not isinstance(space, Dict):
        return None
    below = [_parts(space[name], (*path, name)) for name in sorted(space.spaces)]
    return None if any(parts is None for parts in below) else [part for parts in below for part in parts or []]


def _layout(parts: list[Part]) -> str:
    if not parts[0].path:
        shape = parts[0].shape
        return "" if len(shape) == 1 else " x ".join(map(str, shape)) or "1"
    return ", ".join(f"{'.'.join(part.path)} {part.size}" for part in parts)


def _refused(env_id: str, role: str, space: Any) -> EnvError:
    shown = " ".join(str(space).split())
    shown = shown if len(shown) <= 200 else f"{shown[:200]}..."
    return EnvError(f"{env_id}: its {role} space {shown} is not supported; allowed is {_ALLOWED[role]}")


def _is_float_vector(space: Any) -> bool:
    from gymnasium.spaces import Box

    return isinstance(space, Box) and len(space.shape) == 1 and space.shape[0] > 0 and space.dtype in (F32, F64)


def count_actions(space: Any) -> tuple[int, tuple[int, ...]]:
    """Return K of a discrete action space, and K_1, ..., K_C of a MultiDiscrete one; (0, ()) of one not supported."""
    from gymnasium.spaces import Discrete, MultiDiscrete

    if isinstance(space, Discrete) and space.n <= 2**24:  # as many indices as float32 tells apart
        return int(space.n), ()
    if isinstance(space, MultiDiscrete) and space.nvec.ndim == 1 and space.nvec.size and not space.start.any():
        choices = tuple(space.nvec.tolist())
        if (combinations := math.prod(choices)) <= MAX_COMBINATIONS:
            return combinations, choices
    return 0, ()
