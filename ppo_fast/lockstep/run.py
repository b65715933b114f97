"""Drive the reference through a few iterations, with the fast path beside it at every stage."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ppo_fast import envs
from ppo_fast.config import Config
from ppo_fast.envs import EnvSpec
from ppo_fast.errors import ConfigError, EnvError
from ppo_fast.lockstep.actors import make_actors
from ppo_fast.lockstep.environments import Environments
from ppo_fast.lockstep.learners import Learners
from ppo_fast.lockstep.numerics import make_backends
from ppo_fast.lockstep.report import Report
from ppo_fast.lockstep.rules import MIN_BATCHES
from ppo_fast.lockstep.teacher import Teacher
from ppo_fast.reference.ppo import Settings
from ppo_fast.state import make_model

# With these some ratios are clipped within a few iterations, some gradients are not, and the entropy has a gradient.
LEARNING_RATE, MAX_GRAD_NORM, ENT_COEF = 1e-3, 1.0, 0.01


def make_config(iterations: int, **options: Any) -> Config:
    """Return the options of a run in lock-step: passes enough for twice the minibatches that the 2x rule pools.

    Args:
        iterations: K >= 1.
        options: fields of ``Config``.

    Raises:
        ConfigError: a number is not allowed, or the rollouts have too few steps to be pooled.
    """
    if iterations < 1:
        raise ConfigError(f"iterations must be at least 1, got {iterations}")
    options = {
        "learning_rate": LEARNING_RATE,
        "max_grad_norm": MAX_GRAD_NORM,
        "ent_coef": ENT_COEF,
        "device": "cpu",
        "env_backend": "gymnasium",
        **options,
    }
    cfg = Config(total_timesteps=2**62, **options)
    if cfg.num_steps * (iterations + 1) < MIN_BATCHES:
        raise ConfigError(
            f"num_steps must be at least {math.ceil(MIN_BATCHES / (iterations + 1))} with {iterations} iterations, "
            f"because the 2x rule pools {MIN_BATCHES} steps or more, got {cfg.num_steps}"
        )
    return dataclasses.replace(
        cfg,
        total_timesteps=2 * (iterations + 1) * cfg.batch_size,  # the learning rate falls to half
        update_epochs=max(4, math.ceil(2 * MIN_BATCHES / (iterations * cfg.num_minibatches))),
    )


def run(cfg: Config, iterations: int, tell: Callable[[str], None] = lambda _: None) -> Report:
    """Train ``iterations`` times with the reference, and compare the fast path with it at every stage.

    Nothing is compared after many steps of its own: each stage of the fast path begins from what the reference had.

    Args:
        cfg: what :func:`make_config` returned.
        iterations: rollouts that are learned from, after the one that warms up the statistics.
        tell: is told what is being done.

    Raises:
        ConfigError, EnvError: the environment cannot be had, or the reference cannot act in it.
    """
    spec = envs.spec(cfg.env, "gymnasium")
    _require_bounded(spec)
    model = make_model(cfg, spec)
    ppo = Teacher(Settings(**{field.name: getattr(cfg, field.name) for field in dataclasses.fields(Settings)}))
    environments = Environments(cfg)
    try:
        tell("making actors and learners")
        kernel_group, backends = make_backends(cfg, spec.obs_dim)
        actor_group, actors = make_actors(ppo, model, spec, cfg)
        learners = Learners(ppo, model, dataclasses.replace(cfg, update_epochs=1))
        ppo.watchers = [environments, *backends, *actors, learners]
        tell("warming up")
        ppo.warm_up()
        for iteration in range(iterations):
            tell(f"iteration {iteration + 1} of {iterations}")
            batch = ppo.rollout()
            ppo.judge(batch)
            ppo.learn(batch)
    finally:
        ppo.envs.close()
        environments.close()
    reported = next(iter(learners.metrics.values()))
    return Report(
        [environments.group, kernel_group, actor_group, learners.group],
        transitions=ppo.env_steps,
        resets=(iterations + 1) * cfg.batch_size - ppo.env_steps,
        minibatches=len(reported),
        clipped_ratios=float(np.mean([metrics["clip_frac"] for metrics in reported])),
        clipped_gradients=float(np.mean([metrics["grad_norm"] > cfg.max_grad_norm for metrics in reported])),
    )


def _require_bounded(spec: EnvSpec) -> None:
    """Raise EnvError where the reference would stretch actions to infinity, or gets no vector to observe."""
    if spec.obs_layout:
        raise EnvError(f"{spec.env_id}: the reference trainer takes no observation that has to be flattened")
    if not spec.num_actions and not np.isfinite([spec.action_low, spec.action_high]).all():
        raise EnvError(f"{spec.env_id}: the reference trainer needs an action space with finite bounds")
