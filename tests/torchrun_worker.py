"""What tests/test_torchrun.py has torchrun start: ``torchrun_worker.py DIRECTORY KILLS``.

The processes train, and are killed so often; then one of them is told to stop, and at last all come to the end.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from test_processes import shared_state

from ppo_fast import checkpoint, train
from ppo_fast.distributed import Peers, connect
from ppo_fast.errors import ConfigError
from ppo_fast.run_dir import RunDir
from ppo_fast.trainer import Trainer

RANK, RESTARTS = (int(os.environ.get(name, "0")) for name in ("RANK", "TORCHELASTIC_RESTART_COUNT"))
_ARGS = (
    "--env Hopper-v5 --num-envs 4 --num-steps 16 --minibatch-size 32 --update-epochs 2 --total-timesteps 1500 "
    "--eval-every 600 --eval-episodes 2 --checkpoint-every 400 --keep-checkpoints 2 --device cpu --resume auto --log"
)
ARGS = _ARGS.split()


def talk(peers: Peers) -> dict[str, Any]:
    """Return what each word of :class:`Peers` gives, as JSON."""
    total, tensor = np.full(5, 0.1 + peers.rank), torch.full((3,), 1.5 + peers.rank)
    peers.sum_(total)
    peers.sum_(tensor)
    failure = ""
    try:
        with peers.together():
            if peers.rank == 1:
                raise ConfigError("a mistake")
    except ConfigError as err:
        failure = str(err)
    peers.require_equal("nothing", b"equal")
    return {
        "who": [peers.rank, peers.size, peers.local_rank, peers.backend],
        "sum": [total.tolist(), tensor.tolist()],
        "gather": [each.tolist() for each in peers.gather(np.array([peers.rank], np.int64))],
        "bytes": [each.decode() for each in peers.gather_bytes(b"long" * 1000 if peers.rank else b"")],
        "first": peers.first(lambda: b"of the first").decode(),
        "any": [peers.any(peers.rank == 1), peers.any(False)],
        "failure": failure,
    }


def after(method: str, do: Callable[[Trainer], None]) -> None:
    """Have every trainer call ``do`` after a method of its own."""
    real = getattr(Trainer, method)

    def call(self: Trainer, *args: Any) -> Any:
        result = real(self, *args)
        do(self)
        return result

    setattr(Trainer, method, call)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def be_killed() -> None:
    """Have one process killed: in the loop, while a checkpoint is written, in a replay, and then anywhere."""
    if RESTARTS > 2:
        chance = random.Random(RESTARTS)
        if chance.randrange(2) == RANK:
            threading.Timer(chance.uniform(0.0, 3.0), die).start()
    elif (RESTARTS, RANK) == (0, 1):
        after("_advance", lambda trainer: die() if trainer.state.iteration == 7 else None)
    elif (RESTARTS, RANK) == (1, 0):
        checkpoint.sync_dir = lambda path: die()  # type: ignore[attr-defined]
    elif (RESTARTS, RANK) == (2, 1):
        after("_make_worker", lambda trainer: die())


def main(out: Path, kills: int) -> int:
    RunDir.draw = lambda self: None  # type: ignore[method-assign]
    args = [*ARGS, "--run-dir", str(out / "run")]
    if kills > RESTARTS:
        be_killed()
        return train.main(args)
    told: dict[str, Any] = {"talk": talk(connect()), "digests": []}

    def iterated(trainer: Trainer) -> None:
        told["digests"].append(hashlib.sha256(shared_state(trainer)).hexdigest())
        if RANK == 1 and len(told["digests"]) == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    after("_advance", iterated)
    told["codes"] = [train.main(args)]
    told["stopped_after"] = len(told["digests"])
    told["codes"] += [train.main(args)]
    (out / f"told-{RANK}.json").write_text(json.dumps(told))
    return 0


if __name__ == "__main__":
    for number, handler in ((signal.SIGTERM, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
        signal.signal(number, handler)  # a fork of torchrun has its
    if code := main(Path(sys.argv[1]), int(sys.argv[2])):
        sys.exit(code)
