"""What bad input gets: one error class and one text, whatever the backend, before anything is written."""

# ruff: noqa: E501  (a table, one case a line)
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ppo_fast import kernels
from ppo_fast.errors import ConfigError, PPOFastError, ShapeError

F32, F64, I64 = np.float32, np.float64, np.int64


def gae(**change: Any) -> Any:
    floats = {name: np.zeros((4, 3), F32) for name in ("rewards", "values", "next_values")}
    flags = {name: np.zeros((4, 3), np.bool_) for name in ("terminated", "done")}
    return kernels.gae(**{**floats, **flags, "gamma": 0.9, "gae_lambda": 0.9, **change})


def gather(**change: Any) -> Any:
    arguments = {"source": np.zeros((5, 2), F32), "index": np.zeros(3, I64), **change}
    return kernels.gather(arguments.pop("source"), arguments.pop("index"), **arguments)


def moments(**change: Any) -> Any:
    state = {"count": np.zeros(1), "mean": np.zeros(2), "m2": np.zeros(2)}
    return kernels.update_moments(**{**state, "rows": np.ones((6, 2), F32), "valid": np.ones(6, np.bool_), **change})


def normals(**change: Any) -> Any:
    return kernels.normals(**{"env_ids": np.zeros(3, I64), "steps": np.zeros(3, I64), "dim": 2, "seed": 0, **change})


def uniforms(**change: Any) -> Any:
    return kernels.uniforms(**{"env_ids": np.zeros(3, I64), "steps": np.zeros(3, I64), "dim": 2, "seed": 0, **change})


def permutation(**change: Any) -> Any:
    return kernels.permutation(**{"n": 5, "seed": 0, "stream": 0, **change})


def read_only(array: np.ndarray) -> np.ndarray:
    array.setflags(write=False)
    return array


def misaligned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.zeros(size + 1, np.uint8)[1:].view(dtype).reshape(shape)


SHARED = np.zeros((8, 3), F32)
STRIDED = np.zeros((4, 6), F32)[:, ::2]
BAD: list[tuple[str, Callable[[], Any], type[PPOFastError], str]] = [
    # dtype and kind
    ("list", lambda: gae(rewards=[[0.0]]), ShapeError, "rewards must be a NumPy array, got list"),
    ("dtype", lambda: gae(rewards=np.zeros((4, 3))), ShapeError, "rewards must be float32 and C-contiguous, got float64"),
    ("flags as bytes", lambda: gae(done=np.zeros((4, 3), np.uint8)), ShapeError, "done must be bool and C-contiguous, got uint8"),
    ("integer moments", lambda: moments(rows=np.ones((6, 2), I64)), ShapeError, "rows must be float32 or float64 and C-contiguous, got int64"),
    ("index int32", lambda: gather(index=np.zeros(3, np.int32)), ShapeError, "index must be int64 and C-contiguous, got int32"),
    ("source f64", lambda: gather(source=np.zeros((5, 2))), ShapeError, "source must be float32 and C-contiguous, got float64"),
    ("byte order", lambda: gae(values=np.zeros((4, 3), F32).astype(">f4")), ShapeError, "values must be float32 and C-contiguous, got >f4 (foreign byte order)"),
    ("float ids", lambda: normals(env_ids=np.zeros(3)), ShapeError, "env_ids must be int64 and C-contiguous, got float64"),
    ("uniform float ids", lambda: uniforms(env_ids=np.zeros(3)), ShapeError, "env_ids must be int64 and C-contiguous, got float64"),
    ("out dtype", lambda: permutation(out=np.zeros(5, np.int32)), ShapeError, "out must be int64 and C-contiguous, got int32"),
    ("out f32", lambda: normals(out=np.zeros((3, 2), F32)), ShapeError, "out must be float64 and C-contiguous, got float32"),
    ("uniform out f32", lambda: uniforms(out=np.zeros((3, 2), F32)), ShapeError, "out must be float64 and C-contiguous, got float32"),
    # layout
    ("strides", lambda: gae(values=STRIDED), ShapeError, "values must be float32 and C-contiguous, got float32, not C-contiguous (shape (4, 3), strides (24, 8))"),
    ("transpose", lambda: gae(next_values=np.zeros((3, 4), F32).T), ShapeError, "next_values must be float32 and C-contiguous, got float32, not C-contiguous (shape (4, 3), strides (4, 16))"),
    ("misaligned", lambda: gae(rewards=misaligned((4, 3), F32)), ShapeError, "rewards must be float32 and C-contiguous, got float32, not aligned in memory"),
    ("out strides", lambda: gae(out=(STRIDED, np.zeros((4, 3), F32))), ShapeError, "out[0] (advantages) must be float32 and C-contiguous, got float32, not C-contiguous (shape (4, 3), strides (24, 8))"),
    # shape
    ("axes", lambda: gae(rewards=np.zeros(4, F32)), ShapeError, "rewards must have shape (T, N), got (4,)"),
    ("swapped", lambda: gae(values=np.zeros((3, 4), F32)), ShapeError, "values must have shape (T, N) = (4, 3), got (3, 4)"),
    ("one more", lambda: gae(next_values=np.zeros((5, 3), F32)), ShapeError, "next_values must have shape (T, N) = (4, 3), got (5, 3)"),
    ("done shape", lambda: gae(done=np.zeros((4, 1), np.bool_)), ShapeError, "done must have shape (T, N) = (4, 3), got (4, 1)"),
    ("out shape", lambda: gae(out=(np.zeros((4, 3), F32), np.zeros((3, 4), F32))), ShapeError, "out[1] (returns) must have shape (T, N) = (4, 3), got (3, 4)"),
    ("out alone", lambda: gae(out=np.zeros((4, 3), F32)), ShapeError, "out must be a pair (advantages, returns), got ndarray"),
    ("permutation out", lambda: permutation(out=np.zeros(6, I64)), ShapeError, "out must have shape (n,) = (5,), got (6,)"),
    ("source 3-d", lambda: gather(source=np.zeros((5, 2, 2), F32)), ShapeError, "source must have shape (B,) or (B, D), got (5, 2, 2)"),
    ("index 2-d", lambda: gather(index=np.zeros((3, 1), I64)), ShapeError, "index must have shape (M,), got (3, 1)"),
    ("gather out", lambda: gather(out=np.zeros((2, 2), F32)), ShapeError, "out must have shape (M, D) = (3, 2), got (2, 2)"),
    ("gather out 1-d", lambda: gather(source=np.zeros(5, F32), out=np.zeros((3, 1), F32)), ShapeError, "out must have shape (M,) = (3,), got (3, 1)"),
    ("rows 1-d", lambda: moments(rows=np.ones(6, F32)), ShapeError, "rows must have shape (B, D), got (6,)"),
    ("valid long", lambda: moments(valid=np.ones(7, np.bool_)), ShapeError, "valid must have shape (B,) = (6,), got (7,)"),
    ("count 0-d", lambda: moments(count=np.zeros(())), ShapeError, "count must have shape (1,) = (1,), got ()"),
    ("mean short", lambda: moments(mean=np.zeros(1)), ShapeError, "mean must have shape (D,) = (2,), got (1,)"),
    ("m2 long", lambda: moments(m2=np.zeros(3)), ShapeError, "m2 must have shape (D,) = (2,), got (3,)"),
    ("steps", lambda: normals(steps=np.zeros(2, I64)), ShapeError, "steps must have shape (n,) = (3,), got (2,)"),
    ("uniform steps", lambda: uniforms(steps=np.zeros(2, I64)), ShapeError, "steps must have shape (n,) = (3,), got (2,)"),
    ("noise out", lambda: normals(out=np.zeros((2, 3))), ShapeError, "out must have shape (n, dim) = (3, 2), got (2, 3)"),
    ("uniform noise out", lambda: uniforms(out=np.zeros((2, 3))), ShapeError, "out must have shape (n, dim) = (3, 2), got (2, 3)"),
    # writing
    ("read-only out", lambda: permutation(out=read_only(np.zeros(5, I64))), ShapeError, "out must be writable, got a read-only array"),
    ("read-only mean", lambda: moments(mean=read_only(np.zeros(2))), ShapeError, "mean must be writable, got a read-only array"),
    ("out is input", lambda: gae(rewards=SHARED[:4], out=(SHARED[:4], np.zeros((4, 3), F32))), ShapeError, "out[0] (advantages) must not overlap rewards: it is written while rewards is in use"),
    ("out overlaps", lambda: gae(values=SHARED[1:5], out=(np.zeros((4, 3), F32), SHARED[4:8])), ShapeError, "out[1] (returns) must not overlap values: it is written while values is in use"),
    ("outs overlap", lambda: gae(out=(SHARED[:4], SHARED[3:7])), ShapeError, "out[1] (returns) must not overlap out[0] (advantages): it is written while out[0] (advantages) is in use"),
    ("gather in place", lambda: gather(source=SHARED, out=SHARED[:3]), ShapeError, "out must not overlap source: it is written while source is in use"),
    ("mean is m2", lambda: (lambda a: moments(mean=a, m2=a))(np.zeros(2)), ShapeError, "m2 must not overlap mean: it is written while mean is in use"),
    # numbers
    ("index low", lambda: gather(index=np.array([0, -1, 9])), ShapeError, "index must lie in [0, B = 5), got -1 at position 1"),
    ("index high", lambda: gather(index=np.array([0, 4, 5])), ShapeError, "index must lie in [0, B = 5), got 5 at position 2"),
    ("index of nothing", lambda: gather(source=np.zeros((0, 2), F32)), ShapeError, "index must lie in [0, B = 0), got 0 at position 0"),
    ("env id", lambda: normals(env_ids=np.array([0, 2**32, 0])), ShapeError, "env_ids must lie in [0, 2**32), got 4294967296 at position 1"),
    ("uniform env id", lambda: uniforms(env_ids=np.array([0, 2**32, 0])), ShapeError, "env_ids must lie in [0, 2**32), got 4294967296 at position 1"),
    ("step", lambda: normals(steps=np.array([0, 0, -3])), ShapeError, "steps must lie in [0, 2**56), got -3 at position 2"),
    ("uniform step", lambda: uniforms(steps=np.array([0, 0, -3])), ShapeError, "steps must lie in [0, 2**56), got -3 at position 2"),
    ("dim", lambda: normals(dim=-1), ConfigError, "dim must be an integer in [0, 2**31), got -1"),
    ("uniform dim", lambda: uniforms(dim=-1), ConfigError, "dim must be an integer in [0, 2**31), got -1"),
    ("dim float", lambda: normals(dim=2.0), ConfigError, "dim must be an integer in [0, 2**31), got 2.0"),
    ("uniform dim float", lambda: uniforms(dim=2.0), ConfigError, "dim must be an integer in [0, 2**31), got 2.0"),
    ("n", lambda: permutation(n=-1), ConfigError, "n must be an integer in [0, 2**31), got -1"),
    ("n large", lambda: permutation(n=2**31), ConfigError, "n must be an integer in [0, 2**31), got 2147483648"),
    ("n None", lambda: permutation(n=None), ConfigError, "n must be an integer in [0, 2**31), got None"),
    ("seed", lambda: permutation(seed=-1), ConfigError, "seed must be an integer in [0, 2**64), got -1"),
    ("seed large", lambda: normals(seed=2**64), ConfigError, "seed must be an integer in [0, 2**64), got 18446744073709551616"),
    ("uniform seed large", lambda: uniforms(seed=2**64), ConfigError, "seed must be an integer in [0, 2**64), got 18446744073709551616"),
    ("stream", lambda: permutation(stream=2**56), ConfigError, "stream must be an integer in [0, 2**56), got 72057594037927936"),
    ("rank", lambda: kernels.stream_id(2**16, 0), ConfigError, "rank must be an integer in [0, 2**16), got 65536"),
    ("epoch", lambda: kernels.stream_id(0, -1), ConfigError, "epoch must be an integer in [0, 2**40), got -1"),
    ("num_envs", lambda: kernels.env_seeds(1, 0, -1), ConfigError, "num_envs must be an integer in [0, 2**31), got -1"),
    ("purpose", lambda: kernels.env_seeds(1, 0, 1, 2**24), ConfigError, "purpose must be an integer in [0, 2**24), got 16777216"),
    ("mask", lambda: gae(rewards=np.ma.masked_array(np.zeros((2, 1), np.float32))), ShapeError, "rewards must be a NumPy array, got MaskedArray"),
    ("gamma vast", lambda: gae(gamma=10**400), ConfigError, f"gamma must be a number in [0, 1], got {10**400}"),
    ("gamma", lambda: gae(gamma=1.5), ConfigError, "gamma must be a number in [0, 1], got 1.5"),
    ("gamma nan", lambda: gae(gamma=float("nan")), ConfigError, "gamma must be a number in [0, 1], got nan"),
    ("lambda", lambda: gae(gae_lambda=-0.1), ConfigError, "gae_lambda must be a number in [0, 1], got -0.1"),
    ("lambda None", lambda: gae(gae_lambda=None), ConfigError, "gae_lambda must be a number in [0, 1], got None"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "text"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_bad_input_gets_one_clear_line(
    backend: str, call: Callable[[], Any], error: type[PPOFastError], text: str
) -> None:
    with pytest.raises(error) as raised:
        call()
    assert type(raised.value) is error
    assert str(raised.value) == text


@pytest.mark.parametrize("error", [ShapeError, ConfigError])
def test_bad_input_is_a_value_error(error: type[Exception]) -> None:
    assert issubclass(error, ValueError)


def test_nothing_is_written_before_an_error(backend: str) -> None:
    count, mean = np.array([3.0]), np.array([1.0, 2.0])
    with pytest.raises(ShapeError):
        moments(count=count, mean=mean, m2=np.zeros(3))
    assert count[0] == 3.0
    np.testing.assert_array_equal(mean, [1.0, 2.0])
    advantages = np.full((4, 3), 7, F32)
    with pytest.raises(ShapeError):
        gae(out=(advantages, np.zeros((4, 2), F32)))
    with pytest.raises(ConfigError):
        gae(out=(advantages, np.zeros((4, 3), F32)), gamma=2)
    np.testing.assert_array_equal(advantages, 7)


def test_arrays_of_no_elements_are_not_bad(backend: str) -> None:
    assert gather(source=np.zeros((0, 2), F32), index=np.zeros(0, I64)).shape == (0, 2)
    for draw in (normals, uniforms):
        assert draw(env_ids=np.zeros(0, I64), steps=np.zeros(0, I64)).shape == (0, 2)
    assert permutation(n=0).shape == (0,)


def test_cpp_core_refuses_to_convert_even_without_the_front() -> None:
    # Only C++ has a second line of defence: pybind11 would by default convert, and fill a temporary copy of an output.
    core = pytest.importorskip("ppo_fast._core")
    with pytest.raises(TypeError):
        core.permutation_into(np.zeros(5, np.int32), 0, 0)
    with pytest.raises(TypeError):
        core.normals_into(np.zeros(3, I64), np.zeros(3, I64), 0, np.zeros((6, 2))[::2])
    with pytest.raises(TypeError):
        core.uniforms_into(np.zeros(3, I64), np.zeros(3, I64), 0, np.zeros((3, 2), F32))
    with pytest.raises(ValueError, match="writeable"):
        core.permutation_into(read_only(np.zeros(5, I64)), 0, 0)
