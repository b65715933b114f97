"""Which worker a run gets: decided once, here, from ``--actor``, the device and the core."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ppo_fast import envs, native
from ppo_fast.config import Config
from ppo_fast.envs.replay import EpisodeLog
from ppo_fast.errors import BackendError
from ppo_fast.models import ActorCritic
from ppo_fast.normalizers import ObsNormalizer
from ppo_fast.rollout.native_worker import NativeRolloutWorker
from ppo_fast.rollout.torch_worker import RolloutWorker
from ppo_fast.timing import PhaseTimer

logger = logging.getLogger(__name__)

Worker = RolloutWorker | NativeRolloutWorker


def choose_actor(cfg: Config, model: ActorCritic, device: torch.device) -> tuple[str, str]:
    """Return ``native`` or ``torch``, and the reason where ``auto`` chose.

    ``auto`` takes the native actor where the core can run the networks, whatever the learner's device: beside the
    simulator it answers without a call to a GPU per step, from a copy of the parameters taken once per rollout. Torch
    otherwise, with a warning.

    Raises:
        BackendError: the native actor was asked for by name and cannot be had, and the message says what lacks; or
            torch's cannot work beside the learner.
    """
    actor, why = _choose(cfg, model, device)
    if actor == "torch" and cfg.overlap == "learner" and cfg.precision == "tf32":
        raise BackendError(  # torch has one switch for the whole process
            "--overlap learner: with --precision tf32 torch's actor, which works beside the learner, would compute now "
            "in TF32 and now in float32; take --actor native, or another precision"
        )
    return actor, why


def _choose(cfg: Config, model: ActorCritic, device: torch.device) -> tuple[str, str]:
    if cfg.actor == "torch":
        return "torch", ""
    missing = native.lacks(model)
    if cfg.actor == "native":
        if missing:
            raise BackendError(f"--actor native: {missing}")
        return "native", ""
    if missing:
        logger.warning("actions come from torch, the native actor cannot be had: %s", missing)
        return "torch", f"no native actor: {missing}"
    if device.type != "cpu":
        return "native", f"on the CPU, beside the simulator, where {device} would be asked at every step"
    return "native", "the fastest on the CPU"


def make_worker(
    cfg: Config,
    actor: str,
    model: ActorCritic,
    normalizer: ObsNormalizer,
    device: torch.device,
    timer: PhaseTimer,
    *,
    purpose: int = 0,
    log: EpisodeLog | None = None,
    first_env: int = 0,
) -> Worker:
    """Make a run's environments and the worker that drives them; ``worker.env`` is the caller's to close.

    The native actor takes environments as they come back (:func:`ppo_fast.envs.make_stream`); torch gets whole batches
    in order, because the last bit of its results may depend on a row's place.

    Args:
        cfg: the run's options.
        actor: ``native`` or ``torch``.
        model, normalizer, device, timer: as the workers take them.
        purpose: separates the seeds of training, evaluation and resumed training (:func:`ppo_fast.envs.make`).
        log: what the environments have to go through first, of a run that is taken up; None for a reset.
        first_env: global index of environment 0, on which its seed and its noise depend.

    Raises:
        ConfigError, EnvError, BackendError: the environments or the actor cannot be had.
    """
    where: dict[str, Any] = {
        "seed": cfg.seed,
        "backend": cfg.env_backend,
        "num_threads": cfg.env_threads,
        "vectorization": cfg.vectorization,
        "purpose": purpose,
        "env_kwargs": cfg.env_kwargs,
        "first_env": first_env,
    }
    common: dict[str, Any] = {
        "num_steps": cfg.num_steps, "seed": cfg.seed, "timer": timer, "log": log, "first_env": first_env
    }  # fmt: skip
    if actor == "native":
        stream = envs.make_stream(cfg.env, cfg.num_envs, **where)
        with closed_on_error(stream):
            return NativeRolloutWorker(stream, model, normalizer, **common)
    env = envs.make(cfg.env, cfg.num_envs, **where)
    with closed_on_error(env):
        return RolloutWorker(env, model, normalizer, device=device, **common)


@contextmanager
def closed_on_error(env: envs.StreamEnv | envs.VectorEnv) -> Iterator[None]:
    """Close ``env`` if the body fails."""
    try:
        yield
    except BaseException:
        env.close()
        raise
