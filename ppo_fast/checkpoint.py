"""Checkpoints: safetensors and JSON in a directory, verified by SHA-256, written so that a kill leaves no half.

    step_000000250000/
        model.safetensors      parameters by name, moments of the observation normaliser
        train.safetensors      optimizer, reward scaler, running episodes and what replays them
        state.json             counters, config, environment, versions, format_version
        manifest.json          size and SHA-256 of the three files above

A checkpoint is written to a temporary directory, synced, and renamed. Nothing in it is ever executed when read, no link
in it is followed, and no more of it is read than :data:`MAX_BYTES`.

Formats: 1, until 2026-11, has no log to replay the environments from; it is read still. 2 is what is written.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import logging
import os
import re
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from ppo_fast.errors import CheckpointError, LostError
from ppo_fast.files import sync_dir, to_json, write_synced

log = logging.getLogger(__name__)

FORMAT_VERSION = 2
READABLE = (1, 2)
MAX_BYTES = {".json": 16 * 2**20, ".safetensors": 2**30}  # of one file
_TENSOR_FILES = ("model.safetensors", "train.safetensors")
_NAME = re.compile(r"step_\d{12}")
_FILES = (*_TENSOR_FILES, "state.json")


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds, verified."""

    path: Path
    model: dict[str, Tensor]
    train: dict[str, Tensor]
    state: dict[str, Any]
    model_sha256: str  # of model.safetensors


class _OtherFormatError(CheckpointError):
    """A checkpoint that is whole, but of a format that this version does not read."""


def path_of(directory: Path, env_steps: int) -> Path:
    """Return where the checkpoint of ``env_steps`` is, or would be."""
    return directory / f"step_{env_steps:012d}"


def save(
    directory: Path,
    env_steps: int,
    *,
    model: dict[str, Tensor],
    train: dict[str, Tensor],
    state: dict[str, Any],
    keep: int,
    best: int | None = None,
) -> Path:
    """Write ``directory/step_<env_steps>`` atomically, then remove the oldest beyond ``keep``.

    Args:
        directory: ``checkpoints`` of a run.
        env_steps: names the checkpoint; one of the same name is replaced.
        model, train, state: tensors of the two files by name, and JSON-ready values.
        keep: how many of the newest stay, the new one among them in any case.
        best: step of one that stays beside them.

    Returns:
        The checkpoint's path.

    Raises:
        CheckpointError: it cannot be written, or is larger than what is read; those that were there before still are.
    """
    final = path_of(directory, env_steps)
    tmp = directory / f".tmp-{os.getpid()}-{final.name}"
    contents = {
        "model.safetensors": safetensors.torch.save({k: v.contiguous() for k, v in model.items()}),
        "train.safetensors": safetensors.torch.save({k: v.contiguous() for k, v in train.items()}),
        "state.json": to_json({"format_version": FORMAT_VERSION, **state}),
    }
    manifest = {
        name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in contents.items()
    }
    for name, data in contents.items():
        if len(data) > MAX_BYTES[Path(name).suffix]:
            raise CheckpointError(f"checkpoint {final} cannot be written: {name} would have {len(data)} bytes")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        remove_stale(directory)
        tmp.mkdir()
        for name, data in contents.items():
            write_synced(tmp / name, data)
        write_synced(tmp / "manifest.json", to_json({"format_version": FORMAT_VERSION, "files": manifest}))
        sync_dir(tmp)
        if final.exists():  # a rename cannot replace a directory: the old one steps aside until the new one is in
            os.rename(final, _aside(final, "replaced"))
        os.rename(tmp, final)
        sync_dir(directory)
    except OSError as err:
        shutil.rmtree(tmp, ignore_errors=True)
        with contextlib.suppress(OSError):
            os.rename(_aside(final, "replaced"), final)
        raise CheckpointError(f"checkpoint {final} cannot be written: {err.strerror}") from err
    with contextlib.suppress(OSError):  # an old one that stays costs space, not the run
        for old in [path for path in find(directory) if path != final][keep - 1 :]:
            if best is None or old != path_of(directory, best):
                os.rename(old, _aside(old, "doomed"))  # gone at once, or a kill would leave half of it under its name
    remove_stale(directory)
    return final


def find(directory: Path) -> list[Path]:
    """Return the checkpoints below ``directory``, newest first; unfinished ones are not among them."""
    if not directory.is_dir():
        return []
    found = (p for p in directory.glob("step_*") if _NAME.fullmatch(p.name) and p.is_dir() and not p.is_symlink())
    return sorted(found, reverse=True)


def remove_stale(directory: Path) -> None:
    """Remove what a killed process left half-written, and put back what it was about to replace."""
    for old in directory.glob(".tmp-*-replaced-step_*"):
        final = directory / old.name.partition("-replaced-")[2]
        if _NAME.fullmatch(final.name) and not final.exists():
            os.rename(old, final)
    for tmp in directory.glob(".tmp-*"):
        shutil.rmtree(tmp, ignore_errors=True)


def set_aside(path: Path, suffix: str) -> Path:
    """Rename a checkpoint so that it is no longer found, and return its new path."""
    names = (f"{path.name}{suffix}{f'.{i}' if i else ''}" for i in itertools.count())
    aside = next(other for name in names if not (other := path.with_name(name)).exists())
    os.rename(path, aside)
    return aside


def _aside(path: Path, why: str) -> Path:
    return path.with_name(f".tmp-{os.getpid()}-{why}-{path.name}")


def load(path: Path) -> Checkpoint:
    """Read one checkpoint and verify every byte.

    Raises:
        CheckpointError: it is missing, damaged, or of a format that this version does not read; the file is named.
    """
    manifest = _read_json(path / "manifest.json")
    version = manifest.get("format_version")
    if type(version) is not int or version not in READABLE:
        text = f"{path} has checkpoint format {version!r}; this version reads {' and '.join(map(str, READABLE))}"
        # The version stands in two files, so that a flipped bit is not taken for a format.
        whole = _read_json(path / "state.json").get("format_version") == version
        raise _OtherFormatError(text) if whole else CheckpointError(text)
    files = manifest.get("files")
    if not isinstance(files, dict) or set(files) != set(_FILES):
        raise CheckpointError(f"{path / 'manifest.json'} must list exactly {', '.join(_FILES)}")
    data = {name: _read_verified(path / name, files[name]) for name in _FILES}
    try:
        tensors = [safetensors.torch.load(data[name]) for name in _TENSOR_FILES]
    except (safetensors.SafetensorError, ValueError) as err:
        raise CheckpointError(f"{path} holds tensors that cannot be read: {err}") from None
    state = _parse_json(path / "state.json", data["state.json"])
    if state.get("format_version") != version:
        raise CheckpointError(f"{path / 'state.json'} and its manifest are of different formats")
    step = state.get("env_steps", 0)
    if type(step) is not int or not 0 <= step < 10**12:
        raise CheckpointError(f"{path / 'state.json'} has no number of steps: {step!r:.50}")
    if _NAME.fullmatch(path.name) and "env_steps" in state and path.name != path_of(path.parent, step).name:
        raise CheckpointError(f"{path} holds the state of another step, {step}")
    return Checkpoint(path, tensors[0], tensors[1], state, files["model.safetensors"]["sha256"])


def load_newest(directory: Path, *, rename_damaged: bool = False, level: int = logging.WARNING) -> Checkpoint:
    """Read the newest good checkpoint below ``directory``; damaged ones are named in a warning and passed over.

    Args:
        directory: ``checkpoints`` of a run.
        rename_damaged: set damaged ones aside as ``step_....corrupt``; for whoever is going to write here.
        level: of the messages that name damaged ones.

    Raises:
        CheckpointError: there is none, none is good, or the newest is whole but of another format.
    """
    candidates = find(directory)
    for path in candidates:
        try:
            return load(path)
        except _OtherFormatError:
            raise
        except CheckpointError as err:
            what = "passed over"
            if rename_damaged:
                try:
                    what = f"set aside as {set_aside(path, '.corrupt').name}"
                except OSError as failure:
                    what += f" (it cannot be renamed: {failure.strerror})"
            log.log(level, "damaged checkpoint %s: %s", what, err)
    if candidates:
        raise LostError(f"all {len(candidates)} checkpoints in {directory} are damaged")
    raise CheckpointError(f"no checkpoint in {directory}")


def load_best(directory: Path) -> Checkpoint:
    """Read the checkpoint below ``directory`` with the best evaluation, or raise ``CheckpointError``."""
    step = load_newest(directory).state.get("best_step")
    if type(step) is not int:
        raise CheckpointError(f"no evaluation has chosen a best checkpoint in {directory} yet")
    if not path_of(directory, step).exists():
        raise CheckpointError(f"the best checkpoint, that of step {step}, is no longer in {directory}")
    return load(path_of(directory, step))


def locate(
    path: str | Path, *, best: bool = False, rename_damaged: bool = False, level: int = logging.WARNING
) -> Checkpoint:
    """Read the checkpoint that ``path`` means: a run directory (its newest, or its best) or one checkpoint directory.

    Raises:
        CheckpointError: there is nothing to read at ``path``.
    """
    path = Path(path)
    try:
        if not path.exists():
            raise CheckpointError(f"no run or checkpoint at {str(path)!r}")
        is_one = (path / "manifest.json").exists() or path.name.startswith("step_")
        if not is_one and not (path / "checkpoints").is_dir():
            raise CheckpointError(f"{str(path)!r} is no run directory or checkpoint")
    except OSError as err:
        raise CheckpointError(f"{str(path)!r} cannot be read: {err.strerror}") from None
    if is_one and best:
        raise CheckpointError(f"the best is one of a run's checkpoints, and {str(path)!r} is a single one")
    if is_one or best:
        return load(path) if is_one else load_best(path / "checkpoints")
    return load_newest(path / "checkpoints", rename_damaged=rename_damaged, level=level)


def _read_json(path: Path) -> dict[str, Any]:
    return _parse_json(path, _read(path))


def _parse_json(path: Path, data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise CheckpointError(f"{path} is not JSON") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return value


def _read_verified(path: Path, entry: Any) -> bytes:
    try:
        size, digest = int(entry["size"]), str(entry["sha256"])
    except (KeyError, TypeError, ValueError, OverflowError):
        raise CheckpointError(f"{path.parent / 'manifest.json'} has no size and sha256 for {path.name}") from None
    data = _read(path, size)
    if hashlib.sha256(data).hexdigest() != digest:
        raise CheckpointError(f"{path} is damaged: its SHA-256 is not that of the manifest")
    return data


def _read(path: Path, size: int | None = None) -> bytes:
    """Read a regular file of at most ``MAX_BYTES``, of exactly ``size`` bytes if given; follow no link."""
    limit = MAX_BYTES[path.suffix]
    try:
        # Without O_NONBLOCK a pipe of that name would be waited for.
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
        with open(fd, "rb") as file:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise CheckpointError(f"{path} cannot be read: it is no file")
            if size is not None and status.st_size != size:
                raise CheckpointError(f"{path} is damaged: its size is not the {size} bytes of the manifest")
            if status.st_size > limit:
                raise CheckpointError(f"{path} cannot be read: it has {status.st_size} bytes, more than {limit}")
            return file.read(limit)
    except OSError as err:
        raise CheckpointError(f"{path} cannot be read: {err.strerror}") from None
