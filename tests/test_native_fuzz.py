"""Random faults in any array: the native code computes or refuses, and never reads or writes where it may not.

Run under AddressSanitizer too (`make test-asan`), which sees what a plain run would survive by luck.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import training
from hypothesis import given
from hypothesis import strategies as st

from ppo_fast import kernels
from ppo_fast.errors import ShapeError
from ppo_fast.learners.native import NativeLearner
from ppo_fast.learners.ppo_step import Minibatch
from ppo_fast.models import ActorCritic

pytestmark = pytest.mark.usefixtures("native_core")

F32, F64, I64 = np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.int64)
EXTREME = (np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-45, 0.0, -0.0)

sizes = st.integers(1, 40)
structure = st.sampled_from(["dtype", "strided", "transposed", "short", "long", "flat", "deeper", "empty", "swapped"])


def break_structure(array: np.ndarray, how: str) -> np.ndarray:
    """Return an array that is not what was asked for (or, of one column or row, may be after all)."""
    other = {F32: F64, F64: F32, I64: np.dtype(np.int32)}.get(array.dtype, np.dtype(np.uint8))
    return {
        "dtype": lambda: array.astype(other),
        "strided": lambda: np.repeat(array, 2, axis=0)[::2],
        "transposed": lambda: array.T,
        "short": lambda: array[:-1].copy(),
        "long": lambda: np.concatenate([array, array[:1]]),
        "flat": lambda: array.reshape(-1)[: array.size // 2].copy(),
        "deeper": lambda: array[None],
        "empty": lambda: array[:0].copy(),
        "swapped": lambda: array.astype(array.dtype.newbyteorder()) if array.itemsize > 1 else array.astype(F64),
    }[how]()


def fill(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Return float32 noise with extremes in it."""
    array = rng.normal(size=shape).astype(np.float32)
    array[rng.random(shape) < 0.05] = np.float32(rng.choice(EXTREME))
    return array


def same_as_intact(broken: np.ndarray, intact: np.ndarray) -> bool:
    """Return whether a fault left nothing wrong, as a transposition of one row does."""
    contiguous = broken.flags.c_contiguous and broken.flags.aligned
    return broken.shape == intact.shape and broken.dtype == intact.dtype and contiguous and broken.dtype.isnative


@given(t=sizes, n=sizes, seed=st.integers(0, 2**32), fault=st.none() | structure, which=st.integers(0, 4))
def test_gae(t: int, n: int, seed: int, fault: str | None, which: int) -> None:
    rng = np.random.default_rng(seed)
    arrays = [fill(rng, t, n), fill(rng, t, n), fill(rng, t, n), rng.random((t, n)) < 0.1, rng.random((t, n)) < 0.2]
    before = [array.copy() for array in arrays]
    if fault is not None:
        intact, arrays[which] = arrays[which], break_structure(arrays[which], fault)
        if not same_as_intact(arrays[which], intact):
            with pytest.raises(ShapeError):
                kernels.gae(*arrays, gamma=0.99, gae_lambda=0.95)
            return
    for array in arrays:
        array.setflags(write=False)
    advantages, returns = kernels.gae(*arrays, gamma=0.99, gae_lambda=0.95)
    assert advantages.shape == returns.shape == (t, n)
    for array, copy in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(array, copy)


@given(b=sizes, d=sizes, m=sizes, seed=st.integers(0, 2**32), far=st.sampled_from([0, 1, -1, 2**31, -(2**31), 2**62]))
def test_gather(b: int, d: int, m: int, seed: int, far: int) -> None:
    rng = np.random.default_rng(seed)
    source, index = fill(rng, b, d), rng.integers(0, b, m)
    wrong = bool(far)
    if wrong:
        index[rng.integers(m)] = far + b if far > 0 else far
    if wrong:
        with pytest.raises(ShapeError, match="index"):
            kernels.gather(source, index)
    else:
        np.testing.assert_array_equal(kernels.gather(source, index), source[index])


@given(
    hidden=st.lists(st.integers(1, 70), min_size=1, max_size=3).map(tuple),
    obs_dim=st.integers(1, 40),
    act_dim=st.integers(1, 9),
    rows=st.integers(1, 40),
    discrete=st.booleans(),
    shared=st.booleans(),
    fault=st.none() | structure,
    which=st.integers(0, 7),
    seed=st.integers(0, 2**32),
)
def test_gradient(
    hidden: tuple[int, ...], obs_dim: int, act_dim: int, rows: int, discrete: bool, shared: bool, fault: str | None,
    which: int, seed: int,
) -> None:  # fmt: skip
    rng = np.random.default_rng(seed)
    model = ActorCritic(obs_dim, 1 if discrete else act_dim, hidden, shared_trunk=shared,
                        num_actions=act_dim + 1 if discrete else 0)  # fmt: skip
    cfg = training.config(Path("unused"), num_envs=1, num_steps=40, minibatch_size=40, learner="native", update="auto")
    learner = NativeLearner(model, training.random_parameters(model, seed % 1000), cfg)
    batch: dict[str, Any] = {name: fill(rng, rows) for name in Minibatch._fields}
    batch["norm_obs"] = fill(rng, rows, obs_dim)
    batch["actions"] = fill(rng, rows, model.act_dim)
    if discrete:
        batch["actions"] = rng.integers(0, act_dim + 1, (rows, 1)).astype(np.float32)
    batch["valid"] = (rng.random(rows) < 0.8).astype(np.float32)
    index = rng.integers(0, rows, rng.integers(1, 41))
    arrays = {**batch, "index": index}
    name = list(arrays)[which]
    if fault is not None:
        broken = break_structure(arrays[name], fault)
        if not same_as_intact(broken, arrays[name]) and not (name == "index" and fault in ("short", "long", "flat")):
            arrays[name] = broken
            with pytest.raises((ShapeError, ValueError)):
                learner.gradient({k: arrays[k] for k in batch}, arrays["index"])
            return
    gradient, stats = learner.gradient(batch, index)
    assert gradient.shape == (model.num_params,)
    assert stats.shape == (8,)
