"""Streams: the same bits as synchronous stepping, in any order of arrival, and no ``recv`` that never returns.

Axes: T steps · N environments · S spares · D observation · A action.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fakes
import numpy as np
import pytest
from numpy.typing import NDArray

from ppo_fast import envs
from ppo_fast.envs import envpool_stream
from ppo_fast.envs.base import ActionRescaler, CheckedVectorEnv, EnvSpec
from ppo_fast.envs.envpool_stream import EnvPoolStream, default_batch_size
from ppo_fast.envs.envpool_task import PoolTask
from ppo_fast.envs.stream import StreamEnv
from ppo_fast.errors import ConfigError, EnvError, NonFiniteError, ShapeError
from ppo_fast.kernels import env_seeds

STEPS = 130  # past two time limits of Reacher, past many falls of Hopper
OUTPUTS = ("obs", "rewards", "terminated", "truncated", "valid")
Arrays = dict[str, NDArray[Any]]
MEMORY = EnvSpec("FakePool-v0", "fake", 4, 2, -np.ones(2), np.ones(2), None)


def some_actions(spec: EnvSpec, num_envs: int, num_steps: int = STEPS) -> NDArray[np.float32]:
    """Return (T, N, A) float32 in policy units, some beyond the range."""
    return np.random.default_rng(0).uniform(-1.5, 1.5, (num_steps, num_envs, spec.act_dim)).astype(np.float32)


def outputs(spec: EnvSpec, num_envs: int, num_steps: int) -> Arrays:
    """Return (T, N, ...) arrays full of NaN and True."""
    rows = (num_steps, num_envs)
    flags = {name: np.ones(rows, np.bool_) for name in OUTPUTS[2:]}
    return {
        "first": np.full((num_envs, spec.obs_dim), np.nan, np.float32),
        "obs": np.full((*rows, spec.obs_dim), np.nan, np.float32),
        "rewards": np.full(rows, np.nan, np.float32),
        **flags,
    }


def step_through(env: CheckedVectorEnv, actions: NDArray[np.float32]) -> Arrays:
    """Reset, then step all environments together through (T, N, A) actions."""
    out = outputs(env.spec, env.num_envs, len(actions))
    env.reset(out["first"])
    for t, action in enumerate(actions):
        env.step(action, *(out[name][t] for name in OUTPUTS))
    env.close()
    return out


def stream_through(env: StreamEnv, actions: NDArray[np.float32], *, num_rollouts: int = 1) -> Arrays:
    """Reset, then take every environment through its column of (T, N, A) actions; nobody waits but between rollouts."""
    rescale = ActionRescaler(env.spec, env.num_envs)
    scaled = np.array([rescale(action).astype(np.float64) for action in actions])
    num_steps, everyone = len(actions), np.arange(env.num_envs, dtype=np.int32)
    out = outputs(env.spec, env.num_envs, num_steps)
    env.reset(out["first"])
    time = np.zeros(env.num_envs, np.int64)  # steps that have come back
    for rollout in range(1, num_rollouts + 1):
        end = num_steps * rollout // num_rollouts
        send(env, everyone, scaled[time[0]])
        while (time < end).any():
            arrivals = env.recv()
            ids = arrivals.env_ids
            assert len(ids) == len(set(ids.tolist()))
            for name in OUTPUTS:
                out[name][time[ids], ids] = getattr(arrivals, name)
            time[ids] += 1
            going = ids[time[ids] < end]
            if going.size:
                send(env, going, scaled[time[going], going])
        with pytest.raises(EnvError, match="no action is unanswered"):
            env.recv()
    env.close()
    return out


def send(env: StreamEnv, env_ids: NDArray[np.int32], actions: NDArray[np.float64]) -> None:
    """Send, and overwrite the arrays at once, as a caller may."""
    env_ids, actions = env_ids.copy(), actions.copy()
    env.send(env_ids, actions)
    env_ids.fill(-1)
    actions.fill(np.nan)


def assert_same(one: Arrays, other: Arrays) -> None:
    for name in ("first", *OUTPUTS):
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def remembered(actions: NDArray[np.float32]) -> Arrays:
    """Return what MemoryEnv answers to actions within the range, one environment after the other."""
    num_steps, num_envs, _ = actions.shape
    out = outputs(MEMORY, num_envs, num_steps)
    for n in range(num_envs):
        env = fakes.MemoryEnv(n, reset_row_reward=0.0)
        out["first"][n] = env.answer(actions[0, n])["obs"]
        for t in range(num_steps):
            row = env.answer(np.clip(actions[t, n], -1, 1).astype(np.float64))
            out["obs"][t, n], out["rewards"][t, n], out["truncated"][t, n] = row["obs"], row["reward"], row["trunc"]
            out["terminated"][t, n] = row["done"] and not row["trunc"]
            out["valid"][t, n] = row["elapsed_step"] > 0
    return out


def memory_stream(num_envs: int, batch_size: int, num_workers: int, seed: int = 0) -> EnvPoolStream:
    pool = fakes.FakePool(num_envs + batch_size - 1, batch_size, num_workers, seed=seed)
    return EnvPoolStream(PoolTask(MEMORY), pool, num_envs, batch_size)


# --- one contract for every stream ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A stream under test, and what it must answer, from a source that is no stream."""

    name: str
    make: Callable[[], Any]
    expected: Callable[[NDArray[np.float32]], Arrays]
    synchronous: bool = True


def real(name: str, env_id: str, num_envs: int, backend: str, batch_size: int = 0, **options: Any) -> Case:
    return Case(
        name,
        lambda: envs.make_stream(env_id, num_envs, seed=1, backend=backend, batch_size=batch_size, **options),
        lambda actions: step_through(envs.make(env_id, num_envs, seed=1, backend=backend), actions),
        synchronous=not 0 < batch_size < num_envs,
    )


def fake(make: Callable[[], CheckedVectorEnv]) -> Case:
    return Case(type(make()).__name__, make, lambda actions: step_through(make(), actions))


CASES = [
    real("envpool-stream-hopper", "Hopper-v5", 5, "envpool", batch_size=3, num_threads=2),
    real("envpool-stream-pendulum", "InvertedPendulum-v5", 5, "envpool", batch_size=2, num_threads=2),
    real("envpool-stream-singly", "Reacher-v5", 5, "envpool", batch_size=1, num_threads=2),
    real("envpool-sync-hopper", "Hopper-v5", 3, "envpool", batch_size=3),
    real("envpool-sync-pendulum", "InvertedPendulum-v5", 3, "envpool", batch_size=3),  # its range is [-3, 3]
    real("gymnasium-hopper", "Hopper-v5", 3, "gymnasium"),
    real("gymnasium-reacher", "Reacher-v5", 2, "gymnasium"),
    fake(lambda: fakes.CountingEnv(4, action_range=(-2.0, 6.0))),
    fake(lambda: fakes.ChainEnv(3, time_limit=4)),
    Case("fake-pool", lambda: memory_stream(5, 3, 2), remembered, synchronous=False),
]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def expected(case: Case) -> Arrays:
    env = case.make()
    env.close()
    return case.expected(some_actions(env.spec, env.num_envs))


@pytest.fixture
def running(case: Case) -> Any:
    """A stream that has been reset, with nothing in flight."""
    env = case.make()
    env.reset(np.empty((env.num_envs, env.spec.obs_dim), np.float32))
    yield env
    env.close()


def everyone(env: StreamEnv) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    return np.arange(env.num_envs, dtype=np.int32), np.zeros((env.num_envs, env.spec.act_dim))


def drain(env: StreamEnv) -> None:
    """Receive until nothing is in flight, which is after N rows, as everyone was sent."""
    rows = 0
    while rows < env.num_envs:
        rows += len(env.recv().env_ids)


@pytest.mark.parametrize("num_rollouts", [1, 3])
def test_rows_are_those_of_synchronous_stepping(case: Case, expected: Arrays, num_rollouts: int) -> None:
    env = case.make()
    assert_same(stream_through(env, some_actions(env.spec, env.num_envs), num_rollouts=num_rollouts), expected)


def test_autoreset_is_that_of_the_contract(case: Case) -> None:
    env = case.make()
    out = stream_through(env, some_actions(env.spec, env.num_envs))
    done = out["terminated"] | out["truncated"]
    assert done.any(axis=0).all()
    assert out["valid"][0].all()
    np.testing.assert_array_equal(out["valid"][1:], ~done[:-1])
    assert (out["rewards"][~out["valid"]] == 0).all()
    assert not done[~out["valid"]].any()
    assert (out["rewards"][out["valid"]] != 0).any()


def test_arrivals_have_the_types_of_the_contract(running: Any) -> None:
    running.send(*everyone(running))
    rows = 0
    while rows < running.num_envs:
        env_ids, obs, rewards, terminated, truncated, valid = running.recv()
        b = len(env_ids)
        assert 1 <= b <= running.num_envs
        assert (env_ids.dtype, env_ids.shape) == (np.int32, (b,))
        assert obs.dtype in (np.float32, np.float64)
        assert obs.shape == (b, running.spec.obs_dim)
        assert obs.flags.c_contiguous
        assert (rewards.dtype, rewards.shape) == (np.float32, (b,))
        for flags in (terminated, truncated, valid):
            assert (flags.dtype, flags.shape) == (np.bool_, (b,))
        rows += b


def test_mode_says_how_it_steps(case: Case) -> None:
    env = case.make()
    assert (env.mode == "synchronous") == case.synchronous
    if not case.synchronous:
        assert env.mode == f"asynchronous, {env._batch_size} of {env.num_envs}"
    env.close()


def test_what_is_sent_is_not_written(running: Any) -> None:
    env_ids, actions = everyone(running)
    actions[:] = 0.25
    for array in (env_ids, actions):
        array.setflags(write=False)
    running.send(env_ids, actions)
    drain(running)


def test_strided_arrays_are_read_as_they_are(case: Case, expected: Arrays) -> None:
    env = case.make()
    actions = some_actions(env.spec, env.num_envs, 1)
    env.reset(np.empty((env.num_envs, env.spec.obs_dim), np.float32))
    wide = np.repeat(ActionRescaler(env.spec, env.num_envs)(actions[0]).astype(np.float64), 2, axis=1)[:, ::2]
    env.send(np.repeat(np.arange(env.num_envs, dtype=np.int32), 2)[::2], wide)
    rows = 0
    while rows < env.num_envs:
        arrivals = env.recv()
        np.testing.assert_array_equal(arrivals.obs.astype(np.float32), expected["obs"][0, arrivals.env_ids])
        rows += len(arrivals.env_ids)
    env.close()


def test_recv_with_nothing_in_flight_is_refused(running: Any) -> None:
    """EnvPool would wait for ever, deaf to Ctrl-C."""
    for _ in range(2):
        with pytest.raises(EnvError, match=r"recv\(\) refused: no action is unanswered: send\(\) must come first"):
            running.recv()
        running.send(*everyone(running))
        drain(running)


def test_reset_waits_for_no_answer(running: Any) -> None:
    obs = np.empty((running.num_envs, running.spec.obs_dim), np.float32)
    running.send(*everyone(running))
    with pytest.raises(EnvError, match=r"reset\(\) refused: .* not answered: recv\(\) must come first"):
        running.reset(obs)
    drain(running)
    running.reset(obs)
    running.send(*everyone(running))
    drain(running)


def test_an_environment_in_flight_is_sent_nothing(running: Any) -> None:
    running.send(*everyone(running))
    with pytest.raises(EnvError, match=r"in flight: recv\(\) must return them first|not answered: recv\(\) must come"):
        running.send(*everyone(running))
    drain(running)


def test_order_of_calls_is_kept(case: Case) -> None:
    env = case.make()
    obs = np.empty((env.num_envs, env.spec.obs_dim), np.float32)
    for call in (lambda: env.send(*everyone(env)), env.recv):
        with pytest.raises(EnvError, match=r"refused: reset\(\) must come first"):
            call()
    env.reset(obs)
    env.send(*everyone(env))
    env.close()  # with every action unanswered
    env.close()
    for call in (lambda: env.send(*everyone(env)), env.recv, lambda: env.reset(obs)):
        with pytest.raises(EnvError, match="refused: it is closed: make a new one"):
            call()


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        *(("env_ids", fault) for fault in ("dtype", "type", "ndim", "none")),
        *(("actions", fault) for fault in ("dtype", "type", "ndim", "none", "rows", "width")),
    ],
)
def test_send_refuses_wrong_arrays(running: Any, name: str, fault: str) -> None:
    arguments = dict(zip(("env_ids", "actions"), everyone(running), strict=True))
    good = arguments[name]
    arguments[name] = {
        "dtype": good.astype(np.int64 if name == "env_ids" else np.float32),
        "type": good.tolist(),
        "ndim": np.zeros((), good.dtype),
        "none": good[:0],
        "rows": good[:-1],
        "width": np.zeros((running.num_envs, 99)),
    }[fault]
    with pytest.raises(ShapeError, match=f"{name} must be .*got"):
        running.send(**arguments)
    running.send(*everyone(running))
    drain(running)


@pytest.mark.parametrize(
    "wrong", [[0, 0], [-1, 0], [0, 99], [2**31 - 1, 0], [-(2**31), 0]], ids=["twice", "-1", "99", "max", "min"]
)
def test_send_refuses_wrong_environments(case: Case, running: Any, wrong: list[int]) -> None:
    """EnvPool would crash on one out of range, and let two threads step one that is named twice."""
    env_ids, actions = everyone(running)
    env_ids[:2] = wrong
    with pytest.raises(EnvError, match=r"env_ids (must be|names environments)"):
        running.send(env_ids, actions)
    with pytest.raises(EnvError, match="no action is unanswered"):
        running.recv()
    running.send(*everyone(running))
    drain(running)


def test_negative_environments_do_not_count_from_the_end() -> None:
    env = memory_stream(4, 2, 2)
    env.reset(np.empty((4, 4), np.float32))
    for env_ids, message in (([-1], r"0 \.\.\. 3, got \[-1\]"), ([1, 4, -4], r"0 \.\.\. 3, got \[4, -4\]")):
        with pytest.raises(EnvError, match=message):
            env.send(np.array(env_ids, np.int32), np.zeros((len(env_ids), 2)))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_send_refuses_actions_that_are_not_finite(running: Any, value: float) -> None:
    env_ids, actions = everyone(running)
    actions[1, -1] = value
    with pytest.raises(NonFiniteError, match=r"actions of environments \[1\] are not finite; nothing was stepped"):
        running.send(env_ids, actions)
    with pytest.raises(EnvError, match="no action is unanswered"):
        running.recv()
    running.send(*everyone(running))
    drain(running)


def test_a_synchronous_step_waits_for_the_answer_of_a_send() -> None:
    env = fakes.CountingEnv(2, obs_dim=3)
    rows = [np.empty((2, 3), np.float32), np.empty(2, np.float32), *(np.empty(2, np.bool_) for _ in range(3))]
    actions = np.zeros((2, 2), np.float32)
    env.reset(rows[0])
    env.send(*everyone(env))
    with pytest.raises(EnvError, match=r"step\(\) refused: .* not answered: recv\(\) must come first"):
        env.step(actions, *rows)
    assert env.recv().obs[:, 2].tolist() == [1, 1]  # time: one step, not two
    env.step(actions, *rows)
    assert rows[0][:, 2].tolist() == [2, 2]
    with pytest.raises(EnvError, match=r"env_ids must be 0 ... 1 in order, got \[1, 0\]"):
        env.send(np.array([1, 0], np.int32), np.zeros((2, 2)))


# --- spares, in a pool whose delays are simulated ---------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [1, 2, 16, 64])
@pytest.mark.parametrize(("num_envs", "batch_size"), [(64, 32), (64, 63), (33, 7), (5, 1)])
def test_no_rollout_blocks_and_no_bit_changes(num_envs: int, batch_size: int, num_workers: int) -> None:
    """The pool raises where EnvPool would wait for ever, and where an environment is sent two actions at a time."""
    actions = some_actions(MEMORY, num_envs, 24)
    expected = remembered(actions)
    for seed in range(8):
        env = memory_stream(num_envs, batch_size, num_workers, seed)
        pool = env._pool
        assert_same(stream_through(env, actions, num_rollouts=3), expected)
        assert (pool.steps[:num_envs] == 1 + len(actions)).all()  # the reset and T steps, neither more nor fewer


@pytest.mark.parametrize(("num_workers", "blocks"), [(1, False), (16, True), (64, True)])
def test_without_spares_the_same_pool_blocks(num_workers: int, blocks: bool) -> None:
    """The control arm: the simulated delays do bring about what the spares are there for."""
    blocked = 0
    for seed in range(20):
        env = memory_stream(64, 32, num_workers, seed)
        env._spares = env._spares[:0]
        env._spare_actions = env._spare_actions[:0]
        try:
            stream_through(env, some_actions(MEMORY, 64, 24), num_rollouts=3)
        except fakes.WouldBlockError:
            blocked += 1
    assert (blocked > 10) == blocks
    assert blocks or blocked == 0


def test_spares_step_only_when_rows_are_lacking() -> None:
    env = memory_stream(8, 4, 1)  # one worker: first come, first served, so that every batch fills by itself
    pool = env._pool
    stream_through(env, some_actions(MEMORY, 8, 24), num_rollouts=3)
    assert (pool.steps[8:] == 0).all()
    env = memory_stream(6, 4, 1)  # 6 + 6 T rows are no multiple of 4: the last batch of the reset lacks two
    pool = env._pool
    env.reset(np.empty((6, 4), np.float32))
    assert pool.steps[6:].sum() == 2


def test_no_spare_is_in_flight_between_two_calls() -> None:
    """A batch that needs spares takes all that is in flight, so that none can turn up in a later one."""
    for num_workers in (1, 2, 16):
        env = memory_stream(8, 7, num_workers)
        pool, recv, seen = env._pool, env.recv, []

        def watched(pool: Any = pool, recv: Any = recv, seen: list[bool] = seen) -> Any:
            before = pool.steps[8:].sum()
            arrivals = recv()
            seen.append(pool.steps[8:].sum() > before)
            assert not any(env_id >= 8 for env_id in pool.in_flight)
            assert not (seen[-1] and pool.in_flight)
            return arrivals

        env.recv = watched  # type: ignore[method-assign]
        stream_through(env, some_actions(MEMORY, 8, 24), num_rollouts=12)
        assert any(seen)


# --- EnvPool itself ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("env_id", ["Hopper-v5", "InvertedPendulum-v5"])
def test_number_of_threads_and_batch_size_change_nothing(env_id: str) -> None:
    spec = envs.spec(env_id)
    actions = some_actions(spec, 8, 150)
    expected = step_through(envs.make(env_id, 8, seed=5, backend="envpool"), actions)
    assert (expected["terminated"].sum(axis=0) > 1).all()
    for num_threads, batch_size in ((1, 4), (2, 4), (5, 4), (5, 7)):
        env = envs.make_stream(env_id, 8, seed=5, num_threads=num_threads, batch_size=batch_size)
        assert_same(stream_through(env, actions, num_rollouts=5), expected)


class Recorder:
    """Stands in for the module envpool and keeps what a pool would have been made with."""

    def __init__(self) -> None:
        self.made: dict[str, Any] = {}

    def make(self, env_id: str, **options: Any) -> fakes.FakePool:
        self.made = options
        return fakes.FakePool(options["num_envs"], options["batch_size"], options["num_threads"])


def test_seeds_of_spares_are_nobody_elses(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder()
    monkeypatch.setattr(envpool_stream, "import_envpool", lambda: recorder)
    monkeypatch.setattr(envpool_stream, "envpool_task", lambda _: PoolTask(MEMORY))
    training: list[int] = []
    spares: list[int] = []
    for rank in range(4):
        envs.make_stream("Hopper-v5", 64, seed=3, backend="envpool", first_env=64 * rank, batch_size=63, num_threads=2)
        assert recorder.made["num_envs"] == 64 + 62
        seeds = recorder.made["seed"]
        assert seeds[:64] == env_seeds(3, 64 * rank, 64).tolist()  # what the synchronous adapter gives
        training += seeds[:64]
        spares += seeds[64:]
    everyone = training + spares
    assert len(everyone) == len(set(everyone)) == 4 * (64 + 62)
    assert all(0 <= seed < 2**31 for seed in spares)
    assert not set(spares) & set(env_seeds(3, 0, 10**6).tolist())  # nor of more ranks


# --- make_stream ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_envs", "num_threads", "batch_size"),
    [
        *((64, 2, 32), (64, 16, 32), (64, 17, 64), (1024, 16, 64)),
        *((8, 2, 4), (7, 2, 7), (9, 2, 4), (4, 1, 2), (3, 1, 3), (1, 1, 1)),
    ],
)
def test_half_of_the_environments_where_there_are_four_per_thread(
    num_envs: int, num_threads: int, batch_size: int
) -> None:
    assert default_batch_size(num_envs, num_threads) == batch_size


def test_make_stream_follows_the_rule() -> None:
    for num_envs, options, mode in (
        (8, {"num_threads": 2}, "asynchronous, 4 of 8"),
        (8, {"num_threads": 3}, "synchronous"),
        (8, {"num_threads": 3, "batch_size": 5}, "asynchronous, 5 of 8"),
        (8, {"num_threads": 1, "batch_size": 8}, "synchronous"),
        (8, {"backend": "gymnasium"}, "synchronous"),
    ):
        env = envs.make_stream("InvertedPendulum-v5", num_envs, seed=1, **options)  # type: ignore[arg-type]
        assert env.mode == mode
        assert env.num_envs == num_envs
        env.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 9}, "batch_size must be at most num_envs, 8, got 9"),
        ({"batch_size": -1}, "batch_size must be an integer >= 0, got -1"),
        ({"batch_size": 2.0}, "batch_size must be an integer >= 0, got 2.0"),
        ({"num_envs": 0}, "num_envs must be an integer >= 1, got 0"),
        ({"num_threads": -1}, "num_threads must be an integer >= 0, got -1"),
        ({"backend": "gymnasium", "batch_size": 4}, "batch_size 4 belongs to the EnvPool backend, and Gymnasium steps"),
        ({"backend": "gymnasium", "num_threads": 4}, "env_threads 4 belongs to the EnvPool backend"),
        ({"vectorization": "async"}, "vectorization 'async' belongs to the Gymnasium backend"),
        ({"vectorization": "fork"}, "vectorization must be 'sync' or 'async', got 'fork'"),
        ({"backend": "brax"}, "env_backend must be 'auto', 'envpool' or 'gymnasium', got 'brax'"),
    ],
)
def test_make_stream_refuses_what_it_would_ignore(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        envs.make_stream("Hopper-v5", **{"num_envs": 8, "seed": 1, "backend": "auto", **options})


# --- interruption, closing, forking -----------------------------------------------------------------------------------


class Interrupting:
    """A raw pool whose next ``_send`` or ``_recv`` ends in Ctrl-C, before or after it has done its work."""

    def __init__(self, pool: Any, call: str, moment: str) -> None:
        self.pool, self.call, self.moment = pool, call, moment

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any) -> Any:
            if name == self.call and self.moment == "before":
                raise KeyboardInterrupt
            answer = getattr(self.pool, name)(*args)
            if name == self.call:
                raise KeyboardInterrupt
            return answer

        return call


def pendulums(num_threads: int = 2) -> Any:
    env = envs.make_stream("InvertedPendulum-v5", 8, seed=1, backend="envpool", num_threads=num_threads, batch_size=4)
    env.reset(np.empty((8, 4), np.float32))
    return env


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("call", ["_send", "_recv", "_reset"])
def test_an_interrupted_call_ends_the_use(call: str, moment: str) -> None:
    env, obs = pendulums(), np.empty((8, 4), np.float32)
    if call == "_recv":
        env.send(*everyone(env))
    env._pool = Interrupting(env._pool, call, moment)
    use = {"_send": lambda: env.send(*everyone(env)), "_recv": env.recv, "_reset": lambda: env.reset(obs)}
    with pytest.raises(KeyboardInterrupt):
        use[call]()
    env._pool.call = ""
    for again in use.values():
        with pytest.raises(EnvError, match=r"did not finish.*may be one step off: close this one and make a new one"):
            again()
    env.close()


def test_close_frees_the_threads_with_actions_unanswered() -> None:
    def threads() -> int:
        return len(list(Path("/proc/self/task").iterdir()))

    if not Path("/proc/self/task").exists():
        pytest.skip("counts threads in /proc")
    before = threads()
    env = pendulums(num_threads=3)
    env.send(*everyone(env))
    env.recv()
    assert threads() >= before + 3
    env.close()
    assert threads() <= before


def test_actions_that_are_refused_never_reach_the_pool(capfd: Any) -> None:
    env = pendulums()
    env_ids, actions = everyone(env)
    actions[3] = np.nan
    env._pool = Interrupting(env._pool, "_send", "before")
    with pytest.raises(NonFiniteError):
        env.send(env_ids, actions)
    env._pool.call = ""
    env.send(*everyone(env))
    drain(env)
    assert capfd.readouterr() == ("", "")  # MuJoCo would have warned on stdout, and in a file
    env.close()


FORK = """
import os, sys
import numpy as np
from ppo_fast import envs
from ppo_fast.errors import EnvError

env = envs.make_stream("Hopper-v5", 8, seed=1, backend="envpool", num_threads=2, batch_size=4)
obs, env_ids, actions = np.zeros((8, 11), np.float32), np.arange(8, dtype=np.int32), np.zeros((8, 3))
env.reset(obs)
env.send(env_ids, actions)
rows = len(env.recv().env_ids)
pid = os.fork()
if pid == 0:
    for use in (env.recv, lambda: env.send(env_ids, actions), lambda: env.reset(obs)):
        try:
            use()
        except EnvError as error:
            assert "forked" in str(error) and "spawn" in str(error), error
        else:
            raise AssertionError("used in a child")
    env.close()
    own = envs.make_stream("Hopper-v5", 8, seed=1, backend="envpool", num_threads=2, batch_size=4)
    own.reset(obs)
    own.close()
    sys.exit(0)  # not os._exit: the interpreter frees what it holds, on which an inherited pool would crash
status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
assert status == 0, status
while rows < 8:
    rows += len(env.recv().env_ids)
env.close()
print("parent is well")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
def test_a_forked_child_is_refused_and_leaves_quietly(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, timeout=90, cwd=tmp_path)
    assert (done.returncode, done.stdout.strip()) == (0, "parent is well"), done.stderr
    assert "Traceback" not in done.stderr
