"""Which learner a run gets: decided once, here, from ``--learner``, ``--update``, device and core."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from ppo_fast.config import Config
from ppo_fast.errors import BackendError
from ppo_fast.learners.native import NativeLearner, lacks
from ppo_fast.learners.ppo_base import PPOLearner
from ppo_fast.learners.torch_learner import TorchLearner
from ppo_fast.models import ActorCritic

log = logging.getLogger(__name__)


def make_learner(model: ActorCritic, flat: Tensor, cfg: Config, device: torch.device) -> tuple[PPOLearner, str]:
    """Return the learner that ``cfg.learner`` means here, and the reason where ``auto`` chose.

    ``auto`` takes the native learner where it can run; torch otherwise, with a warning unless the device is no CPU, and
    where ``cfg.update`` asks for one of torch's ways by name.

    Raises:
        BackendError: a learner asked for by name cannot be had; the message says what lacks.
    """
    if cfg.learner == "torch":
        return TorchLearner(model, flat, cfg, device), ""
    missing = lacks(model, device)
    if cfg.learner == "native":
        if missing:
            raise BackendError(f"--learner native: {missing}")
        return NativeLearner(model, flat, cfg, device), ""
    if cfg.update != "auto":
        return TorchLearner(model, flat, cfg, device), ""  # the banner says which way was asked for
    if not missing:
        return NativeLearner(model, flat, cfg, device), "the fastest on the CPU"
    if device.type == "cpu":
        log.warning("updates run on torch, the native learner cannot be had: %s", missing)
    return TorchLearner(model, flat, cfg, device), f"no native learner: {missing}"
