"""The processes of a run, played by threads of one process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch

from ppo_fast.distributed import Peers

Result = TypeVar("Result")


class ThreadPeers(Peers):
    """One of several threads; what they say is handed over at a barrier."""

    def __init__(self, rank: int, barrier: threading.Barrier, slots: list[Any]) -> None:
        self.rank, self.size, self.local_rank, self.backend = rank, len(slots), rank, "threads"
        self.barrier, self._slots = barrier, slots
        self.calls = 0

    def _exchange(self, value: Any) -> list[Any]:
        self.calls += 1
        self._slots[self.rank] = value
        self.barrier.wait(60)
        values = list(self._slots)
        self.barrier.wait(60)
        return values

    def sum_(self, values: Any) -> None:
        copies = self._exchange(values.numpy().copy() if isinstance(values, torch.Tensor) else values.copy())
        total = np.add.reduce(copies)
        if isinstance(values, torch.Tensor):
            values.copy_(torch.from_numpy(total))
        else:
            values[...] = total

    def gather(self, array: Any) -> list[Any]:
        arrays = self._exchange(np.array(array))
        assert len({(each.shape, each.dtype) for each in arrays}) == 1
        return arrays

    def gather_bytes(self, data: bytes) -> list[bytes]:
        return self._exchange(data)


def in_threads(size: int, work: Callable[[ThreadPeers], Result]) -> list[Result | BaseException]:
    """Return what ``work`` returns for each of ``size`` peers, or the error that it raises."""
    barrier, slots = threading.Barrier(size), [None] * size
    results: list[Any] = [None] * size

    def run(rank: int) -> None:
        try:
            results[rank] = work(ThreadPeers(rank, barrier, slots))
        except BaseException as err:
            results[rank] = err
            if isinstance(err, (AssertionError, threading.BrokenBarrierError)) or not isinstance(err, Exception):
                barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def all_of(size: int, work: Callable[[ThreadPeers], Result]) -> list[Result]:
    """Return what ``work`` returns for each peer; its first error is raised."""
    results = in_threads(size, work)
    errors = [result for result in results if isinstance(result, BaseException)]
    for error in sorted(errors, key=lambda err: isinstance(err, threading.BrokenBarrierError)):
        raise error
    return results  # type: ignore[return-value]
