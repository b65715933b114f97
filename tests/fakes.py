"""Environments whose every number is known, behind the same door as the real ones.

Axes: N environments · S states. Both keep the contract of :mod:`ppo_fast.envs.base` (next-step autoreset). As a hostile
simulator might, they report ``reset_row_reward`` on reset rows: the door has to zero it.
"""

from __future__ import annotations

import heapq
from abc import abstractmethod
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppo_fast.envs.base import Bool, CheckedVectorEnv, EnvSpec, Float32
from ppo_fast.envs.stream import Arrivals

TERMINATES, TRUNCATES, BOTH = "terminates", "truncates", "both"


class FakeVectorEnv(CheckedVectorEnv):
    """Bookkeeping common to the fakes: episode number and time of every environment, injected NaN, received actions.

    Attributes:
        time: (N,) int64, steps taken in the running episode.
        episode: (N,) int64, episodes begun since the first reset, minus one.
        received: the actions of every step so far, as they reached the simulator, each (N, A) float32.

    Args:
        num_envs: N.
        obs_dim: D.
        act_dim: A.
        action_range: (low, high) of every action component.
        max_episode_steps: the time limit that the spec declares.
        nan_reward_at: (index of the ``step`` call from 0, env): that reward becomes NaN.
        reset_row_reward: what the "simulator" says of a reset row.
        num_actions: discrete actions to choose from, with ``act_dim`` 1 and infinite ``action_range``.
    """

    def __init__(
        self,
        num_envs: int,
        obs_dim: int,
        act_dim: int,
        *,
        action_range: tuple[float, float] = (-1.0, 1.0),
        max_episode_steps: int | None = None,
        nan_reward_at: tuple[int, int] | None = None,
        reset_row_reward: float = -777.0,
        num_actions: int = 0,
    ) -> None:
        low, high = (np.full(act_dim, bound, np.float64) for bound in action_range)
        spec = EnvSpec(f"{type(self).__name__}-v0", "fake", obs_dim, act_dim, low, high, max_episode_steps, num_actions)
        super().__init__(spec, num_envs)
        self.env_index = np.arange(num_envs)
        self.nan_reward_at = nan_reward_at
        self.reset_row_reward = reset_row_reward
        self.steps = 0
        self.episode = np.full(num_envs, -1, np.int64)
        self.time = np.zeros(num_envs, np.int64)
        self.received: list[NDArray[np.float32]] = []
        self._was_done = np.zeros(num_envs, np.bool_)

    def _reset(self, obs: Float32) -> None:
        self.episode += 1
        self.time[:] = 0
        self._was_done[:] = False
        self._begin(np.ones(self.num_envs, np.bool_))
        self._observe(obs)

    def _step(
        self, actions: Float32, obs: Float32, rewards: Float32, terminated: Bool, truncated: Bool, valid: Bool
    ) -> None:
        self.received.append(actions.copy())
        valid[:] = ~self._was_done
        self.episode += self._was_done
        self.time = np.where(valid, self.time + 1, 0)
        self._begin(self._was_done)
        self._advance(valid)
        self._observe(obs)
        rewards[:] = np.where(valid, self._reward(), self.reset_row_reward)
        ends, cuts = self._ends()
        terminated[:] = ends & valid
        truncated[:] = cuts & valid
        if self.nan_reward_at is not None and self.nan_reward_at[0] == self.steps:
            rewards[self.nan_reward_at[1]] = np.nan
        self._was_done = terminated | truncated
        self.steps += 1

    def _close(self, *, interrupted: bool) -> None:
        pass

    def _begin(self, starting: Bool) -> None:
        """Put the environments where ``starting`` into the first state of their episode."""

    def _advance(self, moving: Bool) -> None:
        """Move the environments where ``moving`` by one transition; ``time`` has been counted."""

    @abstractmethod
    def _observe(self, obs: Float32) -> None:
        """Write the (N, D) observation."""

    @abstractmethod
    def _reward(self) -> NDArray[Any]:
        """Return the (N,) reward of the transition just taken."""

    @abstractmethod
    def _ends(self) -> tuple[Bool, Bool]:
        """Return (N,) terminated and (N,) truncated for the transition just taken."""


class CountingEnv(FakeVectorEnv):
    """Observation and reward say which environment and what time it is, so a misplaced row shows itself.

        obs    = (env, episode, time, 0, ...)
        reward = 1000 · env + time              of the transition that arrives at ``time``; exact in float32

    An episode of environment e has ``episode_lengths[e % len]`` steps. How it ends turns through ``endings`` with
    (env + episode): terminated, truncated, both.

    Args:
        num_envs: N.
        episode_lengths: steps per episode, cycled over the environments.
        endings: out of TERMINATES, TRUNCATES, BOTH, cycled.
        obs_dim: D >= 3.
        act_dim: A.
        options: of :class:`FakeVectorEnv`.
    """

    def __init__(
        self,
        num_envs: int,
        *,
        episode_lengths: Sequence[int] = (5, 3, 1, 7),
        endings: Sequence[str] = (TERMINATES, TRUNCATES, BOTH),
        obs_dim: int = 3,
        act_dim: int = 2,
        **options: Any,
    ) -> None:
        super().__init__(num_envs, obs_dim, act_dim, **options)
        self.lengths = np.resize(np.asarray(episode_lengths), num_envs)
        self.endings = np.asarray(endings)

    def episode_return(self, env: int) -> float:
        """Return the return of a whole episode of ``env``: sum of 1000 · env + t over t = 1 ... length."""
        length = int(self.lengths[env])
        return 1000.0 * env * length + length * (length + 1) / 2

    def _observe(self, obs: Float32) -> None:
        obs[:] = 0.0
        obs[:, 0], obs[:, 1], obs[:, 2] = self.env_index, self.episode, self.time

    def _reward(self) -> NDArray[Any]:
        return 1000.0 * self.env_index + self.time

    def _ends(self) -> tuple[Bool, Bool]:
        done = self.time >= self.lengths
        how = self.endings[(self.env_index + self.episode) % len(self.endings)]
        return done & (how != TRUNCATES), done & (how != TERMINATES)


class ChainEnv(FakeVectorEnv):
    """A walk along S states that no action can change, whose value function is known in closed form.

    The observation is the state, one-hot. Every transition pays ``reward``. Episode k of environment e starts in state
    (e + k) mod S. A time limit cuts episodes that the walk has not ended; it is no part of the MDP, and the observation
    does not show the time, so a value function that is right must ignore it.

    * ``terminal=False``: a ring, 0 → 1 → ... → S-1 → 0. V(s) = reward / (1 - γ) in every state.
    * ``terminal=True``: the step out of S-1 terminates, with an all-zero final observation.
      V(s) = reward · (1 - γ^(S-s)) / (1 - γ).

    Args:
        num_envs: N.
        num_states: S.
        reward: of each transition.
        time_limit: steps after which an episode is cut, None for never.
        terminal: whether the walk ends after the last state.
        act_dim: A.
        options: of :class:`FakeVectorEnv`.
    """

    def __init__(
        self,
        num_envs: int,
        *,
        num_states: int = 4,
        reward: float = 1.0,
        time_limit: int | None = 10,
        terminal: bool = False,
        act_dim: int = 1,
        **options: Any,
    ) -> None:
        super().__init__(num_envs, num_states, act_dim, max_episode_steps=time_limit, **options)
        self.reward = reward
        self.time_limit = time_limit
        self.terminal = terminal
        self.state = np.zeros(num_envs, np.int64)

    def values(self, gamma: float) -> NDArray[Any]:
        """Return V, (S,) float64, with the time limit handled as a cut and not as an end."""
        if not self.terminal:
            return np.full(self.spec.obs_dim, self.reward / (1.0 - gamma))
        to_go = np.arange(self.spec.obs_dim, 0, -1, dtype=np.float64)
        return self.reward * (1.0 - gamma**to_go) / (1.0 - gamma)

    def _begin(self, starting: Bool) -> None:
        first = (self.env_index + self.episode) % self.spec.obs_dim
        self.state[starting] = first[starting]

    def _advance(self, moving: Bool) -> None:
        self.state[moving] += 1
        if not self.terminal:
            self.state %= self.spec.obs_dim

    def _observe(self, obs: Float32) -> None:
        np.equal(self.state[:, None], np.arange(self.spec.obs_dim), out=obs, casting="unsafe")

    def _reward(self) -> NDArray[Any]:
        return np.full(self.num_envs, self.reward)

    def _ends(self) -> tuple[Bool, Bool]:
        cut = np.zeros(self.num_envs, np.bool_) if self.time_limit is None else self.time >= self.time_limit
        return self.state >= self.spec.obs_dim, cut


class WouldBlockError(Exception):
    """A ``_recv`` that EnvPool would never return from, and that no signal would interrupt."""


class MemoryEnv:
    """One environment whose observation remembers every action since the first, in order; independent of all others.

        obs    = (env, episode, time, history),    history <- history / 2 + action . (1, 2, ...)
        reward = 1000 · env + history

    Episodes have 5, 3, 1, 7 steps in turn, and are terminated and truncated in turn.

    Args:
        env: its index.
        reset_row_reward: what it says of a reset row.
    """

    def __init__(self, env: int, reset_row_reward: float = -777.0) -> None:
        self.env, self.reset_row_reward = env, reset_row_reward
        self.episode, self.time, self.history, self.over = -1, 0, 0.0, True

    def answer(self, action: NDArray[np.float64], *, reset: bool = False) -> dict[str, Any]:
        """Take one step, or a reset if ``reset`` or if the episode is over, and return a row under EnvPool's names."""
        if reset or self.over:
            self.episode, self.time, self.over, reward = self.episode + 1, 0, False, self.reset_row_reward
        else:
            self.time += 1
            self.history = self.history / 2 + float(action @ np.arange(1.0, 1.0 + action.size))
            self.over = self.time >= (5, 3, 1, 7)[(self.env + self.episode) % 4]
            reward = 1000.0 * self.env + self.history
        return {
            "info:env_id": np.int32(self.env),
            "obs": np.array([self.env, self.episode, self.time, self.history]),
            "reward": np.float32(reward),
            "done": np.bool_(self.over),
            "trunc": np.bool_(self.over and (self.env + self.episode) % 2 == 1),
            "elapsed_step": np.int32(self.time),
        }


class FakePool:
    """EnvPool's raw asynchronous interface over :class:`MemoryEnv`, with workers in simulated time.

    Actions wait in one queue, first in, first out, for one of ``num_workers``. How long a worker takes is drawn anew
    for every step; some environments are slower than others. A batch is complete when any ``batch_size`` rows are; its
    rows are in the order of completion. An action is read when its step *ends*, from the array that was sent. Between
    two calls some time passes, in which the workers go on.

    What EnvPool answers with a hang, a crash or a race raises: WouldBlockError, or AssertionError for an environment
    out of range or in flight, fewer actions than environments, or another dtype.

    Attributes:
        steps: (num_envs,) int64, how many rows of each environment were asked for, resets included.
        in_flight: environments whose last row has not been received.

    Args:
        num_envs: environments, spares included.
        batch_size: rows of a batch.
        num_workers: simulated threads.
        act_dim: A.
        seed: of delays.
    """

    _state_keys = ("info:env_id", "elapsed_step", "done", "reward", "trunc", "obs")

    def __init__(self, num_envs: int, batch_size: int, num_workers: int, *, act_dim: int = 2, seed: int = 0) -> None:
        self.batch_size, self.num_workers, self.act_dim = batch_size, num_workers, act_dim
        self.envs = [MemoryEnv(env) for env in range(num_envs)]
        self.steps = np.zeros(num_envs, np.int64)
        self._rng = np.random.default_rng(seed)
        self._slowness = self._rng.uniform(0.5, 2.0, num_envs)
        self._now = 0.0
        self._queue: deque[tuple[int, bool, NDArray[np.float64]]] = deque()
        self._working: list[tuple[float, int, bool, NDArray[np.float64]]] = []  # a heap, led by the time of completion
        self._arrived: list[dict[str, Any]] = []
        self.in_flight: set[int] = set()

    def _reset(self, env_ids: NDArray[np.int32]) -> None:
        self._take(env_ids, np.zeros((len(env_ids), self.act_dim)), reset=True)

    def _send(self, data: list[NDArray[Any]]) -> None:
        env_ids, players, actions = data
        np.testing.assert_array_equal(env_ids, players)
        self._take(env_ids, actions, reset=False)

    def _recv(self) -> list[NDArray[Any]]:
        while len(self._arrived) < self.batch_size:
            if not self._working:
                missing = self.batch_size - len(self._arrived)
                raise WouldBlockError(f"{missing} rows are missing, and no environment is in flight")
            self._complete_next()
        batch, self._arrived = self._arrived[: self.batch_size], self._arrived[self.batch_size :]
        self.in_flight -= {int(row["info:env_id"]) for row in batch}
        return [np.stack([row[key] for row in batch]) for key in self._state_keys]

    def _take(self, env_ids: NDArray[np.int32], actions: NDArray[np.float64], *, reset: bool) -> None:
        assert env_ids.dtype == np.int32
        assert actions.dtype == np.float64
        assert actions.flags.c_contiguous, "EnvPool would copy it"
        assert actions.shape == (len(env_ids), self.act_dim)
        until = self._now + self._rng.exponential(1.0)
        while self._working and self._working[0][0] <= until:
            self._complete_next()
        self._now = until
        for env, action in zip(env_ids.tolist(), actions, strict=True):  # rows are views: a later write would show
            assert 0 <= env < len(self.envs), env
            assert env not in self.in_flight, env
            self.in_flight.add(env)
            self._queue.append((env, reset, action))
            self.steps[env] += 1
        self._begin()

    def _begin(self) -> None:
        while self._queue and len(self._working) < self.num_workers:
            env, reset, action = self._queue.popleft()
            end = self._now + self._rng.exponential(self._slowness[env])
            heapq.heappush(self._working, (end, env, reset, action))

    def _complete_next(self) -> None:
        self._now, env, reset, action = heapq.heappop(self._working)
        self._arrived.append(self.envs[env].answer(action, reset=reset))
        self._begin()


class PlaybackStream:
    """A :class:`~ppo_fast.envs.StreamEnv` that answers what it was given, whatever the actions, in an order of its own.

    Attributes:
        received: (S, N, A) float64, the actions as they were sent; NaN where none was.

    Args:
        obs: (S + 1, N, D) float32 or float64; the first row is that of the reset.
        action_low, action_high: (A,) bounds.
        order: seed of the order and size of the arrivals; None: all environments together, in order.
        transitions: rewards (S, N) float32, terminated, truncated and valid (S, N) bool; by default random.
    """

    mode = "playback"

    def __init__(
        self,
        obs: NDArray[Any],
        action_low: Sequence[float],
        action_high: Sequence[float],
        *,
        order: int | None = None,
        transitions: Sequence[NDArray[Any]] | None = None,
        num_actions: int = 0,
    ) -> None:
        steps, self.num_envs, obs_dim = obs.shape
        low, high = np.asarray(action_low, np.float64), np.asarray(action_high, np.float64)
        self.spec = EnvSpec("Playback-v0", "fake", obs_dim, len(low), low, high, None, num_actions)
        rng = np.random.default_rng(0)
        rows = (steps - 1, self.num_envs)
        flags = (rng.random(rows) < 0.1, rng.random(rows) < 0.1, rng.random(rows) < 0.9)
        self.obs, self.transitions = obs, transitions or (rng.normal(size=rows).astype(np.float32), *flags)
        self.received = np.full((*rows, len(low)), np.nan)
        self._rng = None if order is None else np.random.default_rng(order)
        self._time = np.zeros(self.num_envs, np.int64)
        self._in_flight: list[int] = []

    def reset(self, obs: Float32) -> None:
        obs[:] = self.obs[0]

    def send(self, env_ids: NDArray[np.int32], actions: NDArray[np.float64]) -> None:
        assert env_ids.dtype == np.int32
        assert actions.dtype == np.float64
        assert actions.shape == (len(env_ids), self.spec.act_dim)
        assert np.isfinite(actions).all()
        assert not set(env_ids.tolist()) & set(self._in_flight)
        assert len(set(env_ids.tolist())) == len(env_ids) >= 1
        self.received[self._time[env_ids], env_ids] = actions
        self._in_flight += env_ids.tolist()

    def recv(self) -> Arrivals:
        assert self._in_flight, "EnvPool would wait for ever"
        ids = np.array(sorted(self._in_flight), np.int32)
        if self._rng is not None:
            ids = self._rng.permutation(ids)[: self._rng.integers(1, len(ids) + 1)]
        self._in_flight = [env for env in self._in_flight if env not in ids]
        time = self._time[ids]
        self._time[ids] += 1
        return Arrivals(ids, self.obs[time + 1, ids], *(column[time, ids] for column in self.transitions))

    def close(self) -> None:
        pass
