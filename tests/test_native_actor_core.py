"""``_core.PpoActor`` by itself: bad arrays and ids are exceptions, it allocates nothing, and it lets other threads run.

Axes: T steps · N envs · D observation · A action · b rows of an arrival · P parameters.
"""

from __future__ import annotations

import gc
import sys
from typing import Any

import memory
import numpy as np
import pytest
import torch
import training
from training import LEVELS, ticks_during

from ppo_fast import native
from ppo_fast.batch import Rollout
from ppo_fast.models import ActorCritic

pytestmark = pytest.mark.usefixtures("native_core")

N, T, D, A = 4, 3, 5, 2
MODEL = ActorCritic(D, A, (6,))
FIELDS = ("obs", "norm_obs", "actions", "log_probs", "values", "rewards", "terminated", "truncated", "valid")
Arrays = dict[str, Any]


def make(
    model: ActorCritic = MODEL, num_envs: int = N, num_steps: int = T, flat: torch.Tensor | None = None, **options: Any
) -> Any:
    from ppo_fast import _core

    a = model.act_dim
    defaults: dict[str, Any] = {
        "num_envs": num_envs, "num_steps": num_steps, "seed": 1, "first_env": 0, "normalize": True, "clip_obs": 10.0,
        "action_low": [-1.0] * a, "half_range": [1.0] * a, "bounded": [True] * a,
    }  # fmt: skip
    actor = _core.PpoActor(native.networks(model), **{**defaults, **options})
    zeros = np.zeros(model.obs_dim, np.float32)
    flat = training.random_parameters(model, 1) if flat is None else flat
    actor.load(flat.numpy(), zeros, zeros + 1)
    return actor


def buffers(model: ActorCritic = MODEL, num_envs: int = N, num_steps: int = T) -> Arrays:
    rollout = Rollout.allocate(num_steps, num_envs, model.obs_dim, model.act_dim)
    rollout.obs[0] = 1.0
    return {**{name: getattr(rollout, name) for name in FIELDS}, "values": rollout.values_all}


def answers(model: ActorCritic = MODEL, num_envs: int = N) -> Arrays:
    return {"out_env_ids": np.full(num_envs, -1, np.int32), "out_actions": np.empty((num_envs, model.act_dim))}


def arrival(env_ids: Any, model: ActorCritic = MODEL, dtype: Any = np.float64) -> Arrays:
    ids = np.asarray(env_ids, np.int32)
    flags = {name: np.ones(len(ids), np.bool_) for name in ("terminated", "truncated", "valid")}
    obs = np.full((len(ids), model.obs_dim), 0.5, dtype)
    return {"env_ids": ids, "obs": obs, "rewards": np.full(len(ids), 7.0, np.float32), **flags}


def contents(arrays: Arrays) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in arrays.items()}


def references(arrays: Arrays) -> list[int]:
    return [sys.getrefcount(array) for array in arrays.values()]


def begun(**options: Any) -> tuple[Any, Arrays]:
    """Return an actor that has answered everyone, and its arrays."""
    actor, arrays = make(**options), buffers()
    assert actor.begin(**arrays, first_step=0, **answers()) == N
    return actor, arrays


# --- bad input -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "options",
    [
        {"num_envs": 0},
        {"num_steps": 0},
        {"action_low": [-1.0]},
        {"half_range": [1.0] * 3},
        {"bounded": []},
        {"simd": "avx3"},
    ],
)
def test_an_actor_that_cannot_be_is_an_error(options: Arrays) -> None:
    with pytest.raises(ValueError, match=r"sizes must|bounds must|simd must"):
        make(**options)


@pytest.mark.parametrize("options", [{"num_envs": -1}, {"seed": -1}, {"seed": 2**64}, {"num_steps": 1.5}])
def test_an_integer_out_of_range_is_an_error(options: Arrays) -> None:
    with pytest.raises(TypeError):
        make(**options)


def faults(array: np.ndarray) -> dict[str, tuple[np.ndarray, type[Exception]]]:
    """Return arrays that must not be taken for ``array``, and what they raise."""
    other = np.float64 if array.dtype != np.float64 else np.float32
    frozen = array.copy()
    frozen.flags.writeable = False
    return {
        "dtype": (array.astype(other), TypeError),
        "strided": (np.repeat(array, 2, axis=0)[::2], TypeError),
        "short": (array[:-1].copy(), ValueError),
        "long": (np.concatenate([array, array[:1]]), ValueError),
        "read-only": (frozen, ValueError),
    }


FAULTS = ("dtype", "strided", "short", "long", "read-only")


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", [*FIELDS, *answers()])
def test_begin_refuses_wrong_arrays_and_the_rollout_before_goes_on(name: str, fault: str) -> None:
    actor, arrays = begun()
    counts = references(arrays)
    given = {**buffers(), **answers()}
    given[name], error = faults(given[name])[fault]
    with pytest.raises(error):
        actor.begin(**given, first_step=0)
    assert references(arrays) == counts  # it still writes into these
    assert actor.receive(**arrival(range(N)), **answers()) == N
    assert (arrays["rewards"][0] == 7.0).all()


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", [*arrival([0]), *answers()])
def test_receive_refuses_wrong_arrays_and_takes_right_ones_afterwards(name: str, fault: str) -> None:
    actor, arrays = begun()
    given = {**arrival([2, 0]), **answers()}
    given[name], error = faults(given[name])[fault]
    if name in arrival([0]) and fault == "read-only":
        assert actor.receive(**given) == 2  # it is only read
        return
    if (name, fault) == ("obs", "dtype"):
        assert actor.receive(**given) == 2  # float32 is as good
        return
    before = contents(arrays)
    with pytest.raises(error):
        actor.receive(**given)
    assert contents(arrays) == before
    assert actor.remaining == N * T
    assert actor.receive(**arrival([2, 0]), **answers()) == 2


@pytest.mark.parametrize(
    "env_ids",
    [[N], [-1], [2**31 - 1], [-(2**31)], [0, N], [1, 2, 1], [0, 1, 2, 3, 0], [3, 3]],
)
def test_receive_refuses_ids_out_of_range_or_named_twice_and_takes_none_of_them(env_ids: list[int]) -> None:
    actor, arrays = begun()
    before = contents(arrays)
    with pytest.raises(ValueError, match="env_ids must name environments that have been answered, each once"):
        actor.receive(**arrival(env_ids), **answers())
    assert contents(arrays) == before
    assert actor.receive(**arrival(range(N)), **answers()) == N


def test_an_environment_that_was_not_answered_cannot_come_back() -> None:
    actor = make()
    with pytest.raises(ValueError, match="have been answered"):
        actor.receive(**arrival([0]), **answers())  # before the first rollout
    actor, _ = begun()
    for t in range(T):
        out = answers()
        assert actor.receive(**arrival([1]), **out) == (t < T - 1)
        assert out["out_env_ids"][0] == (1 if t < T - 1 else -1)
    with pytest.raises(ValueError, match="have been answered"):
        actor.receive(**arrival([1]), **answers())  # it has had its T steps
    assert actor.remaining == N * T - T
    assert actor.receive(**arrival([]), **answers()) == 0


def test_what_was_not_finite_is_neither_answered_nor_counted() -> None:
    actor, arrays = begun()
    rows = arrival([3, 1, 0])
    rows["obs"][1] = np.nan
    out = answers()
    assert actor.receive(**rows, **out) == 1
    assert actor.failed_env == 1
    assert out["out_env_ids"].tolist() == [3, -1, -1, -1]
    with pytest.raises(ValueError, match="have been answered"):
        actor.receive(**arrival([1]), **answers())
    assert actor.begin(**arrays, first_step=0, **answers()) == N  # a new rollout begins anew
    assert actor.failed_env == -1
    assert actor.remaining == N * T


def test_arrays_of_a_rollout_live_until_the_next_begins() -> None:
    actor, arrays = begun()
    counts = references(arrays)
    fresh = buffers()
    actor.begin(**fresh, first_step=0, **answers())
    assert references(arrays) == [count - 1 for count in counts]
    del fresh, arrays
    gc.collect()
    junk = [np.full((T + 1, N, D), np.nan, np.float32) for _ in range(50)]  # what was freed would be taken for these
    for _ in range(T):
        actor.receive(**arrival(range(N)), **answers())
    assert actor.remaining == 0
    assert all(np.isnan(array).all() for array in junk)


# --- what it costs ---------------------------------------------------------------------------------------------------
@memory.seen
def test_ten_thousand_arrivals_allocate_nothing() -> None:
    actor, arrays, out, rows = make(num_steps=100), buffers(num_steps=100), answers(), arrival(range(N))
    used = []
    for _ in range(110):
        actor.begin(**arrays, first_step=0, **out)
        for _ in range(100):
            actor.receive(**rows, **out)
        used.append(memory.resident_bytes())
    assert actor.remaining == 0
    assert used[-1] - used[9] <= 2**18


def test_other_threads_run_meanwhile() -> None:
    model, num_envs = ActorCritic(64, 4, (512, 512)), 3000
    actor = make(model, num_envs, 2, torch.zeros(model.num_params), simd=LEVELS[-1])
    arrays, out = buffers(model, num_envs, 2), answers(model, num_envs)
    rows = arrival(range(num_envs), model)
    for call in (lambda: actor.begin(**arrays, first_step=0, **out), lambda: actor.receive(**rows, **out)):
        ticks, seconds = ticks_during(call)
        assert seconds > 0.05, "too short to tell"
        assert ticks >= 10  # one or two, if it held the interpreter's lock
