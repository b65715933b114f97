"""Standard normals named by (seed, env, step): the quantile against truth, every backend against the reference."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppo_fast import kernels, reference
from ppo_fast.reference import rng

SMALLEST, LARGEST = 2.0**-53, 1 - 2.0**-53  # what rng.uniform() can return
# Draws in the far tails, beyond |z| = 6.66 where AS241 changes its formula: one in 4e10, found by search with seed 1.
FAR_TAIL_DRAWS = [(3964, 2805114, 0), (3276, 6982948, 1)]


def ids(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


# The inverse normal CDF, in the reference


def quantile(u: np.ndarray | float) -> np.ndarray:
    return reference.inverse_normal_cdf(np.atleast_1d(np.asarray(u, np.float64)))


def test_quantile_agrees_with_the_standard_library() -> None:
    random = np.random.default_rng(0)
    tails = 10.0 ** -random.uniform(0, 16, 20_000)
    boundaries = [SMALLEST, 0.5 * SMALLEST, LARGEST, 0.075, 0.925, np.nextafter(0.075, 0), math.exp(-25), 1e-300]
    u = np.concatenate([random.random(20_000), tails, 1 - tails, boundaries])
    u = u[(u > 0) & (u < 1)]
    expected = np.array([NormalDist().inv_cdf(x) for x in u])
    # AS241 on both sides, so what differs is rounding and the logarithm: 1e-14 is 45 units in the last place.
    np.testing.assert_allclose(quantile(u), expected, rtol=1e-14, atol=1e-16)


def test_quantile_inverts_the_normal_cdf() -> None:
    u = np.concatenate([np.linspace(0.001, 0.5, 500), 10.0 ** -np.linspace(3, 16, 100)])
    x = quantile(u)
    back = np.array([0.5 * math.erfc(-z / math.sqrt(2)) for z in x])
    # relative condition of the CDF in its lower tail is about x**2 <= 68, times a few roundings of 1e-16
    np.testing.assert_allclose(back, u, rtol=1e-13)


def test_quantile_at_its_ends_and_in_the_middle() -> None:
    low, high = quantile(SMALLEST).item(), quantile(LARGEST).item()
    assert low == -high
    assert low == pytest.approx(NormalDist().inv_cdf(2.0**-53), rel=1e-14)
    assert -8.21 < low < -8.20
    assert quantile(0.5).item() == 0.0


def test_quantile_is_odd_and_increasing_across_its_formulas() -> None:
    for boundary in (0.075, 0.925, math.exp(-25)):
        around = boundary * (1 + np.arange(-50, 51) * 2.0**-40)  # steps well above the rounding of the quantile
        assert np.all(np.diff(quantile(around)) > 0)
    u = np.random.default_rng(1).integers(1, 2**53, 1000) * 2.0**-53  # 1 - u is exact
    np.testing.assert_array_equal(quantile(u), -quantile(1 - u))


def test_own_logarithm_is_accurate() -> None:
    x = np.concatenate([10.0 ** -np.linspace(0.5, 300, 5000), [2.0**-k for k in range(1, 1000)], [0.7, 0.71, 0.075]])
    expected = np.array([math.log(v) for v in x])
    np.testing.assert_allclose(rng.log(x), expected, rtol=1e-15)


# Every backend


def test_counter_layout_by_hand(backend: str) -> None:
    env, step, seed = 5, 7 + 3 * 2**32, 11 + 13 * 2**32
    # counter: block, step low, env, tag 1 and step high; key: seed low, seed high
    blocks = [reference.philox4x32((block, 7, env, 1 << 24 | 3), (11, 13)) for block in range(2)]
    bits = [block[2 * half + 1] << 32 | block[2 * half] for block in blocks for half in range(2)]
    expected = [NormalDist().inv_cdf(((b >> 12) + 0.5) / 2**52) for b in bits]
    np.testing.assert_allclose(kernels.normals(ids(env), ids(step), 4, seed=seed)[0], expected, rtol=1e-14)


@given(
    rows=st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**56 - 1)), max_size=8),
    dim=st.integers(0, 9),
    seed=st.integers(0, 2**64 - 1),
)
def test_is_bit_identical_to_the_reference(backend: str, rows: list[tuple[int, int]], dim: int, seed: int) -> None:
    env_ids, steps = np.array([row[0] for row in rows], np.int64), np.array([row[1] for row in rows], np.int64)
    noise = kernels.normals(env_ids, steps, dim, seed=seed)
    assert noise.dtype == np.float64
    assert noise.shape == (len(rows), dim)
    np.testing.assert_array_equal(noise, reference.normals(seed, env_ids, steps, dim))


def test_many_draws_are_bit_identical_to_the_reference(backend: str) -> None:
    env_ids, steps = np.repeat(np.arange(100), 500), np.tile(np.arange(500), 100)
    noise = kernels.normals(env_ids, steps, 7, seed=1)
    np.testing.assert_array_equal(noise, reference.normals(1, env_ids, steps, 7))
    assert (np.abs(noise) > 4).any(), "the tail formula was not reached"


@pytest.mark.parametrize(("env", "step", "k"), FAR_TAIL_DRAWS)
def test_far_tails_are_bit_identical_to_the_reference(backend: str, env: int, step: int, k: int) -> None:
    noise = kernels.normals(ids(env), ids(step), 2, seed=1)
    assert abs(noise[0, k]) > 6.66
    np.testing.assert_array_equal(noise, reference.normals(1, ids(env), ids(step), 2))


def test_extreme_names_are_accepted(backend: str) -> None:
    names = ids(0, 2**32 - 1), ids(2**56 - 1, 0)
    noise = kernels.normals(*names, 3, seed=2**64 - 1)
    np.testing.assert_array_equal(noise, reference.normals(2**64 - 1, *names, 3))
    assert np.isfinite(noise).all()


def test_a_row_depends_on_its_own_name_only(backend: str) -> None:
    env_ids, steps = np.repeat(np.arange(8), 5), np.tile(np.arange(5), 8)
    together = kernels.normals(env_ids, steps, 5, seed=4)
    order = reference.permutation(40, 0, 0)
    np.testing.assert_array_equal(kernels.normals(env_ids[order], steps[order], 5, seed=4), together[order])
    alone = [kernels.normals(ids(env), ids(step), 5, seed=4)[0] for env, step in zip(env_ids, steps, strict=True)]
    np.testing.assert_array_equal(np.stack(alone), together)
    np.testing.assert_array_equal(kernels.normals(env_ids, steps, 3, seed=4), together[:, :3])


def test_another_name_gives_another_draw(backend: str) -> None:
    env_ids, steps = ids(1, 2, 1, 1, 2**32 - 1), ids(1, 1, 2, 1 + 2**32, 1)
    noise = kernels.normals(env_ids, steps, 4, seed=1)
    others = [kernels.normals(env_ids, steps, 4, seed=seed) for seed in (0, 2, 1 + 2**32)]
    every = np.concatenate([noise, *others]).ravel()
    assert len(np.unique(every)) == every.size


def test_draws_are_standard_normal(backend: str) -> None:
    envs, steps = 50, 1000
    noise = kernels.normals(np.tile(np.arange(envs), steps), np.repeat(np.arange(steps), envs), 4, seed=2)
    n = noise.size
    z = noise.ravel()
    # standard errors of the first four moments of n normals; five of each
    for power, expected, error in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((z**power).mean() - expected) < 5 * math.sqrt(error / n), f"moment {power}"
    bins = 64
    edges = [NormalDist().inv_cdf(i / bins) for i in range(1, bins)]
    counts = np.bincount(np.searchsorted(edges, z), minlength=bins)
    chi_square = ((counts - n / bins) ** 2 / (n / bins)).sum()
    assert chi_square < (bins - 1) + 5 * math.sqrt(2 * (bins - 1))
    # neighbours in each direction are uncorrelated: the components of a row, the environments, the steps
    grid = noise.reshape(steps, envs, 4)
    pairs = [(grid[..., 0], grid[..., 1]), (grid[:, :-1], grid[:, 1:]), (grid[:-1], grid[1:])]
    for a, b in pairs:
        assert abs((a * b).mean()) < 5 / math.sqrt(a.size)


def test_out_is_overwritten_whole_and_inputs_not_at_all(backend: str) -> None:
    env_ids, steps = np.arange(6), np.arange(6) + 100
    env_ids.setflags(write=False)
    steps.setflags(write=False)
    for dim in (1, 2, 5):
        out = np.full((6, dim), np.nan)
        assert kernels.normals(env_ids, steps, dim, seed=1, out=out) is out
        np.testing.assert_array_equal(out, reference.normals(1, env_ids, steps, dim))


# Seeds for simulators


def test_env_seeds_follow_from_the_run_seed_by_hand() -> None:
    base = reference.philox4x32((0, 0, 0, 3 << 24 | 1), (7, 1))[0]
    seeds = kernels.env_seeds(7 + 2**32, 10, 3, purpose=1)
    assert seeds.tolist() == [(base + e) % 2**31 for e in (10, 11, 12)]
    assert seeds.dtype == np.int64


def test_env_seeds_are_distinct_and_ranks_continue_each_other() -> None:
    whole = kernels.env_seeds(1, 0, 128)
    np.testing.assert_array_equal(np.concatenate([kernels.env_seeds(1, 0, 64), kernels.env_seeds(1, 64, 64)]), whole)
    assert len(set(whole.tolist())) == 128


def test_env_seeds_of_neighbouring_runs_and_of_evaluation_do_not_overlap() -> None:
    every = np.concatenate([kernels.env_seeds(seed, 0, 4096, purpose) for seed in range(20) for purpose in (0, 1)])
    assert len(np.unique(every)) == every.size
    assert every.min() >= 0
    assert every.max() < 2**31
