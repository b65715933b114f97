"""Collecting experience: EnvPool alone, our rollouts, Gymnasium, the reference's rollouts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ppo_fast import envs
from ppo_fast.reference.ppo import PPO
from ppo_fast.rollout import RolloutWorker

from ._ceiling import Recording, ceilings
from ._measure import Lane, timed
from ._training import reference_settings
from .conftest import TASKS, Bench


@pytest.mark.parametrize("env_id", TASKS)
def test_rollout(env_id: str, bench: Bench) -> None:
    trained, recording = bench.policy(env_id), bench.recording(env_id)
    worker, reference = trained.worker(), PPO(reference_settings(trained.trainer.cfg))
    alone = ceilings(recording, bench.ceiling_steps(env_id))
    ours, theirs = "ppo_fast rollout: EnvPool + policy", "reference rollout: Gymnasium + policy"
    n = recording.num_envs
    lanes: dict[str, Lane] = {
        **alone,
        ours: timed(lambda: rollouts(worker, trained.trainer.learner.flat, bench.steps(TASKS[env_id]))),
        f"Gymnasium SyncVectorEnv alone, {n}": gymnasium_alone(recording, bench.steps(64)),
        theirs: timed(lambda: int(reference.rollout()["valid"].sum())),
    }
    try:
        above = {name: {"ceiling": tuple(alone), "reference": theirs} for name in lanes}
        bench.contest(f"{env_id}: collect", lanes, above)
        bench.keep(f"{env_id}: collect", trained.trainer.cfg)
    finally:
        worker.env.close()
        reference.envs.close()


def rollouts(worker: RolloutWorker, flat: torch.Tensor, number: int) -> int:
    return sum(worker.collect(flat).num_valid for _ in range(number))


def gymnasium_alone(recording: Recording, steps: int) -> Lane:
    """Replay the recording from its start, without a policy; the last steps of a lane go on in the next."""
    n, spec = recording.num_envs, recording.spec
    env = envs.make(spec.env_id, n, seed=recording.seed, backend="gymnasium")
    obs, rewards = np.empty((n, spec.obs_dim), np.float32), np.empty(n, np.float32)
    terminated, truncated, valid = (np.empty(n, np.bool_) for _ in range(3))
    env.reset(obs)
    actions = iter(recording.actions)

    def run() -> int:
        env_steps = 0
        for _ in range(steps):
            env.step(next(actions), obs, rewards, terminated, truncated, valid)
            env_steps += np.count_nonzero(valid)
        return env_steps

    return timed(run)
