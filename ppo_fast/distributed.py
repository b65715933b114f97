"""Processes that train one policy together: who they are, and the few things that they say to each other.

A run of one process has :data:`ALONE`, whose words reach nobody and cost nothing. :func:`connect` finds the others
where ``torchrun``, or whatever sets the same variables, has started several. ``torch.distributed`` is imported only
then, and nothing is pickled: what is sent are the bytes of arrays and of JSON.

Every method but ``close`` must be called by all processes, in the same order.
"""

from __future__ import annotations

import json
import os
import time
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ppo_fast import errors
from ppo_fast.errors import ConfigError, PeerError, PPOFastError

if TYPE_CHECKING:
    from torch import Tensor

VARIABLES = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
RENDEZVOUS_S = 60.0  # for all processes to find each other
SILENCE_S = 1800.0  # after which a process that lives and says nothing, or a network that is cut, counts as dead


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
                f"({_first_line(err)})"
            ) from None


def connect(timeout_s: float = RENDEZVOUS_S) -> Peers:
    """Return the processes among which this one was started: :data:`ALONE` unless ``WORLD_SIZE`` is above 1.

    A connection that is there already is taken as it is.

    Raises:
        ConfigError: a variable that ``torchrun`` sets is missing or makes no sense.
        PeerError: the others did not come within ``timeout_s`` seconds.
    """
    size = _number("WORLD_SIZE", 1, 2**16) if "WORLD_SIZE" in os.environ else 1
    if size == 1:
        return ALONE
    if missing := [name for name in VARIABLES if not os.environ.get(name)]:
        raise ConfigError(
            f"WORLD_SIZE is {size}, but {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set: "
            "start the processes with torchrun, or unset WORLD_SIZE to train in one"
        )
    rank, local_rank = _number("RANK", 0, size), _number("LOCAL_RANK", 0, size)
    _number("LOCAL_WORLD_SIZE", local_rank + 1, size + 1), _number("MASTER_PORT", 1, 2**16)
    import torch
    import torch.distributed as dist

    if not dist.is_available() or not dist.is_gloo_available():
        raise ConfigError(f"WORLD_SIZE is {size}, but this build of torch has no torch.distributed with gloo")
    if not dist.is_initialized():
        store = _meet(rank, size, timeout_s)
        both = dist.is_nccl_available() and torch.cuda.is_available()
        with _met(rank, size):
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if both else "gloo", store=store, rank=rank, world_size=size,
                timeout=timedelta(seconds=SILENCE_S),
            )  # fmt: skip
    return TorchPeers(local_rank)


def _meet(rank: int, size: int, timeout_s: float) -> Any:
    """Return the store of the run once every process has written its name into it."""
    from torch.distributed.rendezvous import rendezvous

    until = time.monotonic() + timeout_s
    names = [f"ppo_fast/{other}" for other in range(size)]
    with _met(rank, size):
        store = next(rendezvous("env://", timeout=timedelta(seconds=timeout_s)))[0]
        store.set(names[rank], "here")
    try:
        store.wait(names, timedelta(seconds=max(until - time.monotonic(), 0.1)))
    except RuntimeError:
        absent = ", ".join(str(other) for other, name in enumerate(names) if not store.check([name]))
        raise PeerError(
            f"process {rank} of {size}: process {absent} did not come within {timeout_s:.0f} s to {_place()}"
        ) from None
    return store


@contextmanager
def _met(rank: int, size: int) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, OSError, ValueError) as err:
        raise PeerError(
            f"process {rank} of {size}: the processes did not meet at {_place()}, which MASTER_ADDR and MASTER_PORT "
            f"name ({_first_line(err)})"
        ) from None


def _place() -> str:
    return f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"


def _number(name: str, low: int, high: int) -> int:
    text = os.environ[name]
    if not (text.isascii() and text.isdigit() and low <= int(text) < high):
        raise ConfigError(f"{name} must be an integer in [{low}, {high}), as torchrun sets it, got {text!r}")
    return int(text)


def _kind(err: PPOFastError) -> str:
    """Return the name of the nearest class of ``err`` that every module knows."""
    return next(kind.__name__ for kind in type(err).__mro__ if kind.__module__ == errors.__name__)


def _first_line(err: BaseException) -> str:
    return (str(err).strip().splitlines() or [type(err).__name__])[0][:200]
