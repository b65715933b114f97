"""Minibatch order: an unbiased random permutation that is a pure function of (seed, stream).

NumPy's and torch's shuffles are not used, because a library may change its stream from one version to the next.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from .rng import LOW_32_BITS, PERMUTATION, key_of, philox4x32


def stream_id(rank: int, epoch: int) -> int:
    """Name the permutation of one process (rank < 2**16) and one pass over its batch (epoch < 2**40, never reset)."""
    return rank << 40 | epoch


def random_words(seed: int, stream: int) -> Iterator[int]:
    """Yield the stream's 32-bit words, four per Philox block, blocks 0, 1, 2, ... in order."""
    chunk = 256  # blocks mixed per NumPy call: only a matter of speed
    first = 0
    while True:
        block = np.arange(first, first + chunk, dtype=np.uint64)
        words = philox4x32((block, stream & LOW_32_BITS, 0, PERMUTATION | stream >> 32), key_of(seed))
        yield from np.stack(words, axis=-1).ravel().tolist()
        first += chunk


def bounded(words: Iterator[int], bound: int) -> int:
    """Draw an integer in [0, bound), exactly uniform, from 32-bit words.

        word * bound = high * 2**32 + low;   the answer is high, unless low < 2**32 mod bound: then draw again

    Each value of ``high`` is hit by either floor or ceil(2**32 / bound) words; the rejection drops one word from each
    that has too many.

    Source: Lemire, "Fast random integer generation in an interval", arXiv:1805.10941.
    """
    while True:
        product = next(words) * bound
        if (product & LOW_32_BITS) >= 2**32 % bound:
            return product >> 32


def permutation(n: int, seed: int, stream: int) -> npt.NDArray[np.int64]:
    """Return a random permutation of 0 ... n - 1, each of the n! equally likely.

        for i = n - 1, ..., 1:  swap order[i] with order[j],  j uniform in [0, i]

    Args:
        n: how many, n <= 2**31 - 1.
        seed: the run's seed, 0 <= seed < 2**64.
        stream: which of the run's permutations, 0 <= stream < 2**56, see :func:`stream_id`.

    Returns:
        (n,) int64.

    Source: Fisher and Yates 1938; Durstenfeld, CACM 7 (1964) 420.
    """
    order = list(range(n))
    words = random_words(seed, stream)
    for i in range(n - 1, 0, -1):
        j = bounded(words, i + 1)
        order[i], order[j] = order[j], order[i]
    return np.array(order, dtype=np.int64)
