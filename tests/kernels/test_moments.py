"""Running moments: every backend against the reference, the reference against extended precision."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import moments_oracle

from ppo_fast import kernels, reference

State = tuple[np.ndarray, np.ndarray, np.ndarray]
ROUNDOFF = 2.0**-53


def empty(dim: int) -> State:
    return np.zeros(1), np.zeros(dim), np.zeros(dim)


def batch(num_rows: int, dim: int, *, seed: int = 0, dtype: Any = np.float32, p_valid: float = 0.8) -> Any:
    random = np.random.default_rng(seed)
    rows = (random.normal(size=(num_rows, dim)) * 3 + random.normal(size=dim) * 10).astype(dtype)
    return rows, random.random(num_rows) < p_valid


def assert_states_equal(actual: State, expected: State) -> None:
    for name, a, b in zip(("count", "mean", "m2"), actual, expected, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=name)


def assert_near_oracle(state: State, rows: np.ndarray, valid: np.ndarray) -> None:
    """Allow each sum of B terms its B roundings: relative to Σ|x| for the mean, to m2 (and the mean's error) for m2."""
    count, mean, m2 = state
    expected_mean, expected_m2 = moments_oracle(rows, valid)
    n = np.count_nonzero(valid)
    assert count[0] == n
    size = np.abs(rows[valid]).mean(axis=0)
    mean_bound = 4 * (n + 4) * ROUNDOFF * size
    assert np.all(np.abs(mean - expected_mean) <= mean_bound)
    assert np.all(np.abs(m2 - expected_m2) <= 8 * (n + 8) * ROUNDOFF * expected_m2 + n * mean_bound**2)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("num_rows", "dim"), [(1, 1), (64, 1), (1, 105), (100, 63), (100, 64), (100, 65), (513, 200)])
def test_is_bit_identical_to_the_reference(backend: str, num_rows: int, dim: int, dtype: Any) -> None:
    actual, expected = empty(dim), empty(dim)
    for seed in range(3):  # from the empty state, then merging into what is there
        rows, valid = batch(num_rows, dim, seed=seed, dtype=dtype)
        kernels.update_moments(*actual, rows, valid)
        reference.update_moments(*expected, rows, valid)
        assert_states_equal(actual, expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equals_the_textbook_mean_and_squared_deviations(backend: str, dtype: Any) -> None:
    rows, valid = batch(2000, 17, dtype=dtype)
    state = empty(17)
    kernels.update_moments(*state, rows, valid)
    assert_near_oracle(state, rows, valid)


def test_hand_arithmetic(backend: str) -> None:
    # 1, 3 (99 does not count): mean 2, m2 = 1 + 1.  Then 6, 10: mean 8, m2 = 4 + 4.
    # Merged: d = 6, total = 4, mean = 2 + 6/2 = 5, m2 = 2 + 8 + 36 * 2 * 1/2 = 46 = 16 + 4 + 1 + 25.
    state = empty(1)
    rows = np.array([[1], [99], [3]], np.float32)
    kernels.update_moments(*state, rows, np.array([True, False, True]))
    assert_states_equal(state, (np.array([2.0]), np.array([2.0]), np.array([2.0])))
    kernels.update_moments(*state, np.array([[6], [10]], np.float32), np.array([True, True]))
    assert_states_equal(state, (np.array([4.0]), np.array([5.0]), np.array([46.0])))


@given(seed=st.integers(0, 2**32), sizes=st.lists(st.integers(0, 30), min_size=1, max_size=6), dim=st.integers(1, 4))
def test_moments_of_the_parts_merge_to_the_moments_of_the_whole(
    backend: str, seed: int, sizes: list[int], dim: int
) -> None:
    rows, valid = batch(sum(sizes), dim, seed=seed)
    state = empty(dim)
    start = 0
    for size in sizes:
        kernels.update_moments(*state, rows[start : start + size], valid[start : start + size])
        start += size
    if valid.any():
        assert_near_oracle(state, rows, valid)
    else:
        assert_states_equal(state, empty(dim))


def test_a_large_mean_does_not_swallow_a_small_variance(backend: str) -> None:
    # The textbook sum of squares minus n * mean**2 would be 1e16 - 1e16 here, with nothing left of the variance.
    random = np.random.default_rng(0)
    rows = 1e8 + random.choice([-0.125, 0.125], size=(1000, 1))
    state = empty(1)
    for part in np.split(rows, 10):
        kernels.update_moments(*state, part, np.ones(100, np.bool_))
    assert state[2][0] / 1000 == pytest.approx(np.var(rows - 1e8), rel=1e-6)  # deviations known to 1e-8 / 0.125


@pytest.mark.parametrize("junk", [np.nan, np.inf, 1e300])
def test_rows_that_do_not_count_reach_nobody(backend: str, junk: float) -> None:
    rows, valid = batch(200, 70, dtype=np.float64)
    clean, dirty = empty(70), empty(70)
    kernels.update_moments(*clean, rows, valid)
    kernels.update_moments(*dirty, np.where(valid[:, None], rows, junk), valid)
    assert_states_equal(dirty, clean)
    kept = empty(70)
    kernels.update_moments(*kept, rows[valid], np.ones(np.count_nonzero(valid), np.bool_))
    assert_states_equal(kept, clean)


@pytest.mark.parametrize("num_rows", [0, 5])
def test_no_valid_row_changes_nothing(backend: str, num_rows: int) -> None:
    state = np.array([7.0]), np.array([1.5, -2.0]), np.array([0.25, 8.0])
    before = tuple(array.copy() for array in state)
    kernels.update_moments(*state, np.full((num_rows, 2), np.nan, np.float32), np.zeros(num_rows, np.bool_))
    assert_states_equal(state, before)


def test_no_components_still_counts(backend: str) -> None:
    state = empty(0)
    kernels.update_moments(*state, np.empty((3, 0), np.float32), np.ones(3, np.bool_))
    assert state[0][0] == 3


def test_inputs_are_not_written_and_may_be_read_only(backend: str) -> None:
    rows, valid = batch(50, 5)
    copies = rows.copy(), valid.copy()
    rows.setflags(write=False)
    valid.setflags(write=False)
    kernels.update_moments(*empty(5), rows, valid)
    np.testing.assert_array_equal(rows, copies[0])
    np.testing.assert_array_equal(valid, copies[1])
