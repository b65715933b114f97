"""Gather: rows in the order of an index, which NumPy's own indexing defines."""

from __future__ import annotations

import numpy as np
import pytest

from ppo_fast import kernels


@pytest.mark.parametrize("shape", [(50,), (50, 1), (50, 2), (50, 105), (50, 0), (1, 3)])
@pytest.mark.parametrize("count", [0, 1, 50, 120])
def test_equals_indexing(backend: str, shape: tuple[int, ...], count: int) -> None:
    random = np.random.default_rng(0)
    source = random.normal(size=shape).astype(np.float32)
    index = random.integers(0, shape[0], count)  # with repetition
    rows = kernels.gather(source, index)
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, source[index])


def test_nothing_can_be_gathered_from_nothing(backend: str) -> None:
    assert kernels.gather(np.empty((0, 3), np.float32), np.empty(0, np.int64)).shape == (0, 3)


def test_every_bit_pattern_survives(backend: str) -> None:
    bits = np.array([0x7FC00001, 0xFFC12345, 0x80000000, 0x00000001, 0x7F800000], np.uint32)
    index = np.array([4, 3, 2, 1, 0])
    np.testing.assert_array_equal(kernels.gather(bits.view(np.float32), index).view(np.uint32), bits[index])


@pytest.mark.parametrize("shape", [(40,), (40, 7)])
def test_out_is_overwritten_whole_and_inputs_not_at_all(backend: str, shape: tuple[int, ...]) -> None:
    source = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    index = kernels.permutation(40, seed=1, stream=1)
    source.setflags(write=False)
    index.setflags(write=False)
    out = np.full(shape, np.nan, np.float32)
    assert kernels.gather(source, index, out=out) is out
    np.testing.assert_array_equal(out, source[index])
