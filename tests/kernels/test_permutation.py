"""Philox against its published vectors, the shuffle against hand arithmetic, every backend against the reference."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppo_fast import kernels, reference
from ppo_fast.reference.shuffle import bounded, random_words

SEEDS = st.integers(0, 2**64 - 1)
STREAMS = st.integers(0, 2**56 - 1)
ONES = 0xFFFFFFFF


# Philox4x32-10


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ONES, ONES, ONES, ONES), (ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),  # digits of pi
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_philox_reference_gives_the_published_vectors(
    counter: tuple[int, ...], key: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    """Source: kat_vectors of the Random123 library, lines "philox4x32 10"."""
    assert reference.philox4x32(counter, key) == expected
    arrays = tuple(np.full(3, word, np.uint64) for word in counter)
    for got, wanted in zip(reference.philox4x32(arrays, key), expected, strict=True):
        np.testing.assert_array_equal(got, wanted)


# Bounded draws and the shuffle, by hand


def test_bounded_takes_the_high_word_and_rejects_the_surplus() -> None:
    # bound 3: 2**32 = 3 * 1431655765 + 1, so one word is too many, and Lemire drops the one with low half < 1: word 0.
    words = iter([0, 1, 1431655766, ONES])
    assert [bounded(words, 3) for _ in range(3)] == [0, 1, 2]  # 0 is rejected; 3 * 1431655766 = 2**32 + 2
    assert next(words, None) is None


def test_bounded_is_exactly_uniform_around_each_boundary() -> None:
    # Value v is hit by the words from ceil(v * 2**32 / 5) on. As 2**32 = 5 * 858993459 + 1, word 0 is surplus.
    firsts = [math.ceil(value * 2**32 / 5) for value in range(6)]
    for value in range(5):
        accepted_from = firsts[value] + (value == 0)
        assert bounded(iter([accepted_from]), 5) == value
        assert bounded(iter([firsts[value + 1] - 1]), 5) == value
        assert firsts[value + 1] - accepted_from == 2**32 // 5


def test_permutation_of_three_by_hand(backend: str) -> None:
    seed, stream = 5 << 32 | 9, 3 << 40 | 11
    # key: low and high half of the seed; counter: block 0, low and high half of the stream, tag 2
    w0, w1, _, _ = reference.philox4x32((0, 11, 0, 2 << 24 | 3 << 8), (9, 5))
    order = [0, 1, 2]
    j = (w0 * 3) >> 32
    order[2], order[j] = order[j], order[2]
    j = (w1 * 2) >> 32
    order[1], order[j] = order[j], order[1]
    assert kernels.permutation(3, seed=seed, stream=stream).tolist() == order


# Every backend equals the reference


@pytest.mark.parametrize("n", [0, 1, 2, 3, 4, 5, 8, 127, 4096])
def test_is_identical_to_the_reference(backend: str, n: int) -> None:
    for seed, stream in [(0, 0), (1, 2), (2**64 - 1, 2**56 - 1), (2**63, 2**40), (2**32, 2**32)]:
        order = kernels.permutation(n, seed=seed, stream=stream)
        assert order.dtype == np.int64
        np.testing.assert_array_equal(order, reference.permutation(n, seed, stream))


def test_is_identical_to_the_reference_where_words_are_rejected(backend: str) -> None:
    n, taken = 300_000, 0

    def counted() -> Iterator[int]:
        nonlocal taken
        for word in random_words(7, 1):
            taken += 1
            yield word

    words = counted()
    for i in range(n - 1, 0, -1):
        bounded(words, i + 1)
    assert taken > n - 1, "no word was rejected: this seed does not test what it says"
    np.testing.assert_array_equal(kernels.permutation(n, seed=7, stream=1), reference.permutation(n, 7, 1))


# What a shuffle is


@given(n=st.integers(0, 300), seed=SEEDS, stream=STREAMS)
def test_is_a_bijection_and_a_function_of_its_arguments(backend: str, n: int, seed: int, stream: int) -> None:
    order = kernels.permutation(n, seed=seed, stream=stream)
    np.testing.assert_array_equal(np.sort(order), np.arange(n))
    np.testing.assert_array_equal(order, kernels.permutation(n, seed=seed, stream=stream))


@given(seed=SEEDS, stream=STREAMS, bit=st.integers(0, 55))
def test_another_seed_or_stream_gives_another_order(backend: str, seed: int, stream: int, bit: int) -> None:
    order = kernels.permutation(100, seed=seed, stream=stream)  # two orders of 100 agree by chance once in 100!
    assert not np.array_equal(order, kernels.permutation(100, seed=seed, stream=stream ^ 1 << bit))
    assert not np.array_equal(order, kernels.permutation(100, seed=seed ^ 1 << bit, stream=stream))


def test_all_orders_of_four_are_equally_likely(backend: str) -> None:
    draws = 24 * 400
    counts = Counter(tuple(kernels.permutation(4, seed=1, stream=stream).tolist()) for stream in range(draws))
    assert len(counts) == math.factorial(4)
    chi_square = sum((count - 400) ** 2 / 400 for count in counts.values())
    # 23 degrees of freedom: mean 23, standard deviation sqrt(46) = 6.8. Too even is wrong too.
    assert 23 - 3 * math.sqrt(46) < chi_square < 23 + 5 * math.sqrt(46)


def test_stream_id_separates_ranks_and_epochs() -> None:
    ids = {kernels.stream_id(rank, epoch) for rank in (0, 1, 2**16 - 1) for epoch in (0, 1, 2**40 - 1)}
    assert len(ids) == 9
    assert max(ids) == 2**56 - 1
    assert kernels.stream_id(3, 5) == reference.stream_id(3, 5) == 3 * 2**40 + 5


def test_out_is_overwritten_whole_and_returned(backend: str) -> None:
    out = np.full(1000, -1, np.int64)
    assert kernels.permutation(1000, seed=3, stream=4, out=out) is out
    np.testing.assert_array_equal(out, reference.permutation(1000, 3, 4))


def test_numpy_integers_are_integers(backend: str) -> None:
    order = kernels.permutation(np.int64(9), seed=np.uint64(2**63), stream=np.int32(4))
    np.testing.assert_array_equal(order, reference.permutation(9, 2**63, 4))
