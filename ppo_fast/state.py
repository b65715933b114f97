"""What a run is made of between two iterations, as the named tensors of a checkpoint.

Axes: P parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from ppo_fast.config import Config
from ppo_fast.envs.base import EnvSpec
from ppo_fast.errors import ConfigError
from ppo_fast.models import ActorCritic
from ppo_fast.normalizers import ObsNormalizer

_NORMALIZER = "obs_normalizer"


@dataclass
class TrainState:
    """Counters and marks of a run, all of which a checkpoint keeps; each is a JSON value."""

    env_steps: int = 0  # real transitions, warm-up included, reset rows excluded
    iteration: int = 0  # rollouts that were learned from
    wall_s: float = 0.0  # since the first env step, compilation and checkpoints included, evaluation excluded
    worker_steps: int = 0  # steps per environment: half of the action noise's key
    env_purpose: int = 0  # of the environments' seeds: another one since episodes had to be started anew
    evaluated_at: int = 0  # env_steps of the last evaluation and the last checkpoint that were due
    saved_at: int = 0
    best_return: float | None = None  # mean of the best evaluation so far, and its env_steps
    best_step: int | None = None
    rollbacks: int = 0  # from NaN to an earlier checkpoint; each halves lr_scale
    lr_scale: float = 1.0

    def mark_best(self, mean_return: float) -> bool:
        """Remember an evaluation at this step if it is the best so far; return whether it is."""
        if self.best_return is not None and mean_return <= self.best_return:
            return False
        self.best_return, self.best_step = mean_return, self.env_steps
        return True


def make_model(cfg: Config, spec: EnvSpec) -> ActorCritic:
    """Return the shapes of the networks that ``cfg`` asks for in the environment ``spec``.

    Raises:
        ConfigError: ``cfg`` gives an initial σ to a policy that has none.
    """
    if spec.num_actions and cfg.log_std_init != Config.log_std_init:
        raise ConfigError(
            f"log_std_init belongs to continuous actions, and {spec.env_id} has {spec.num_actions} discrete ones; "
            f"leave it at {Config.log_std_init}"
        )
    return ActorCritic(
        spec.obs_dim,
        spec.act_dim,
        cfg.hidden_sizes,
        cfg.activation,
        shared_trunk=cfg.shared_trunk,
        num_actions=spec.num_actions,
    )


def pack(**parts: Mapping[str, Tensor | NDArray[Any]]) -> dict[str, Tensor]:
    """Return copies of the named arrays of each part as ``part.name`` -> tensor on the CPU."""
    return {
        f"{part}.{name}": torch.as_tensor(array).detach().cpu().clone()
        for part, arrays in parts.items()
        for name, array in arrays.items()
    }


def unpack(tensors: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    """Return the tensors of one part by name; inverts :func:`pack`."""
    return {name.removeprefix(f"{part}."): t for name, t in tensors.items() if name.startswith(f"{part}.")}


def unpack_arrays(tensors: Mapping[str, Tensor], part: str) -> dict[str, NDArray[Any]]:
    """Return the arrays of one part by name; inverts :func:`pack`."""
    return {name: tensor.numpy() for name, tensor in unpack(tensors, part).items()}


def pack_policy(model: ActorCritic, flat: Tensor, normalizer: ObsNormalizer) -> dict[str, Tensor]:
    """Return everything that acting needs: parameters by their own names, and the observation normaliser."""
    parameters = {name: tensor.clone() for name, tensor in model.unflatten(flat.detach().cpu()).items()}
    return {**parameters, **pack(**{_NORMALIZER: normalizer.moments.state()})}


def unpack_policy(tensors: Mapping[str, Tensor], model: ActorCritic, normalizer: ObsNormalizer) -> Tensor:
    """Load ``normalizer``, freeze it, and return the flat parameters (P,); inverts :func:`pack_policy`.

    Raises:
        ShapeError, KeyError, ValueError: the tensors are not those of ``model``.
    """
    normalizer.moments.load(unpack_arrays(tensors, _NORMALIZER))
    normalizer.freeze()
    return model.flatten({name: t for name, t in tensors.items() if not name.startswith(f"{_NORMALIZER}.")})
