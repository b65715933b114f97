"""The peak that benchmarks compare with, against a matrix product of torch, which knows nothing of it."""

from __future__ import annotations

from time import perf_counter

import pytest
import torch

_core = pytest.importorskip("ppo_fast._core", reason="the C++ core does not load", exc_type=ImportError)
if not hasattr(_core, "peak_flops"):
    pytest.skip("the C++ core was built without the native learner", allow_module_level=True)


def matrix_product_flops(size: int, repeats: int) -> float:
    a, b = torch.rand(size, size), torch.rand(size, size)
    best = float("inf")
    for _ in range(repeats):
        start = perf_counter()
        torch.mm(a, b)
        best = min(best, perf_counter() - start)
    return 2.0 * size**3 / best


def test_a_good_matrix_product_comes_near_the_peak_and_not_above() -> None:
    """Both take the best of many short stretches, which other programs can only make slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        product = max(matrix_product_flops(384, 40) for _ in range(5))
    finally:
        torch.set_num_threads(threads)
    peak = max(_core.peak_flops() for _ in range(20))
    assert 0.6 * peak <= product <= 1.15 * peak, f"{product:.3g} of a peak of {peak:.3g} FLOP/s"


def test_every_level_has_a_peak_and_the_best_level_the_highest() -> None:
    peaks = [max(_core.peak_flops(level) for _ in range(5)) for level in _core.simd_levels()]
    assert min(peaks) > 1e8
    assert peaks[0] >= 0.9 * max(peaks)


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(ValueError, match=r"simd must be one of .*, got 'mmx'"):
        _core.peak_flops("mmx")
