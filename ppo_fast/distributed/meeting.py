"""How the processes that were started together find each other."""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from ppo_fast.distributed.peers import ALONE, Peers, TorchPeers, first_line
from ppo_fast.errors import ConfigError, PeerError

VARIABLES = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
RENDEZVOUS_S = 60.0  # for all processes to find each other
SILENCE_S = 1800.0  # after which a process that lives and says nothing, or a network that is cut, counts as dead
_POLL_S = 0.02


def connect(timeout_s: float = RENDEZVOUS_S) -> Peers:
    """Return the processes among which this one was started: :data:`ALONE` unless ``WORLD_SIZE`` is above 1.

    A connection that is there already is taken as it is, if it serves the CPU and as many processes.

    Raises:
        ConfigError: a variable that ``torchrun`` sets is missing or makes no sense, or the connection does not fit.
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
    if dist.is_initialized():
        ways, count = dist.get_backend_config(), dist.get_world_size()
        if "cpu:" not in ways or count != size:
            raise ConfigError(
                f"torch.distributed was initialised with {ways!r} for {count} processes: ppo_fast needs "
                f"one that serves the CPU, such as 'cpu:gloo,cuda:nccl', for WORLD_SIZE = {size}"
            )
    else:
        store = _meet(rank, size, timeout_s)
        both = dist.is_nccl_available() and torch.cuda.is_available()
        with _met(rank, size):
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if both else "gloo", store=store, rank=rank, world_size=size,
                timeout=timedelta(seconds=SILENCE_S),
            )  # fmt: skip
    return TorchPeers(local_rank)


def _meet(rank: int, size: int, timeout_s: float) -> Any:
    """Return the store of these processes, in which nothing stands that others have left."""
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    until = time.monotonic() + timeout_s
    with _met(rank, size):
        store = next(rendezvous("env://", timeout=timedelta(seconds=timeout_s)))[0]
        me = secrets.token_hex(8)
        store.set(f"ppo_fast/here/{rank}", me)
        while time.monotonic() < until:
            if roll := _roll_call(store, rank, size, me):
                return PrefixStore(hashlib.sha256(roll.encode()).hexdigest(), store)
            time.sleep(_POLL_S)
        absent = [str(other) for other in range(size) if not store.check([f"ppo_fast/here/{other}"])]
    who = f"process {', '.join(absent)} did not come" if absent else "the processes did not come together"
    raise PeerError(f"process {rank} of {size}: {who} within {timeout_s:.0f} s to {_place()}")


def _roll_call(store: Any, rank: int, size: int, me: str) -> str:
    """Return the names of all processes if each has seen its own among them, else nothing.

    The store of ``torchrun`` outlives processes that are killed and started again, and so do their names. The first
    process calls the names that it finds, until every one has been answered by who bears it today.
    """

    def read(name: str) -> str:
        return store.get(f"ppo_fast/{name}").decode() if store.check([f"ppo_fast/{name}"]) else ""

    if rank:
        roll = read("roll")
        if roll.split(" ")[rank : rank + 1] != [me]:
            return ""
        store.set(f"ppo_fast/answer/{rank}", roll)
        return roll if read("complete") == roll else ""
    names = [read(f"here/{other}") for other in range(size)]
    roll = " ".join(names)
    if all(names):
        store.set("ppo_fast/roll", roll)
    if not all(names) or any(read(f"answer/{other}") != roll for other in range(1, size)):
        return ""
    store.set("ppo_fast/complete", roll)
    return roll


@contextmanager
def _met(rank: int, size: int) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, OSError, ValueError) as err:
        raise PeerError(
            f"process {rank} of {size}: the processes did not meet at {_place()}, which MASTER_ADDR and MASTER_PORT "
            f"name ({first_line(err)})"
        ) from None


def _place() -> str:
    return f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"


def _number(name: str, low: int, high: int) -> int:
    text = os.environ[name]
    if not (text.isascii() and text.isdigit() and low <= int(text) < high):
        raise ConfigError(f"{name} must be an integer in [{low}, {high}), as torchrun sets it, got {text!r}")
    return int(text)
