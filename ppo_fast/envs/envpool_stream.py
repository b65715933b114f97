"""EnvPool in asynchronous mode: whichever environments are ready come back, and the others go on stepping.

Axes: N environments of the caller · S spare environments · b rows of a call.

EnvPool's ``_recv`` waits for a full batch, and no signal interrupts it. A caller who takes T steps of every environment
has fewer in flight than a batch at the end of a rollout, so with enough threads it would wait for ever. Spare
environments close that: the pool holds S = batch_size - 1 more than the caller knows of, and a ``recv`` that would lack
rows sends as many of them as it lacks. With one environment of the caller in flight they are enough. All that is in
flight is then that one batch, so that no spare is in flight between two calls; the spares' rows are dropped.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppo_fast.envs.base import ActionRescaler, Float32
from ppo_fast.envs.envpool_task import PoolTask, envpool_task, import_envpool
from ppo_fast.envs.lifecycle import BUSY, F64, I32, READY, SENT
from ppo_fast.envs.replay import ReplayableEnv
from ppo_fast.envs.stream import Arrivals
from ppo_fast.errors import EnvError
from ppo_fast.kernels import env_seeds

# Seeds are consecutive from a base per run and purpose, modulo 2**31: a range that begins half-way round meets no
# environment of the run, on whatever rank, before it has 2**30 of them.
_FIRST_SPARE = 2**30

#: From how many environments per simulator thread stepping is asynchronous by default.
ENVS_PER_THREAD = 4
#: More rows than this save no time per row, and every one of a batch needs a spare.
MAX_BATCH = 64


def make_envpool_stream(
    env_id: str,
    num_envs: int,
    batch_size: int,
    *,
    seed: int,
    num_threads: int,
    first_env: int = 0,
    purpose: int = 0,
) -> EnvPoolStream:
    """Make a pool of ``num_envs + batch_size - 1`` environments and the stream that hides the last of them.

    Args:
        env_id: a task of EnvPool.
        num_envs: N >= 2.
        batch_size: rows that EnvPool gathers before it answers, 1 <= batch_size < N.
        seed: run seed; environment i gets the seed that it has in the synchronous adapter.
        num_threads: simulator threads >= 1.
        first_env: global index of environment 0.
        purpose: 0 training, 1 evaluation; separates their seeds.
    """
    task, spares = envpool_task(env_id), batch_size - 1
    seeds = [
        *env_seeds(seed, first_env, num_envs, purpose).tolist(),
        *env_seeds(seed, _FIRST_SPARE + first_env, spares, purpose).tolist(),
    ]
    pool = import_envpool().make(
        env_id,
        env_type="gymnasium",
        num_envs=num_envs + spares,
        batch_size=batch_size,
        num_threads=num_threads,
        seed=seeds,
    )
    return EnvPoolStream(task, pool, num_envs, batch_size)


class EnvPoolStream(ReplayableEnv):
    """A :class:`~ppo_fast.envs.stream.StreamEnv` on a raw asynchronous pool.

    ``valid`` is ``elapsed_step > 0``, as in the synchronous adapter. ``recv`` hands out the pool's own buffers, which
    it never uses again, or copies where it has to leave out rows of spares.

    Args:
        task: the environment, and how its arrays are converted.
        pool: with EnvPool's ``_state_keys``, ``_reset``, ``_send`` and ``_recv``, in batches of ``batch_size``, over
            environments 0 ... N + batch_size - 2, of which the first N are the caller's.
        num_envs: N.
        batch_size: rows of every ``_recv``, 1 <= batch_size < N.
    """

    def __init__(self, task: PoolTask, pool: Any, num_envs: int, batch_size: int) -> None:
        spec = task.spec
        super().__init__(spec, num_envs)
        self._task = task
        self.mode = f"asynchronous, {batch_size} of {num_envs}"
        self._pool = pool
        self._batch_size = batch_size
        self._in_flight = np.zeros(num_envs, np.bool_)
        self._unanswered = 0  # how many of the caller's environments are in flight
        self._spares = np.arange(num_envs, num_envs + batch_size - 1, dtype=np.int32)
        middle = ActionRescaler(spec, batch_size)(np.zeros((batch_size, spec.act_dim), np.float32))
        self._spare_actions = task.actions(middle)  # the pool reads it at any time: never written again
        keys = list(pool._state_keys)
        self._fields = [keys.index(key) for key in ("info:env_id", "reward", "done", "trunc", "elapsed_step")]
        self._obs_fields = [keys.index(key) for key in task.obs_keys]

    def send(self, env_ids: NDArray[np.int32], actions: NDArray[np.float64]) -> None:
        """Set environments going; see :class:`~ppo_fast.envs.stream.StreamEnv`, errors included."""
        self._require("send", READY, SENT)
        rows = env_ids.size if isinstance(env_ids, np.ndarray) else 0
        self._check("env_ids", env_ids, (max(rows, 1),), I32, written=False)
        self._check("actions", actions, (rows, self.spec.act_dim), F64, written=False)
        in_flight = self._in_flight.copy()
        try:
            in_flight[env_ids.view(np.uint32)] = True  # unsigned: a negative one would count from the end
        except IndexError:
            raise self._wrong_ids(env_ids) from None
        unanswered = int(np.count_nonzero(in_flight))
        if unanswered != self._unanswered + rows:
            raise self._wrong_ids(env_ids)
        self._check_actions(actions, env_ids)
        self._state = BUSY
        self._in_flight, self._unanswered = in_flight, unanswered
        # Copies, because EnvPool's threads read these very arrays when an environment's turn comes. They live until
        # each of the environments has been sent a later action: EnvPool counts the references.
        ids = env_ids.copy()
        self._pool._send([ids, ids, self._task.actions(actions)])
        self._state = SENT

    def recv(self) -> Arrivals:
        """Wait for a batch of EnvPool's; see :class:`~ppo_fast.envs.stream.StreamEnv`, errors included."""
        self._require("recv", SENT)
        self._state = BUSY
        arrivals = self._gather()
        self._state = SENT if self._unanswered else READY
        return arrivals

    def _reset(self, obs: Float32) -> None:
        self._replay_reset(np.arange(self.num_envs, dtype=np.int32), obs)

    def _replay_reset(self, env_ids: NDArray[np.int32], obs: Float32) -> None:
        self._pool._reset(env_ids)
        self._gather_all(env_ids, obs)

    def _replay_step(self, env_ids: NDArray[np.int32], actions: NDArray[np.float64], obs: Float32) -> None:
        self._pool._send([env_ids, env_ids, self._task.actions(actions)])
        self._gather_all(env_ids, obs)

    def _gather_all(self, env_ids: NDArray[np.int32], obs: Float32) -> None:
        """Wait for ``env_ids`` (b,), all that is in flight, and write their rows of ``obs``."""
        self._in_flight[env_ids] = True
        self._unanswered = env_ids.size
        while self._unanswered:
            arrivals = self._gather()
            obs[arrivals.env_ids] = arrivals.obs  # rounded to float32, as by the synchronous adapter

    def _gather(self) -> Arrivals:
        """Return the next rows of the caller's environments, of which at least one is in flight."""
        lacking = self._batch_size - self._unanswered
        if lacking > 0:
            # Whichever of them was never reset answers with its reset row, which serves as well.
            spares = self._spares[:lacking]
            self._pool._send([spares, spares, self._spare_actions[:lacking]])
        state = self._pool._recv()
        rows = [self._task.obs([state[field] for field in self._obs_fields])]
        rows += [state[field] for field in self._fields]
        if lacking > 0:
            own = rows[1] < self.num_envs
            rows = [array[own] for array in rows]
        obs, env_ids, rewards, done, truncated, elapsed_step = rows
        self._in_flight[env_ids] = False
        self._unanswered -= env_ids.size
        valid = elapsed_step > 0
        if np.count_nonzero(valid) < valid.size:
            rewards[~valid] = 0.0  # whatever the simulator says of a step it did not take
        return Arrivals(env_ids, obs, rewards, done > truncated, truncated, valid)

    def _wrong_ids(self, env_ids: NDArray[np.int32]) -> EnvError:
        outside = env_ids[(env_ids < 0) | (env_ids >= self.num_envs)].tolist()
        if outside:
            return EnvError(f"{self._name()}: env_ids must be in 0 ... {self.num_envs - 1}, got {outside}")
        flying = env_ids[self._in_flight[env_ids]].tolist()
        if flying:
            return EnvError(f"{self._name()}: environments {flying} are in flight: recv() must return them first")
        ids, counts = np.unique(env_ids, return_counts=True)
        return EnvError(f"{self._name()}: env_ids names environments {ids[counts > 1].tolist()} more than once")

    def _close(self, *, interrupted: bool) -> None:
        self._pool = None  # EnvPool's own close() stops no thread; freeing the pool does, also with actions unanswered


def default_batch_size(num_envs: int, num_threads: int) -> int:
    """Return how many rows to gather per batch; ``num_envs`` itself where the synchronous adapter is better.

    Half of the environments, or fewer, so that the others keep the threads busy meanwhile. With few environments per
    thread there is too little left in flight for that.
    """
    return min(num_envs // 2, MAX_BATCH) if num_envs >= ENVS_PER_THREAD * num_threads else num_envs
