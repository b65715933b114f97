"""An update without a trainer: random rollouts, and learners as lanes."""

from __future__ import annotations

from time import perf_counter

import numpy as np
import torch

from ppo_fast.batch import Rollout
from ppo_fast.learners.ppo_base import PPOLearner
from ppo_fast.models import ActorCritic

from ._measure import Lane, Sample


def random_rollout(model: ActorCritic, num_steps: int, num_envs: int) -> Rollout:
    """Return a rollout whose update exercises everything but the environments."""
    rng = np.random.default_rng(1)
    rollout = Rollout.allocate(num_steps, num_envs, model.obs_dim, model.act_dim)
    for array in (rollout.norm_obs, rollout.advantages, rollout.returns, rollout.values_all):
        array[:] = rng.normal(size=array.shape)
    rollout.actions[:] = rng.normal(scale=0.6, size=rollout.actions.shape)
    rollout.log_probs[:] = -8.0
    rollout.valid[:] = rng.random(rollout.valid.shape) < 0.99
    return rollout


def fastest_update(learner: PPOLearner, flat: torch.Tensor, rollout: Rollout, repeats: int) -> Lane:
    """Return a lane of several updates, always from the same parameters, that tells the time of the fastest."""
    fresh = learner.state()

    def lane() -> Sample:
        seconds = []
        for _ in range(repeats):
            learner.flat.copy_(flat)
            learner.load(fresh)
            start = perf_counter()
            learner.update(rollout)
            seconds.append(perf_counter() - start)
        return Sample(rollout.valid.size, min(seconds), {"update": min(seconds)})

    return lane


def per_sample(samples: list[Sample], epochs: int) -> str:
    """Say what a row of the batch took in one epoch of the fastest update."""
    best = min(sample.seconds / sample.env_steps for sample in samples)
    return f"{1e6 * best / epochs:.2f} us per sample per epoch at best"
