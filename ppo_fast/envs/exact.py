"""Whether a run's environments can be taken up exactly where they were, and proof by a small experiment."""

from __future__ import annotations

from contextlib import closing

import numpy as np

from ppo_fast import envs
from ppo_fast.envs.base import CheckedVectorEnv, Float32
from ppo_fast.envs.replay import EpisodeLog, ReplayableEnv
from ppo_fast.errors import EnvError

#: A log that could become larger is not kept. Ant-v5 takes up to 32 KB an environment, Humanoid-v5 68 KB.
MAX_LOG_BYTES = 512 * 2**20

_ENVS, _STEPS, _MORE = 3, 24, 8


def why_not_exact(spec: envs.EnvSpec, num_envs: int) -> str:
    """Return why a resumed run of ``num_envs`` of ``spec`` would start new episodes; empty if it goes on exactly.

    EnvPool's environments are replayed (:mod:`ppo_fast.envs.replay`), if an experiment of some hundredths of a second
    shows that this one can be.
    """
    if spec.backend != "envpool":
        return f"{'Gymnasium' if spec.backend == 'gymnasium' else spec.backend}'s environments cannot be replayed"
    if spec.max_episode_steps is None:
        return f"an episode of {spec.env_id} has no time limit, so the log of its actions would have none"
    log_bytes = (spec.max_episode_steps + 1) * num_envs * spec.act_dim * 4
    if log_bytes > MAX_LOG_BYTES:
        return (
            f"the log of {num_envs} episodes of {spec.env_id} could take {log_bytes / 2**20:.0f} MiB, more than "
            f"{MAX_LOG_BYTES / 2**20:.0f}"
        )
    unlogged = 0 if spec.env_id in envs.ENVPOOL_TASKS else spec.max_episode_steps
    return (
        ""
        if replays_exactly(spec.env_id, unlogged)
        else f"a replay of {spec.env_id} did not give the same observations"
    )


def replays_exactly(env_id: str, unlogged: int = 0) -> bool:
    """Step a few environments at random, replay them in new ones, step both on, and compare every bit.

    Args:
        env_id: a task of EnvPool.
        unlogged: steps before the last reset, which a replay leaves out: they must neither draw random numbers nor
            leave anything behind. The tests say so of :data:`~ppo_fast.envs.ENVPOOL_TASKS`.
    """
    with closing(_make(env_id)) as first, closing(_make(env_id)) as second:
        if not isinstance(first, ReplayableEnv) or not isinstance(second, ReplayableEnv):
            raise EnvError(f"{env_id}: no adapter that could be replayed")
        log = EpisodeLog(_ENVS, first.spec.act_dim)
        rng = np.random.default_rng(0)
        obs, replayed = (np.zeros((_ENVS, first.spec.obs_dim), np.float32) for _ in range(2))
        first.reset(obs)
        for actions in _random_actions(rng, first.spec, unlogged):
            log.resets += ~_step(first, actions, obs)[1]
        first.reset(obs)  # which draws from where the others left the random streams
        log.resets += 1
        actions = _random_actions(rng, first.spec, _STEPS + _MORE)
        valid = np.zeros((_STEPS, _ENVS), np.bool_)
        for t in range(_STEPS):
            valid[t] = _step(first, actions[t], obs)[1]
        log.add(actions[:_STEPS], valid)
        second.replay(log, replayed)
        if obs.tobytes() != replayed.tobytes():
            return False
        for t in range(_STEPS, _STEPS + _MORE):
            rewards, other = _step(first, actions[t], obs)[0], _step(second, actions[t], replayed)[0]
            if obs.tobytes() != replayed.tobytes() or rewards.tobytes() != other.tobytes():
                return False
    return True


def _random_actions(rng: np.random.Generator, spec: envs.EnvSpec, steps: int) -> Float32:
    shape = (steps, _ENVS, spec.act_dim)
    if spec.num_actions:
        return rng.integers(spec.num_actions, size=shape).astype(np.float32)
    return rng.uniform(-1.2, 1.2, shape).astype(np.float32)


def _make(env_id: str) -> CheckedVectorEnv:
    return envs.make(env_id, _ENVS, seed=0, backend="envpool", num_threads=1)


def _step(env: CheckedVectorEnv, actions: Float32, obs: Float32) -> tuple[Float32, np.ndarray]:
    rewards = np.zeros(_ENVS, np.float32)
    terminated, truncated, valid = (np.zeros(_ENVS, np.bool_) for _ in range(3))
    env.step(actions, obs, rewards, terminated, truncated, valid)
    return rewards, valid
