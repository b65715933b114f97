"""Command lines run in this process, for speed; tests/test_cli.py also runs real ones."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from ppo_fast import checkpoint, kernels

# A run of about a tenth of a second: 4 environments x 32 steps, two minibatches of 64, no TensorBoard.
_TINY = (
    "--env InvertedPendulum-v5 --num-envs 4 --num-steps 32 --minibatch-size 64 --update-epochs 1 --total-timesteps 600 "
    "--update eager --device cpu --eval-every 0 --eval-episodes 2 --checkpoint-every 200 --log"
)
TINY = _TINY.split()


def with_a_best_one(run: Path, copy: Path) -> Path:
    """Copy a run and let its oldest checkpoint be the best; return that one's path."""
    shutil.copytree(run, copy)
    oldest, *_, newest = sorted((copy / "checkpoints").iterdir())
    saved = checkpoint.load(newest)
    state = {**saved.state, "best_step": int(oldest.name.removeprefix("step_"))}
    checkpoint.save(newest.parent, state["env_steps"], model=saved.model, train=saved.train, state=state, keep=9)
    return oldest


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str


def call(main: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str], *args: str) -> Outcome:
    """Call a command's ``main`` and put back what it changes in this process."""
    before = kernels.active()
    capsys.readouterr()
    try:
        code = main(list(args))
    finally:
        logging.captureWarnings(False)
        kernels.use(before)
    captured = capsys.readouterr()
    return Outcome(code, captured.out, captured.err)


def files_below(path: Path) -> dict[str, bytes | None]:
    """Return every file (with its bytes) and directory (None) below ``path``."""
    return {str(p.relative_to(path)): p.read_bytes() if p.is_file() else None for p in sorted(path.rglob("*"))}
