"""Which learner a run gets: decided once, here, from ``--algo``, ``--learner``, ``--update``, device and core."""

from __future__ import annotations

import dataclasses
import logging

import torch
from torch import Tensor

from ppo_fast.algos import NAMES, foreign
from ppo_fast.config import DEFAULTS, Config
from ppo_fast.distributed import ALONE, Peers
from ppo_fast.errors import BackendError, ConfigError
from ppo_fast.learners.base import Learner
from ppo_fast.learners.graph_learner import GraphLearner
from ppo_fast.learners.native import NativeLearner, lacks
from ppo_fast.learners.ppo_base import PPOLearner
from ppo_fast.learners.reinforce import ReinforceLearner
from ppo_fast.learners.torch_learner import TorchLearner
from ppo_fast.learners.trpo import TRPOLearner
from ppo_fast.models import ActorCritic

log = logging.getLogger(__name__)


def make_learner(
    model: ActorCritic, flat: Tensor, cfg: Config, device: torch.device, peers: Peers = ALONE, *, begun_with: str = ""
) -> tuple[Learner, str]:
    """Return the learner that ``cfg.algo`` and ``cfg.learner`` mean here, and the reason where ``auto`` chose.

    Of TRPO and REINFORCE, ``cfg.learner`` says what fits the critic; the policy's step is torch's.

    Args:
        model: shapes of the networks.
        flat: (P,) initial parameters.
        cfg: the run's options.
        device: of the learner.
        peers: the processes that train together.
        begun_with: of a run that is taken up, the learner it had, with which ``auto`` goes on where it can be had.

    Raises:
        BackendError: a learner asked for by name cannot be had, the message says what lacks; or the GPU has too little
            memory.
        ConfigError: ``cfg.algo`` is not for several processes.
    """
    try:
        return _make(model, flat, cfg, device, peers, begun_with)
    except torch.cuda.OutOfMemoryError:
        free, total = (f"{size / 2**30:.1f}" for size in torch.cuda.mem_get_info(device))
        raise BackendError(
            f"the update does not fit into the memory of {device}, {free} of {total} GiB are free: take smaller "
            "num_envs, num_steps, minibatch_size or hidden_sizes, or device 'cpu'"
        ) from None


def _make(
    model: ActorCritic, flat: Tensor, cfg: Config, device: torch.device, peers: Peers, begun_with: str
) -> tuple[Learner, str]:
    if cfg.algo == "ppo":
        return _make_ppo(model, flat, cfg, device, peers, begun_with)
    if peers.size > 1:
        raise ConfigError(f"{NAMES[cfg.algo]} trains in one process, and there are {peers.size}; PPO trains in several")
    critic, why = _make_ppo(model, flat, critic_config(cfg), device, ALONE, begun_with)
    return (TRPOLearner if cfg.algo == "trpo" else ReinforceLearner)(critic, cfg), why


def critic_config(cfg: Config) -> Config:
    """Return the options under which PPO's learner, given advantages of 0, fits the critic of another algorithm."""
    own = {name: DEFAULTS[name] for name in foreign("ppo")}
    return dataclasses.replace(cfg, **own, algo="ppo", update_epochs=cfg.critic_epochs, vf_coef=1.0, ent_coef=0.0)


def _make_ppo(
    model: ActorCritic, flat: Tensor, cfg: Config, device: torch.device, peers: Peers, begun_with: str
) -> tuple[PPOLearner, str]:
    """Return PPO's learner and the reason where ``auto`` chose.

    The rule is of what was measured: on the CPU the native learner was the fastest at every size of networks and of
    minibatches (benchmarks/results/2026-11-28_calibrate). On a GPU nothing has been measured yet, so that torch on the
    device that was chosen is no claim; ``python -m ppo_fast.info --calibrate`` measures a machine.

    ``auto`` takes the native learner where it can run; torch otherwise, with a warning unless the device is no CPU, and
    where ``cfg.update`` asks for one of torch's ways by name, or ``cfg.precision`` for what only torch has.

    Raises:
        BackendError: a learner asked for by name cannot be had; the message says what lacks.
        ConfigError: ``auto`` takes torch, and threads of the native learner were asked for.
    """
    make_torch = GraphLearner if cfg.update == "graph" else TorchLearner
    if cfg.learner == "torch":
        return make_torch(model, flat, cfg, device, peers=peers), ""
    missing = lacks(model, device)
    if cfg.learner == "native":
        if missing:
            raise BackendError(f"--learner native: {missing}")
        return NativeLearner(model, flat, cfg, device, peers=peers), ""
    if cfg.update != "auto" or cfg.precision != "float32":
        return make_torch(model, flat, cfg, device, peers=peers), ""  # the banner says which way was asked for
    if not missing and begun_with != "torch":
        return NativeLearner(model, flat, cfg, device, peers=peers), "the fastest on the CPU"
    why = "as when the run was begun" if begun_with == "torch" else f"no native learner: {missing}"
    if cfg.learner_threads:
        raise ConfigError(
            f"learner_threads {cfg.learner_threads} belongs to the native learner, and --learner auto takes torch "
            f"({why}); leave it at 0, or set torch_threads"
        )
    if device.type == "cpu" and begun_with != "torch":
        log.warning("updates run on torch, the native learner cannot be had: %s", missing)
    return make_torch(model, flat, cfg, device, peers=peers), why
