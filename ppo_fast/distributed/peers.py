"""What processes that train together say to each other."""

from __future__ import annotations

import json
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ppo_fast import errors
from ppo_fast.errors import PeerError, PPOFastError

if TYPE_CHECKING:
    from torch import Tensor


class Peers(ABC):
    """The processes of a run; this is number ``rank`` of ``size``, and number ``local_rank`` on its machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    backend: str = ""  # what carries their words, for the banner

    @abstractmethod
    def sum_(self, values: Tensor | NDArray[Any]) -> None:
        """Replace ``values`` by its sum over the processes, the same bits in each."""

    @abstractmethod
    def gather(self, array: NDArray[Any]) -> list[NDArray[Any]]:
        """Return every process's ``array`` by rank; shape and dtype are the same in all."""

    @abstractmethod
    def gather_bytes(self, data: bytes) -> list[bytes]:
        """Return every process's ``data``, of any length, by rank."""

    def any(self, flag: bool) -> bool:
        """Return whether ``flag`` is true in any process."""
        return any(self.gather_bytes(b"1" if flag else b""))

    def agreed(self, text: str) -> str:
        """Return the text of the first process whose text is not empty; empty if there is none."""
        return next((word.decode() for word in self.gather_bytes(text.encode()) if word), "")

    def first(self, make: Callable[[], bytes]) -> bytes:
        """Return in every process what ``make`` returns in the first, where alone it is called.

        Raises:
            PPOFastError: it raised one, which every process raises.
        """
        data = b""
        with self.together():
            if self.rank == 0:
                data = make()
        return self.gather_bytes(data)[0]

    def together(self) -> AbstractContextManager[None]:
        """Run the body of a ``with`` block in every process, and have all fail where one does, so that nobody waits.

        Raises:
            PPOFastError: the body raised one here, or in another process, whose message then says in which.
        """
        return self._together()

    @contextmanager
    def _together(self) -> Iterator[None]:
        own: PPOFastError | None = None
        try:
            yield
        except PPOFastError as err:
            own = err
        words = self.gather_bytes(b"" if own is None else json.dumps([_kind(own), str(own)]).encode())
        failed = next((rank for rank, word in enumerate(words) if word), None)
        if failed is None:
            return
        kind, text = json.loads(words[failed])
        if own is not None and _kind(own) == kind:
            raise own
        raise getattr(errors, kind)(f"process {failed}: {text}")  # of one kind, so that all do the same about it

    def require_equal(self, what: str, data: bytes) -> None:
        """Compare a checksum of ``data``.

        Raises:
            PeerError: it is not the same in all processes; the message names ``what`` and those that differ.
        """
        sums = [int(each[0]) for each in self.gather(np.array([zlib.crc32(data)], np.int64))]
        if other := [str(rank) for rank, each in enumerate(sums) if each != sums[0]]:
            raise PeerError(f"{what} of process {', '.join(other)} are not those of process 0")

    def close(self) -> None:
        """Wait for the others, and take leave."""
        self.gather_bytes(b"")


class Alone(Peers):
    """One process."""

    def sum_(self, values: Tensor | NDArray[Any]) -> None:
        """Leave ``values`` as they are."""

    def gather(self, array: NDArray[Any]) -> list[NDArray[Any]]:
        """Return ``array`` alone."""
        return [array]

    def gather_bytes(self, data: bytes) -> list[bytes]:
        """Return ``data`` alone."""
        return [data]

    def together(self) -> AbstractContextManager[None]:
        """Return a context that does nothing."""
        return nullcontext()

    def require_equal(self, what: str, data: bytes) -> None:
        """Do nothing."""


ALONE = Alone()


class TorchPeers(Peers):
    """Several processes, by ``torch.distributed``: gloo for what is in main memory, NCCL for what is on a CUDA device.

    Every method raises :class:`PeerError` where another process has ended or cannot be reached.

    Args:
        local_rank: number of this process on its machine.
    """

    def __init__(self, local_rank: int) -> None:
        import torch
        import torch.distributed as dist

        self._torch, self._dist = torch, dist
        self.rank, self.size, self.local_rank = dist.get_rank(), dist.get_world_size(), local_rank
        self.backend = "gloo and NCCL" if dist.is_nccl_available() and torch.cuda.is_available() else "gloo"

    def sum_(self, values: Tensor | NDArray[Any]) -> None:
        """Replace ``values`` by its sum over the processes; every number is added up in one place and sent to all."""
        tensor = self._torch.from_numpy(values) if isinstance(values, np.ndarray) else values
        with self._reachable():
            self._dist.all_reduce(tensor)

    def gather(self, array: NDArray[Any]) -> list[NDArray[Any]]:
        """Return every process's ``array`` by rank."""
        own = self._torch.from_numpy(np.ascontiguousarray(array))
        out = [self._torch.empty_like(own) for _ in range(self.size)]
        with self._reachable():
            self._dist.all_gather(out, own)
        return [tensor.numpy() for tensor in out]

    def gather_bytes(self, data: bytes) -> list[bytes]:
        """Return every process's ``data`` by rank; their sizes go first, and the longest decides what is sent."""
        sizes = [int(size[0]) for size in self.gather(np.array([len(data)], np.int64))]
        if not any(sizes):
            return [b""] * self.size
        padded = np.zeros(max(sizes), np.uint8)
        padded[: len(data)] = np.frombuffer(data, np.uint8)
        return [row[:size].tobytes() for row, size in zip(self.gather(padded), sizes, strict=True)]

    def close(self) -> None:
        """Wait for the others, and end the connection."""
        super().close()
        self._dist.destroy_process_group()

    @contextmanager
    def _reachable(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as err:  # of torch.distributed, which has no class of its own for a peer that has gone
            raise PeerError(
                f"process {self.rank} of {self.size} goes no further: another one has ended or cannot be reached "
                f"({first_line(err)})"
            ) from None


def _kind(err: PPOFastError) -> str:
    """Return the name of the nearest class of ``err`` that every module knows."""
    return next(kind.__name__ for kind in type(err).__mro__ if kind.__module__ == errors.__name__)


def first_line(err: BaseException) -> str:
    """Return the first line of what an error says, or its kind."""
    return (str(err).strip().splitlines() or [type(err).__name__])[0][:200]
