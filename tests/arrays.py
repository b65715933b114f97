"""Rollouts to test on: one generator for all kernel tests. T steps · N envs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Case:
    """The five arrays that GAE reads, each (T, N), and which rows count."""

    rewards: npt.NDArray[Any]
    values: npt.NDArray[Any]
    next_values: npt.NDArray[Any]
    terminated: npt.NDArray[np.bool_]
    done: npt.NDArray[np.bool_]
    valid: npt.NDArray[np.bool_]

    @property
    def args(self) -> tuple[Any, ...]:
        return self.rewards, self.values, self.next_values, self.terminated, self.done

    def with_(self, **arrays: Any) -> Case:
        return replace(self, **arrays)

    def steps(self, start: int, stop: int) -> Case:
        return Case(*(array[start:stop] for array in (*self.args, self.valid)))

    def envs(self, order: Any) -> Case:
        return Case(*(np.ascontiguousarray(array[:, order]) for array in (*self.args, self.valid)))


def rollout(
    num_steps: int,
    num_envs: int,
    *,
    seed: int = 0,
    p_terminated: float = 0.1,
    p_truncated: float = 0.1,
    dtype: Any = np.float32,
) -> Case:
    """Return a random rollout under next-step autoreset: the row after a done is a reset row, with reward 0."""
    rng = np.random.default_rng(seed)
    rewards = rng.normal(size=(num_steps, num_envs)).astype(dtype)
    buffer = rng.normal(size=(num_steps + 1, num_envs)).astype(dtype)
    terminated = rng.random((num_steps, num_envs)) < p_terminated
    truncated = rng.random((num_steps, num_envs)) < p_truncated  # both at once: a fall on the last allowed step
    done = terminated | truncated
    valid = np.ones((num_steps, num_envs), np.bool_)
    for t in range(1, num_steps):
        valid[t] = ~done[t - 1]
        rewards[t] = np.where(valid[t], rewards[t], 0)
        terminated[t] &= valid[t]
        done[t] &= valid[t]
    return Case(rewards, buffer[:-1], buffer[1:], terminated, done, valid)


def named_cases() -> dict[str, Case]:
    """Return the corners and the ordinary middle."""
    ordinary = rollout(64, 16)
    one_done = rollout(5, 3, p_terminated=0, p_truncated=0)
    both_ends = one_done.done.copy()
    both_ends[[0, -1]] = True
    with_nan = ordinary.rewards.copy()
    with_nan[10, 3], with_nan[20, 4] = np.nan, -np.inf
    same_step = rollout(16, 4, seed=5, p_terminated=0, p_truncated=0)
    ends = np.random.default_rng(6).random((16, 4)) < 0.2
    final_values = np.where(ends, np.float32(7), same_step.next_values)
    return {
        "ordinary": ordinary,
        "one step": rollout(1, 8, seed=1),
        "one env": rollout(33, 1, seed=2),
        "one of each": rollout(1, 1, seed=3),
        "no steps": rollout(0, 4),
        "no envs": rollout(4, 0),
        "long": rollout(2048, 2, seed=4, p_terminated=0.001, p_truncated=0.001),
        "odd width": rollout(7, 37, seed=7),  # not a multiple of any vector length
        "never done": rollout(32, 8, p_terminated=0, p_truncated=0),
        "all terminated": one_done.with_(terminated=np.ones((5, 3), np.bool_), done=np.ones((5, 3), np.bool_)),
        "all truncated": one_done.with_(done=np.ones((5, 3), np.bool_)),
        "done at both ends": one_done.with_(done=both_ends),
        "huge rewards": ordinary.with_(rewards=ordinary.rewards * np.float32(6e37)),
        "tiny rewards": ordinary.with_(rewards=ordinary.rewards * np.float32(1e-42)),  # subnormal numbers
        "nan and infinite rewards": ordinary.with_(rewards=with_nan),
        "same-step autoreset": same_step.with_(next_values=final_values, done=ends),
    }
