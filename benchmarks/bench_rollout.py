"""Collecting experience: EnvPool alone, our rollouts, Gymnasium, the reference's rollouts."""

from __future__ import annotations

from contextlib import ExitStack, closing

import numpy as np

from ppo_fast import envs
from ppo_fast.reference.ppo import PPO

from ._ceiling import Recording, ceilings
from ._limit import Work, count
from ._measure import Lane, timed
from ._training import reference_settings, rollouts
from .conftest import Bench


def test_rollout(env_id: str, bench: Bench) -> None:
    trained, recording = bench.policy(env_id), bench.recording(env_id)
    cfg, model, n = trained.trainer.cfg, trained.trainer.model, recording.num_envs
    reference = PPO(reference_settings(cfg))
    alone = ceilings(recording, bench.ceiling_steps(env_id))
    theirs = "reference rollout: Gymnasium and policy"
    lanes: dict[str, Lane] = dict(alone)
    with ExitStack() as stack:
        stack.callback(reference.envs.close)
        for actor in trained.actors():
            worker = trained.worker(actor)
            stack.enter_context(closing(worker.env))
            lanes[f"rollout, {actor} actor"] = rollouts(
                worker, trained.trainer.learner.flat, bench.iterations(env_id, cfg)
            )
        lanes[f"Gymnasium SyncVectorEnv alone, {n}"] = gymnasium_alone(recording, bench.steps(64))
        lanes[theirs] = timed(lambda: int(reference.rollout()["valid"].sum()))
        acts = Work(count(model.obs_dim, model.head_dim, model.hidden_sizes, shared_trunk=model.shared_trunk).forward)
        rows = {name: {"ceiling": tuple(alone), "reference": theirs, "work": acts} for name in lanes}
        bench.contest(f"{env_id}: collect", lanes, rows)
        bench.keep(f"{env_id}: collect", cfg)


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
