"""Checkpoints: safetensors and JSON in a directory, verified by SHA-256, written so that a kill leaves no half.

    step_000000250000/
        model.safetensors      parameters by name, moments of the observation normaliser
        train.safetensors      optimizer, reward scaler, running episodes
        state.json             counters, config, environment, versions, format_version
        manifest.json          size and SHA-256 of the three files above

A checkpoint is written to a temporary directory, synced, and renamed; nothing in it is ever executed when read.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from ppo_fast.errors import CheckpointError

log = logging.getLogger(__name__)

FORMAT_VERSION = 1
_TENSOR_FILES = ("model.safetensors", "train.safetensors")
_FILES = (*_TENSOR_FILES, "state.json")


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds, verified."""

    path: Path
    model: dict[str, Tensor]
    train: dict[str, Tensor]
    state: dict[str, Any]


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees all of it or what stood there before."""
    tmp = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    try:
        _write_synced(tmp, data)
        os.replace(tmp, path)
    finally:
        tmp.unlink(missing_ok=True)
    _sync_dir(path.parent)


def to_json(value: Any) -> bytes:
    """Encode as indented JSON that every parser reads (NaN and infinity are refused)."""
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


def save(
    directory: Path, env_steps: int, *, model: dict[str, Tensor], train: dict[str, Tensor], state: dict[str, Any],
    keep: int,
) -> Path:
    """Write ``directory/step_<env_steps>`` atomically, then remove the oldest beyond ``keep``.

    Returns:
        The checkpoint's path.
    """
    directory.mkdir(parents=True, exist_ok=True)
    remove_stale(directory)
    final = directory / f"step_{env_steps:012d}"
    tmp = directory / f".tmp-{os.getpid()}-{final.name}"
    tmp.mkdir()
    contents = {
        "model.safetensors": safetensors.torch.save({k: v.contiguous() for k, v in model.items()}),
        "train.safetensors": safetensors.torch.save({k: v.contiguous() for k, v in train.items()}),
        "state.json": to_json({"format_version": FORMAT_VERSION, **state}),
    }
    manifest = {name: {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in contents.items()}
    for name, data in contents.items():
        _write_synced(tmp / name, data)
    _write_synced(tmp / "manifest.json", to_json({"format_version": FORMAT_VERSION, "files": manifest}))
    _sync_dir(tmp)
    if final.exists():  # the same step again, after a resume: the new one is as good as the old one
        shutil.rmtree(final)
    os.rename(tmp, final)
    _sync_dir(directory)
    for old in find(directory)[keep:]:
        shutil.rmtree(old)
    return final


def find(directory: Path) -> list[Path]:
    """Return the checkpoints below ``directory``, newest first; unfinished ones are not among them."""
    if not directory.is_dir():
        return []
    return sorted((p for p in directory.glob("step_*") if p.is_dir() and p.name[5:].isdigit()), reverse=True)


def remove_stale(directory: Path) -> None:
    """Remove what a killed process left half-written."""
    for tmp in directory.glob(".tmp-*"):
        shutil.rmtree(tmp, ignore_errors=True)


def load(path: Path) -> Checkpoint:
    """Read one checkpoint and verify every byte.

    Raises:
        CheckpointError: it is missing, damaged, or of a format that this version does not read; the file is named.
    """
    manifest = _read_json(path / "manifest.json")
    if manifest.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has checkpoint format {manifest.get('format_version')!r}; this version reads {FORMAT_VERSION}"
        )
    files = manifest.get("files")
    if not isinstance(files, dict) or set(files) != set(_FILES):
        raise CheckpointError(f"{path / 'manifest.json'} must list exactly {', '.join(_FILES)}")
    data: dict[str, bytes] = {}
    for name in _FILES:
        data[name] = _read_verified(path / name, files[name])
    try:
        tensors = [safetensors.torch.load(data[name]) for name in _TENSOR_FILES]
    except (safetensors.SafetensorError, ValueError) as err:
        raise CheckpointError(f"{path} holds tensors that cannot be read: {err}") from None
    return Checkpoint(path, tensors[0], tensors[1], json.loads(data["state.json"]))


def load_newest(directory: Path) -> Checkpoint:
    """Read the newest good checkpoint below ``directory``; damaged ones are named, set aside, and passed over.

    Raises:
        CheckpointError: there is none, or none is good.
    """
    candidates = find(directory)
    for path in candidates:
        try:
            return load(path)
        except CheckpointError as err:
            aside = path.with_name(path.name + ".corrupt")
            log.warning("damaged checkpoint set aside as %s: %s", aside.name, err)
            shutil.rmtree(aside, ignore_errors=True)
            os.rename(path, aside)
    what = f"all {len(candidates)} checkpoints in {directory} are damaged" if candidates else f"no checkpoint in {directory}"
    raise CheckpointError(what)


def locate(path: str | Path) -> Checkpoint:
    """Read the checkpoint that ``path`` means: a run directory (its newest) or one checkpoint directory.

    Raises:
        CheckpointError: there is nothing to read at ``path``.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"no run or checkpoint at {str(path)!r}")
    if (path / "manifest.json").exists() or path.name.startswith("step_"):
        return load(path)
    return load_newest(path / "checkpoints")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except OSError as err:
        raise CheckpointError(f"{path} cannot be read: {err.strerror}") from None
    except ValueError:
        raise CheckpointError(f"{path} is not JSON") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return value


def _read_verified(path: Path, entry: Any) -> bytes:
    try:
        size, digest = int(entry["size"]), str(entry["sha256"])
        if path.stat().st_size != size:
            raise CheckpointError(f"{path} is damaged: its size is not the {size} bytes of the manifest")
        data = path.read_bytes()
    except OSError as err:
        raise CheckpointError(f"{path} cannot be read: {err.strerror}") from None
    except (KeyError, TypeError, ValueError) as err:
        if isinstance(err, CheckpointError):
            raise
        raise CheckpointError(f"{path.parent / 'manifest.json'} has no size and sha256 for {path.name}") from None
    if hashlib.sha256(data).hexdigest() != digest:
        raise CheckpointError(f"{path} is damaged: its SHA-256 is not that of the manifest")
    return data


def _write_synced(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_dir(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
