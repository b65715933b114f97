"""The contract of :mod:`ppo_fast.envs.base`, held against every adapter and the fakes by one suite.

Axes: T steps · N environments · D observation · A action.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import fakes
import numpy as np
import pytest
from numpy.typing import NDArray

from ppo_fast import envs
from ppo_fast.envs.base import EnvSpec, VectorEnv
from ppo_fast.errors import EnvError, NonFiniteError, ShapeError

STEPS = 130  # past two time limits of Reacher, past many falls of Hopper
OUTPUTS = ("obs", "rewards", "terminated", "truncated", "valid")


@dataclass(frozen=True)
class Case:
    """An adapter under test: how to make it, how many environments, and whether its seed means anything."""

    name: str
    make: Callable[..., VectorEnv]
    num_envs: int
    seeded: bool = True


def adapter(env_id: str, num_envs: int, **options: Any) -> Callable[..., VectorEnv]:
    def make(*, num_envs: int = num_envs, seed: int = 1, **more: Any) -> VectorEnv:
        return envs.make(env_id, num_envs, seed=seed, **options, **more)

    return make


CASES = [
    Case("envpool-hopper", adapter("Hopper-v5", 3, backend="envpool", num_threads=2), 3),
    Case("envpool-reacher", adapter("Reacher-v5", 3, backend="envpool", num_threads=2), 3),
    Case("gymnasium-hopper", adapter("Hopper-v5", 3, backend="gymnasium"), 3),
    Case("gymnasium-reacher", adapter("Reacher-v5", 3, backend="gymnasium"), 3),
    Case("gymnasium-cartpole", adapter("CartPole-v1", 3), 3),
    Case("async-hopper", adapter("Hopper-v5", 2, backend="gymnasium", vectorization="async"), 2),
    Case("async-reacher", adapter("Reacher-v5", 2, backend="gymnasium", vectorization="async"), 2),
    Case("async-cartpole", adapter("CartPole-v1", 2, vectorization="async"), 2),
    Case("fake-counting", lambda *, num_envs=4, **_: fakes.CountingEnv(num_envs), 4, seeded=False),
    Case("fake-ring", lambda *, num_envs=3, **_: fakes.ChainEnv(num_envs, time_limit=4), 3, seeded=False),
    Case("fake-chain", lambda *, num_envs=3, **_: fakes.ChainEnv(num_envs, terminal=True), 3, seeded=False),
]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param  # type: ignore[no-any-return]


@dataclass
class Record:
    """What an adapter answered: ``first`` (N, D), then time-stacked outputs as in the contract."""

    spec: EnvSpec
    first: NDArray[np.float32]
    actions: NDArray[np.float32]
    obs: NDArray[np.float32]
    rewards: NDArray[np.float32]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    valid: NDArray[np.bool_]

    @property
    def done(self) -> NDArray[np.bool_]:
        return self.terminated | self.truncated


def outputs(env: VectorEnv, num_steps: int, poison: bool) -> dict[str, NDArray[Any]]:
    """Return (T, N, ...) arrays full of NaN and of ``poison``: whatever of it survives was not written."""
    rows = (num_steps, env.num_envs)
    return {
        "obs": np.full((*rows, env.spec.obs_dim), np.nan, np.float32),
        "rewards": np.full(rows, np.nan, np.float32),
        "terminated": np.full(rows, poison),
        "truncated": np.full(rows, poison),
        "valid": np.full(rows, poison),
    }


def run(
    env: VectorEnv, actions: NDArray[np.float32], *, poison: bool = False, first: NDArray[np.float32] | None = None
) -> Record:
    """Reset (unless ``first`` says that it was done), then step through ``actions`` (T, N, A)."""
    if first is None:
        first = np.full((env.num_envs, env.spec.obs_dim), np.nan, np.float32)
        env.reset(first)
    out = outputs(env, len(actions), poison)
    for t, action in enumerate(actions):
        env.step(action, *(out[name][t] for name in OUTPUTS))
    return Record(env.spec, first, actions, **out)


def some_actions(env: VectorEnv, num_steps: int = STEPS, num_envs: int | None = None) -> NDArray[np.float32]:
    shape = (num_steps, num_envs or env.num_envs, env.spec.act_dim)
    rng = np.random.default_rng(0)
    if env.spec.num_actions:
        return rng.integers(env.spec.num_actions, size=shape).astype(np.float32)
    return rng.uniform(-1.5, 1.5, shape).astype(np.float32)


def made_and_run(case: Case, *, num_steps: int = 40, columns: slice = slice(None), **options: Any) -> Record:
    """Make the environments in ``columns`` of the case, run them on their share of the actions, close them."""
    env = case.make(num_envs=len(range(case.num_envs)[columns]), **options)
    actions = some_actions(env, num_envs=case.num_envs)[:num_steps, columns]
    try:
        return run(env, actions)
    finally:
        env.close()


def assert_same(one: Record, other: Record) -> None:
    for name in ("first", *OUTPUTS):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


@pytest.fixture(scope="module")
def record(case: Case) -> Record:
    """One long run of each adapter, read by many tests."""
    return made_and_run(case, num_steps=STEPS)


# --- what is reported -------------------------------------------------------------------------------------------------


def test_spec_matches_the_arrays(record: Record) -> None:
    spec = record.spec
    assert (spec.obs_dim, spec.act_dim) == (record.obs.shape[-1], record.actions.shape[-1])
    assert spec.backend in ("envpool", "gymnasium", "fake")
    for bound in (spec.action_low, spec.action_high):
        assert bound.shape == (spec.act_dim,)
        assert bound.dtype == np.float64
    assert (spec.action_low < spec.action_high).all()


def test_every_output_is_written_on_every_step(record: Record, case: Case) -> None:
    assert np.isfinite(record.first).all()
    assert np.isfinite(record.obs).all()
    assert np.isfinite(record.rewards).all()
    env = case.make()
    other = run(env, record.actions, poison=True)
    env.close()
    assert_same(record, other)  # flags left over from False or from True would differ


def test_episodes_end_and_begin_again(record: Record) -> None:
    assert (record.done.sum(axis=0) >= 1).all()
    assert (~record.valid).any(axis=0).all()


def test_valid_is_false_exactly_after_a_done(record: Record) -> None:
    assert record.valid[0].all()
    np.testing.assert_array_equal(record.valid[1:], ~record.done[:-1])


def test_reset_rows_carry_nothing(record: Record) -> None:
    reset = ~record.valid
    assert (record.rewards[reset] == 0).all()
    assert not record.done[reset].any()
    assert (record.rewards[record.valid] != 0).any()


def test_no_episode_outlives_its_time_limit(record: Record) -> None:
    limit = record.spec.max_episode_steps
    lengths = np.zeros(record.valid.shape[1], np.int64)
    for t in range(len(record.valid)):
        lengths = np.where(record.valid[t], lengths + 1, 0)
        if limit is not None:
            assert (lengths <= limit).all()
            np.testing.assert_array_equal(record.truncated[t], lengths == limit)


def test_final_observation_is_the_true_one(record: Record) -> None:
    """The row of a done still shows the old episode, and the row after it the new one."""
    env_id, where = record.spec.env_id, np.argwhere(record.done[:-1])
    assert len(where)
    for t, n in where:
        final, first = record.obs[t, n], record.obs[t + 1, n]
        if env_id == "Hopper-v5":  # healthy is: height above 0.7 and angle within 0.2
            assert final[0] <= 0.7 or abs(final[1]) >= 0.2
            assert first[0] > 1.2
            assert abs(first[1]) < 0.01
        elif env_id == "Reacher-v5":  # the target, [4:6], stays for an episode; the arm starts almost straight
            before = record.obs[t - 1, n]
            np.testing.assert_array_equal(final[4:6], before[4:6])
            assert (first[4:6] != final[4:6]).all()
            assert (first[:2] > 0.99).all()
        elif env_id == "CartPole-v1":  # it stands while |x| <= 2.4 and |angle| <= 12 degrees, and starts within 0.05
            assert abs(final[0]) > 2.4 or abs(final[2]) > np.deg2rad(12)
            assert (np.abs(first) <= 0.05).all()
        elif env_id == "CountingEnv-v0":  # (env, episode, time)
            assert final[0] == first[0] == n
            assert first[1] == final[1] + 1
            assert (final[2] > 0, first[2]) == (True, 0)
        elif record.terminated[t, n]:  # ChainEnv: beyond the last state nothing is hot
            assert final.sum() == 0
            assert first.sum() == 1
        else:
            assert final.sum() == first.sum() == 1


def test_action_of_a_reset_row_is_ignored(record: Record, case: Case) -> None:
    env = case.make()
    other = record.actions.copy()
    other[~record.valid] = 1 - other[~record.valid] if env.spec.num_actions else -0.25
    assert (other != record.actions).any()
    again = run(env, other)
    env.close()
    assert_same(record, again)


def test_actions_are_clipped_and_not_written(record: Record, case: Case) -> None:
    if record.spec.num_actions:
        pytest.skip("an index is not clipped")
    env = case.make()
    clipped = np.clip(record.actions, -1, 1)
    assert (clipped != record.actions).any()
    actions = clipped.copy()
    again = run(env, actions)
    env.close()
    assert_same(record, again)
    np.testing.assert_array_equal(actions, clipped)


# --- seeds ------------------------------------------------------------------------------------------------------------


seeded_only = pytest.mark.parametrize(
    "case", [case for case in CASES if case.seeded], ids=lambda case: case.name, indirect=True, scope="module"
)


def test_same_seed_same_bits(record: Record, case: Case) -> None:
    again = made_and_run(case, num_steps=STEPS)
    assert_same(record, again)


@seeded_only
def test_every_seed_purpose_and_env_differs(record: Record, case: Case) -> None:
    rows = [*record.first]
    rows += [*made_and_run(case, num_steps=1, seed=2).first]
    rows += [*made_and_run(case, num_steps=1, purpose=1).first]
    for i, row in enumerate(rows):
        for other in rows[:i]:
            assert (row != other).any()


@seeded_only
def test_an_env_depends_on_its_global_index_alone(record: Record, case: Case) -> None:
    """Environment 1 is the same whether this process steps environment 0 too or another process does."""
    alone = made_and_run(case, columns=slice(1, None), first_env=1)
    np.testing.assert_array_equal(alone.first, record.first[1:])
    np.testing.assert_array_equal(alone.obs, record.obs[:40, 1:])
    np.testing.assert_array_equal(alone.rewards, record.rewards[:40, 1:])


def test_second_reset_begins_new_episodes(record: Record, case: Case) -> None:
    """Also where an episode has just ended: its reset row is no longer owed."""
    env = case.make()
    first_done = int(np.argmax(record.done.any(axis=1)))
    run(env, record.actions[: first_done + 1])
    again = run(env, record.actions[:3])
    env.close()
    assert np.isfinite(again.first).all()
    assert again.valid[0].all()
    if case.seeded:
        assert (again.first != record.first).any(axis=1).all()


@pytest.mark.parametrize("env_id", ["Hopper-v5", "Reacher-v5"])
def test_spawned_processes_equal_this_one(env_id: str) -> None:
    records = []
    for vectorization in ("sync", "async"):
        env = envs.make(env_id, 2, seed=5, backend="gymnasium", vectorization=vectorization)
        records.append(run(env, some_actions(env)))
        env.close()
    assert_same(*records)


@pytest.mark.parametrize("num_threads", [1, 3])
def test_number_of_threads_changes_nothing(num_threads: int) -> None:
    records = []
    for threads in (2, num_threads):
        env = envs.make("Hopper-v5", 5, seed=5, backend="envpool", num_threads=threads)
        records.append(run(env, some_actions(env)))
        env.close()
    assert_same(*records)


# --- actions ----------------------------------------------------------------------------------------------------------


def received(actions: list[float], **options: Any) -> list[float]:
    """Return what reaches the simulator for one environment and these components of an action."""
    env = fakes.CountingEnv(1, act_dim=len(actions), **options)
    run(env, np.array([[actions]], np.float32))
    return env.received[0][0].tolist()  # type: ignore[no-any-return]


def test_actions_are_rescaled() -> None:
    # low + (a + 1) / 2 * (high - low) with low = -2, high = 6; 3 and -9 are clipped to 1 and -1 first
    assert received([-1.0, -0.5, 0.0, 1.0, 3.0, -9.0], action_range=(-2.0, 6.0)) == [-2.0, 0.0, 2.0, 6.0, 6.0, -2.0]


def test_unit_range_passes_every_action_unchanged() -> None:
    actions = np.random.default_rng(0).uniform(-1, 1, 1000).astype(np.float32).tolist()
    assert received(actions, action_range=(-1.0, 1.0)) == actions


def test_actions_without_bounds_pass_as_they_are() -> None:
    assert received([-7.5, 0.25, 1e6], action_range=(-np.inf, np.inf)) == [-7.5, 0.25, 1e6]
    assert received([-7.5, 0.25, 1e6], action_range=(0.0, np.inf)) == [-7.5, 0.25, 1e6]


# --- the door ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def running(case: Case) -> Any:
    """An environment that has been reset and stepped once; a refused call must leave it as it was."""
    env = case.make()
    run(env, some_actions(env, 1))
    yield env
    env.close()


def good_arguments(env: VectorEnv) -> dict[str, Any]:
    step = outputs(env, 1, poison=False)
    actions = np.zeros((env.num_envs, env.spec.act_dim), np.float32)
    return {"actions": actions, **{name: array[0] for name, array in step.items()}}


@pytest.mark.parametrize("name", ["actions", *OUTPUTS])
@pytest.mark.parametrize("fault", ["shape", "rows", "ndim", "dtype", "type"])
def test_step_refuses_wrong_arrays(running: VectorEnv, name: str, fault: str) -> None:
    arguments = good_arguments(running)
    good = arguments[name]
    arguments[name] = {
        "shape": np.zeros((running.num_envs, 99), good.dtype),
        "rows": good[:-1],
        "ndim": np.zeros((), good.dtype),
        "dtype": good.astype(np.float64),
        "type": good.tolist(),
    }[fault]
    with pytest.raises(ShapeError, match=f"{name} must be .*got"):
        running.step(**arguments)
    running.step(**good_arguments(running))


def test_step_refuses_read_only_outputs(running: VectorEnv) -> None:
    arguments = good_arguments(running)
    arguments["obs"].setflags(write=False)
    with pytest.raises(ShapeError, match="obs is written to"):
        running.step(**arguments)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_step_refuses_actions_that_are_not_finite(running: VectorEnv, value: float) -> None:
    arguments = good_arguments(running)
    arguments["actions"][1] = value
    untouched = {name: arguments[name].copy() for name in OUTPUTS}
    with pytest.raises(NonFiniteError, match=r"environments \[1\]"):
        running.step(**arguments)
    for name, array in untouched.items():
        np.testing.assert_array_equal(arguments[name], array)
    running.step(**good_arguments(running))


def test_strided_actions_are_read_as_they_are(case: Case) -> None:
    one, other = case.make(), case.make()
    actions = some_actions(one, 5)
    wide = np.repeat(actions, 2, axis=-1)[..., ::2]
    assert not wide[0].flags.c_contiguous or wide.shape[-1] == 1
    assert_same(run(one, actions), run(other, wide))
    one.close()
    other.close()


def test_order_of_calls_is_kept(case: Case) -> None:
    env = case.make()
    with pytest.raises(EnvError, match=r"reset\(\) must come first"):
        env.step(**good_arguments(env))
    with pytest.raises(ShapeError, match="obs must be"):
        env.reset(np.empty((1, 1), np.float32))
    run(env, some_actions(env, 2))
    env.close()
    env.close()
    with pytest.raises(EnvError, match="closed"):
        env.step(**good_arguments(env))
    with pytest.raises(EnvError, match="closed"):
        env.reset(good_arguments(env)["obs"])


def test_closed_before_use(case: Case) -> None:
    env = case.make()
    env.close()
    env.close()
