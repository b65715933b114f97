"""Several processes that train together: what they say to each other, and the arithmetic of what they share.

Here processes are threads, which is quick; tests/test_torchrun.py starts real ones.
"""

from __future__ import annotations

import socket
import time
from typing import Any

import numpy as np
import pytest
from peers import ThreadPeers, all_of, in_threads

from ppo_fast import distributed
from ppo_fast.cpus import cpu_budget, cpu_quota, num_cpus
from ppo_fast.distributed import ALONE, Peers, connect
from ppo_fast.errors import CheckpointError, ConfigError, EnvError, NonFiniteError, PeerError


# --- what they say to each other -------------------------------------------------------------------------------------
def test_all_learn_what_one_says() -> None:
    def work(peers: Peers) -> Any:
        rank = peers.rank
        return (
            peers.any(rank == 2),
            peers.any(False),
            peers.agreed("" if rank == 0 else f"SIG{rank}"),
            peers.agreed(""),
            peers.first(lambda: f"made by {rank}".encode()),
            [each.tolist() for each in peers.gather(np.array([rank, 10.0]))],
        )

    expected = (True, False, "SIG1", "", b"made by 0", [[0, 10], [1, 10], [2, 10]])
    assert all_of(3, work) == [expected] * 3


def test_one_that_fails_has_all_fail_in_the_same_way() -> None:
    def work(peers: Peers) -> None:
        with peers.together():
            pass
        with peers.together():
            if peers.rank == 1:
                raise NonFiniteError("rewards has 1 non-finite row", [(3, 4)])

    first, second, third = in_threads(3, work)
    assert type(first) is type(second) is type(third) is NonFiniteError
    assert str(first) == str(third) == "process 1: rewards has 1 non-finite row"
    assert str(second) == "rewards has 1 non-finite row"
    assert isinstance(second, NonFiniteError)
    assert second.places == [(3, 4)]


def test_two_that_fail_differently_fail_as_the_first_does() -> None:
    class PrivateError(CheckpointError):
        pass

    def work(peers: Peers) -> None:
        with peers.together():
            raise PrivateError("damaged") if peers.rank == 0 else EnvError("unknown")

    first, second = in_threads(2, work)
    assert isinstance(first, PrivateError)
    assert (type(second), str(second)) == (CheckpointError, "process 0: damaged")


def test_what_the_first_cannot_make_fails_in_all() -> None:
    def make() -> bytes:
        raise ConfigError("no such directory")

    first, second = in_threads(2, lambda peers: peers.first(make))
    assert (str(first), str(second)) == ("no such directory", "process 0: no such directory")


def test_other_bytes_are_found_and_named() -> None:
    def work(peers: Peers) -> None:
        peers.require_equal("the options", b"equal")
        peers.require_equal("parameters after iteration 7", b"123" if peers.rank != 2 else b"124")

    for error in in_threads(4, work):
        assert isinstance(error, PeerError)
        assert str(error) == "parameters after iteration 7 of process 2 are not those of process 0"


def test_one_process_talks_to_itself() -> None:
    values = np.array([1.0, 2.0])
    ALONE.sum_(values)
    assert values.tolist() == [1.0, 2.0]
    assert (ALONE.any(True), ALONE.agreed("x"), ALONE.first(lambda: b"y")) == (True, "x", b"y")
    with pytest.raises(EnvError, match="^as it is$"), ALONE.together():
        raise EnvError("as it is")
    ALONE.require_equal("nothing", b"")
    ALONE.close()


# --- finding each other ----------------------------------------------------------------------------------------------
def variables(monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    usual = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    for name, value in {**usual, "MASTER_PORT": str(port), **values}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_nobody_meets_says_so_in_time(monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    variables(monkeypatch, RANK=str(rank), LOCAL_RANK=str(rank))
    start = time.monotonic()
    with pytest.raises(PeerError, match=f"process {rank} of 2: .* 127.0.0.1:") as caught:
        connect(timeout_s=1.0)
    assert time.monotonic() - start < 10
    assert "\n" not in str(caught.value)
    assert distributed.RENDEZVOUS_S <= 60


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("WORLD_SIZE", "two", r"WORLD_SIZE must be an integer in \[1, 65536\)"),
        ("WORLD_SIZE", "0", "WORLD_SIZE must be an integer"),
        ("RANK", "2", r"RANK must be an integer in \[0, 2\)"),
        ("LOCAL_RANK", "-1", "LOCAL_RANK must be an integer"),
        ("LOCAL_WORLD_SIZE", "0", "LOCAL_WORLD_SIZE must be an integer"),
        ("MASTER_PORT", "x", "MASTER_PORT must be an integer"),
        ("MASTER_ADDR", "", "WORLD_SIZE is 2, but MASTER_ADDR is not set: start the processes with torchrun"),
    ],
)
def test_variables_that_make_no_sense(monkeypatch: pytest.MonkeyPatch, name: str, value: str, complaint: str) -> None:
    variables(monkeypatch, **{name: value})
    with pytest.raises(ConfigError, match=complaint):
        connect()


def test_one_process_of_torchrun_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    variables(monkeypatch, WORLD_SIZE="1", LOCAL_WORLD_SIZE="1")
    assert connect() is ALONE


def test_processes_of_a_machine_share_its_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    whole = min(num_cpus(), cpu_quota())
    assert cpu_budget() == max(1.0, whole)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert cpu_budget() == max(1.0, whole / 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4096")
    assert cpu_budget() == 1.0
