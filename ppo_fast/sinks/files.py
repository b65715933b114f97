"""``metrics.jsonl`` and ``evaluations.jsonl``: one JSON object a line, flushed as it comes."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from pathlib import Path
from typing import Any

from ppo_fast.files import read_jsonl, write_atomic
from ppo_fast.sinks import Metrics

log = logging.getLogger(__name__)


class JsonlSink:
    """Append rows to the two files of a run directory.

    A full disk does not stop it: rows wait in memory, and are written as soon as the disk takes them again.

    Args:
        run_dir: where they are.
        resumed_at: ``env_steps`` of the checkpoint a run goes on from; rows of later steps are removed, since they are
            about to be written again.
        evaluated_at: that of the last evaluation that the checkpoint knows of.
    """

    def __init__(self, run_dir: Path, *, resumed_at: int | None = None, evaluated_at: int | None = None) -> None:
        self._paths = {name: run_dir / f"{name}.jsonl" for name in ("metrics", "evaluations")}
        self._resumed_at = resumed_at
        self._evaluated_at = resumed_at if evaluated_at is None else evaluated_at
        self._files: dict[str, _Lines] = {}

    def start(self, config: dict[str, Any], info: dict[str, Any]) -> None:
        """Cut the files back if a run goes on, and open them."""
        if self._resumed_at is not None and self._evaluated_at is not None:
            finished = self._resumed_at >= config["total_timesteps"]  # such a run is only evaluated again
            self._cut("metrics", self._resumed_at)
            self._cut("evaluations", min(self._evaluated_at, self._resumed_at - finished))
        self._files = {name: _Lines(path) for name, path in self._paths.items()}

    def rewind(self, env_steps: int) -> None:
        """Remove the rows of later steps."""
        self.close()
        for name, path in self._paths.items():
            self._cut(name, env_steps)
            self._files[name] = _Lines(path)

    def sync(self) -> None:
        """Wait until the disk has the rows: no checkpoint must outlive them."""
        for file in self._files.values():
            file.sync()

    def log(self, metrics: Metrics) -> None:
        """Append one row to metrics.jsonl."""
        self._files["metrics"].append(metrics)

    def evaluation(self, record: dict[str, Any]) -> None:
        """Append one row to evaluations.jsonl."""
        self._files["evaluations"].append(record)

    def close(self) -> None:
        """Close both files."""
        for file in self._files.values():
            file.close()
        self._files = {}

    def _cut(self, name: str, last: int) -> None:
        path = self._paths[name]
        if path.exists():
            rows = [row for row in read_jsonl(path) if type(row.get("env_steps")) is int and row["env_steps"] <= last]
            kept = "".join(json.dumps(row) + "\n" for row in rows).encode()
            if kept != path.read_bytes():
                write_atomic(path, kept)


class _Lines:
    """A file that is appended to line by line; what the disk refuses waits for the next line."""

    def __init__(self, path: Path) -> None:
        self._path, self._waiting = path, b""
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - closed by close()

    def append(self, row: dict[str, Any]) -> None:
        waited = bool(self._waiting)
        self._waiting += (json.dumps(row, allow_nan=False) + "\n").encode()
        if (reason := self._write()) and not waited:
            log.warning("%s cannot be written, its rows wait: %s", self._path, reason)

    def sync(self) -> None:
        self._write()
        with contextlib.suppress(OSError):  # what the disk refuses waits, and has been complained of
            os.fsync(self._file.fileno())

    def close(self) -> None:
        if reason := self._write():
            log.warning("%s lacks its last %d rows: %s", self._path, self._waiting.count(b"\n"), reason)
        self._file.close()

    def _write(self) -> str | None:
        """Write what waits, as far as the disk takes it; return why it did not take all."""
        try:
            while self._waiting:  # a nearly full disk takes a part: the rest follows it, so that lines stay whole
                self._waiting = self._waiting[self._file.write(self._waiting) :]
        except OSError as err:
            return err.strerror
        return None
