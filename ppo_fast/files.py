"""Files that a reader sees whole or not at all, and the JSON in them."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that a reader, and whoever comes after a kill, sees all of it or what stood there before."""
    tmp = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    try:
        write_synced(tmp, data)
        os.replace(tmp, path)
    finally:
        tmp.unlink(missing_ok=True)
    sync_dir(path.parent)


def remove_stale(directory: Path) -> None:
    """Remove what a process that was killed in :func:`write_atomic` left in a directory."""
    for tmp in directory.glob(".tmp-*"):
        if not tmp.is_dir():
            tmp.unlink(missing_ok=True)


def write_synced(path: Path, data: bytes) -> None:
    """Write a file and wait until the disk has it."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_dir(path: Path) -> None:
    """Wait until the disk has the names in a directory."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def to_json(value: Any) -> bytes:
    """Encode as indented JSON that every parser reads (NaN and infinity are refused)."""
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


def to_toml(value: Any) -> str:
    """Write a value as TOML does: strings, numbers, true or false, lists, and tables with names, in one line.

    Raises:
        TypeError: TOML has no such value (None, among others).
    """
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # DEL, which only TOML escapes
    if isinstance(value, (bool, int, float)):
        return repr(value).lower()
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(to_toml, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{to_toml(str(name))} = {to_toml(each)}" for name, each in value.items()) + "}"
    raise TypeError(f"TOML has no value for {value!r}")


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a JSONL file, none if it is missing; a line that a kill cut short is skipped."""
    if not path.exists():
        return []
    if not path.is_file():
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows
