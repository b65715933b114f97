"""Uniforms named by (seed, env, step): by hand, every backend against the reference, and what normals are made of.

The rules are those of test_normals.py, since both take the same bits.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ppo_fast import kernels, reference
from ppo_fast.reference import rng

SMALLEST, LARGEST = 2.0**-53, 1 - 2.0**-53


def ids(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def test_uniform_stays_strictly_inside_zero_and_one() -> None:
    u = rng.uniform(np.array([0, 2**12 - 1, 2**63, 2**64 - 1], np.uint64))
    np.testing.assert_array_equal(u, [SMALLEST, SMALLEST, 0.5 + SMALLEST, LARGEST])


def test_counter_layout_by_hand(backend: str) -> None:
    env, step, seed = 5, 7 + 3 * 2**32, 11 + 13 * 2**32
    # counter: block, step low, env, tag 1 and step high; key: seed low, seed high
    blocks = [reference.philox4x32((block, 7, env, 1 << 24 | 3), (11, 13)) for block in range(2)]
    bits = [block[2 * half + 1] << 32 | block[2 * half] for block in blocks for half in range(2)]
    expected = [((b >> 12) + 0.5) / 2**52 for b in bits]  # exact in float64
    assert kernels.uniforms(ids(env), ids(step), 4, seed=seed)[0].tolist() == expected


@given(
    rows=st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**56 - 1)), max_size=8),
    dim=st.integers(0, 9),
    seed=st.integers(0, 2**64 - 1),
)
def test_is_bit_identical_to_the_reference(backend: str, rows: list[tuple[int, int]], dim: int, seed: int) -> None:
    env_ids, steps = np.array([row[0] for row in rows], np.int64), np.array([row[1] for row in rows], np.int64)
    noise = kernels.uniforms(env_ids, steps, dim, seed=seed)
    assert noise.dtype == np.float64
    assert noise.shape == (len(rows), dim)
    np.testing.assert_array_equal(noise, reference.uniforms(seed, env_ids, steps, dim))


def test_normals_are_their_quantiles(backend: str) -> None:
    env_ids, steps = np.repeat(np.arange(20), 50), np.tile(np.arange(50), 20)
    u = kernels.uniforms(env_ids, steps, 3, seed=1)
    expected = np.vectorize(NormalDist().inv_cdf)(u)
    # AS241 on both sides, see test_quantile_agrees_with_the_standard_library
    np.testing.assert_allclose(kernels.normals(env_ids, steps, 3, seed=1), expected, rtol=1e-14, atol=1e-16)


def test_extreme_names_are_accepted(backend: str) -> None:
    names = ids(0, 2**32 - 1), ids(2**56 - 1, 0)
    noise = kernels.uniforms(*names, 3, seed=2**64 - 1)
    np.testing.assert_array_equal(noise, reference.uniforms(2**64 - 1, *names, 3))
    assert ((noise > 0) & (noise < 1)).all()


def test_a_row_depends_on_its_own_name_only(backend: str) -> None:
    env_ids, steps = np.repeat(np.arange(8), 5), np.tile(np.arange(5), 8)
    together = kernels.uniforms(env_ids, steps, 5, seed=4)
    order = reference.permutation(40, 0, 0)
    np.testing.assert_array_equal(kernels.uniforms(env_ids[order], steps[order], 5, seed=4), together[order])
    alone = [kernels.uniforms(ids(env), ids(step), 5, seed=4)[0] for env, step in zip(env_ids, steps, strict=True)]
    np.testing.assert_array_equal(np.stack(alone), together)
    np.testing.assert_array_equal(kernels.uniforms(env_ids, steps, 3, seed=4), together[:, :3])


def test_draws_are_uniform(backend: str) -> None:
    envs, steps, bins = 50, 1000, 64
    u = kernels.uniforms(np.tile(np.arange(envs), steps), np.repeat(np.arange(steps), envs), 2, seed=2)
    n = u.size
    counts = np.bincount((u.ravel() * bins).astype(int), minlength=bins)
    chi_square = ((counts - n / bins) ** 2 / (n / bins)).sum()
    assert chi_square < (bins - 1) + 5 * math.sqrt(2 * (bins - 1))
    # neighbours in each direction are uncorrelated: the numbers of a row, the environments, the steps
    grid = (u - 0.5).reshape(steps, envs, 2) * math.sqrt(12)
    for a, b in ((grid[..., 0], grid[..., 1]), (grid[:, :-1], grid[:, 1:]), (grid[:-1], grid[1:])):
        assert abs((a * b).mean()) < 5 / math.sqrt(a.size)


def test_out_is_overwritten_whole_and_inputs_not_at_all(backend: str) -> None:
    env_ids, steps = np.arange(6), np.arange(6) + 100
    env_ids.setflags(write=False)
    steps.setflags(write=False)
    for dim in (1, 2, 5):
        out = np.full((6, dim), np.nan)
        assert kernels.uniforms(env_ids, steps, dim, seed=1, out=out) is out
        np.testing.assert_array_equal(out, reference.uniforms(1, env_ids, steps, dim))
