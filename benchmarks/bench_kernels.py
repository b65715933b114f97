"""Every kernel on every backend, one rollout of Ant-v5 large, through the public door with its checks.

Each is asserted before it is timed. pytest-benchmark times one backend after the other, in several passes: A B C A B C.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from ppo_fast import kernels
from ppo_fast.reference import advantage, moments, rng, shuffle

from ._measure import Sample
from .conftest import Bench
from .report import Row

PASSES = 3
SEED, GAMMA, LAMBDA = 7, 0.99, 0.95
Call = Callable[[], tuple[np.ndarray, ...]]


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    before = kernels.active()
    if not kernels.available()[request.param]:
        pytest.skip(kernels.why_not()[request.param])
    kernels.use(request.param)
    yield request.param
    kernels.use(before)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    passes = 1 if metafunc.config.getoption("benchmark_disable") else PASSES
    cases = [(k, i, b) for k in CASES for i in range(passes) for b in ("reference", "numba", "cpp")]
    metafunc.parametrize(
        ("kernel", "backend"), [(k, b) for k, _, b in cases], indirect=["backend"],
        ids=[f"{k}-pass{i + 1}-{b}" for k, i, b in cases],
    )  # fmt: skip


@pytest.mark.benchmark(max_time=0.2, min_rounds=3)
def test_kernel(kernel: str, backend: str, bench: Bench, benchmark: Any) -> None:
    shape = (8, 4, 5, 2) if bench.smoke else (64, 64, 105, 8)
    call, expected = CASES[kernel](*shape)
    for got, want in zip(call(), expected, strict=True):
        np.testing.assert_array_equal(got, want, strict=True)
    benchmark.group = kernel
    benchmark(call)
    if not bench.smoke:
        seconds = benchmark.stats.stats.median
        section = f"kernels, T = {shape[0]}, N = {shape[1]}, D = {shape[2]}, A = {shape[3]}"
        row = Row(f"{kernel}, {backend}", [Sample(shape[0] * shape[1], seconds)], reference=f"{kernel}, reference")
        bench.report.add(section, row)


def gae(t: int, n: int, d: int, a: int) -> tuple[Call, tuple[np.ndarray, ...]]:
    random = np.random.default_rng(0)
    rewards, values_all = (random.normal(size=(t + i, n)).astype(np.float32) for i in (0, 1))
    terminated = random.random((t, n)) < 0.01
    done = terminated | (random.random((t, n)) < 0.01)
    args = rewards, values_all[:-1], values_all[1:], terminated, done
    out = np.full_like(rewards, np.nan), np.full_like(rewards, np.nan)
    return (
        lambda: kernels.gae(*args, gamma=GAMMA, gae_lambda=LAMBDA, out=out),
        advantage.gae(*args, gamma=GAMMA, gae_lambda=LAMBDA),
    )


def permutation(t: int, n: int, d: int, a: int) -> tuple[Call, tuple[np.ndarray, ...]]:
    out = np.full(t * n, -1)
    return (lambda: (kernels.permutation(t * n, seed=SEED, stream=3, out=out),)), (shuffle.permutation(t * n, SEED, 3),)


def gather(t: int, n: int, d: int, a: int) -> tuple[Call, tuple[np.ndarray, ...]]:
    random = np.random.default_rng(0)
    source, index = random.normal(size=(t * n, d)).astype(np.float32), random.permutation(t * n)
    out = np.full_like(source, np.nan)
    return (lambda: (kernels.gather(source, index, out=out),)), (source[index],)


def update_moments(t: int, n: int, d: int, a: int) -> tuple[Call, tuple[np.ndarray, ...]]:
    random = np.random.default_rng(0)
    rows, valid = random.normal(size=(t * n, d)).astype(np.float32), random.random(t * n) < 0.98

    def merged(update: Callable[..., None]) -> tuple[np.ndarray, ...]:
        state = np.full(1, 9.0), np.linspace(-1, 1, d), np.linspace(1, 2, d)
        update(*state, rows, valid)
        return state

    return (lambda: merged(kernels.update_moments)), merged(moments.update_moments)


def normals(t: int, n: int, d: int, a: int) -> tuple[Call, tuple[np.ndarray, ...]]:
    return noise(kernels.normals, rng.normals, t, n, a)


def uniforms(t: int, n: int, d: int, a: int) -> tuple[Call, tuple[np.ndarray, ...]]:
    return noise(kernels.uniforms, rng.uniforms, t, n, a)


def noise(
    draw: Callable[..., np.ndarray], expected: Callable[..., np.ndarray], t: int, n: int, a: int
) -> tuple[Call, tuple[np.ndarray, ...]]:
    env_ids, steps = np.tile(np.arange(n), t), np.repeat(np.arange(t), n)
    out = np.full((t * n, a), np.nan)
    return lambda: (draw(env_ids, steps, a, seed=SEED, out=out),), (expected(SEED, env_ids, steps, a),)


CASES = {case.__name__: case for case in (gae, permutation, gather, update_moments, normals, uniforms)}
