"""The ceiling: EnvPool alone, fed the actions of a policy. No trainer that steps the same physics can be faster.

Axes: S recorded steps · N environments · A action.
"""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray

from ppo_fast.envs import EnvSpec
from ppo_fast.envs.base import ActionRescaler
from ppo_fast.envs.envpool import default_num_threads, import_envpool
from ppo_fast.kernels import env_seeds
from ppo_fast.rollout import Worker

from ._measure import Lane, Sample

SETTLE = 4  # batches before the clock starts: what finished while the pool stood still is not counted


@dataclass(frozen=True)
class Recording:
    """What a policy did from the first reset on; the same seeds and actions make the same trajectories again."""

    spec: EnvSpec
    seed: int
    actions: NDArray[np.float32]  # (S, N, A) in policy units
    env_actions: NDArray[np.float64]  # (S, N, A) in the environment's units
    rewards: NDArray[np.float32]  # (S, N)
    valid: NDArray[np.bool_]  # (S, N)

    @property
    def num_envs(self) -> int:
        """N."""
        return self.actions.shape[1]


def record(worker: Worker, flat: torch.Tensor, steps: int) -> Recording:
    """Record at least ``steps`` steps of a worker that has not stepped yet, under the parameters ``flat``."""
    parts: dict[str, list[np.ndarray]] = {"actions": [], "rewards": [], "valid": []}
    while worker.steps_done < steps:
        rollout = worker.collect(flat)
        for name, arrays in parts.items():
            arrays.append(getattr(rollout, name).copy())
    actions, rewards, valid = (np.concatenate(arrays) for arrays in parts.values())
    rescale = ActionRescaler(worker.env.spec, worker.env.num_envs)
    env_actions = np.stack([rescale(row).astype(np.float64) for row in actions])
    return Recording(worker.env.spec, worker.seed, actions, env_actions, rewards, valid)


class EnvPoolAlone:
    """Raw send and recv of one pool, and nothing between them but looking up the next recorded action of each env.

    Args:
        recording: what to replay.
        batch_size: N steps all environments together; less is EnvPool's asynchronous mode.

    """

    def __init__(self, recording: Recording, batch_size: int) -> None:
        n, spec = recording.num_envs, recording.spec
        self.recording, self.batch_size, self.num_threads = recording, batch_size, default_num_threads(n)
        self._pool = import_envpool().make(
            spec.env_id,
            env_type="gymnasium",
            num_envs=n,
            batch_size=batch_size,
            num_threads=self.num_threads,
            seed=env_seeds(recording.seed, 0, n).tolist(),
        )
        keys = list(self._pool._state_keys)
        self._env_id, self._elapsed, self._reward = map(keys.index, ("info:env_id", "elapsed_step", "reward"))
        self._actions = recording.env_actions.reshape(-1, spec.act_dim)
        self._row = np.arange(n) - n  # of the action that each env was given last; the reset is row -1
        self._pool._reset(np.arange(n, dtype=np.int32))

    @property
    def name(self) -> str:
        """How it steps."""
        n = self.recording.num_envs
        mode = f"sync {n}" if self.batch_size == n else f"async {self.batch_size} of {n}"
        return f"EnvPool alone, {mode}, {self.num_threads} threads"

    def advance(self, batches: int) -> int:
        """Receive and answer ``batches`` batches; return the real transitions among their rows."""
        pool, row, actions, n = self._pool, self._row, self._actions, self.recording.num_envs
        env_steps = 0
        for _ in range(batches):
            state = pool._recv()
            ids = state[self._env_id]
            env_steps += np.count_nonzero(state[self._elapsed])  # 0 on reset rows
            row[ids] += n
            pool._send([ids, ids, actions.take(row[ids], axis=0)])
        return int(env_steps)

    def check(self, batches: int) -> None:
        """Assert that the first ``batches`` batches repeat the recording, whatever order the rows come in."""
        n, (steps, _) = self.recording.num_envs, self.recording.valid.shape
        for _ in range(batches):
            state = self._pool._recv()
            ids = state[self._env_id]
            seen = self._row[ids] >= 0  # not the rows of the first reset
            step, env = np.divmod(self._row[ids][seen], n)
            np.testing.assert_array_equal(state[self._elapsed][seen] > 0, self.recording.valid[step, env])
            rewards = np.where(self.recording.valid[step, env], state[self._reward][seen], 0.0)
            np.testing.assert_array_equal(rewards.astype(np.float32), self.recording.rewards[step, env])
            self._row[ids] += n
            self._pool._send([ids, ids, self._actions.take(self._row[ids], axis=0)])
        assert self._row.max() < steps * n

    def lane(self, batches: int) -> Lane:
        """Return a lane of ``batches`` batches."""

        def run() -> Sample:
            self.advance(SETTLE)
            start = perf_counter()
            env_steps = self.advance(batches)
            return Sample(env_steps, perf_counter() - start)

        return run


def ceilings(recording: Recording, steps: int) -> dict[str, Lane]:
    """Return both modes of EnvPool, checked, each lane taking about ``steps`` steps of every environment."""
    n = recording.num_envs
    lanes = {}
    for batch_size in (n, n // 2) if n > 1 else (1,):
        alone = EnvPoolAlone(recording, batch_size)
        alone.check(8 * n // batch_size)
        lanes[alone.name] = alone.lane(steps * n // batch_size)
    return lanes


def steps_needed(steps: int, lanes: int) -> int:
    """Return how long a recording has to be for ``lanes`` runs of a lane of ``steps``; fast environments run ahead."""
    return 8 + lanes * (steps + 2 * SETTLE) + max(64, steps // 4)
