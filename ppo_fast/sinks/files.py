"""``metrics.jsonl`` and ``evaluations.jsonl``: one JSON object a line, flushed as it comes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import IO, Any

from ppo_fast.files import read_jsonl, write_atomic
from ppo_fast.sinks import Metrics


class JsonlSink:
    """Append rows to the two files of a run directory.

    Args:
        run_dir: where they are.
        resumed_at: ``env_steps`` of the checkpoint a run goes on from; rows of later steps are removed, since they are
            about to be written again.
    """

    def __init__(self, run_dir: Path, *, resumed_at: int | None = None) -> None:
        self._paths = {name: run_dir / f"{name}.jsonl" for name in ("metrics", "evaluations")}
        self._resumed_at = resumed_at
        self._files: dict[str, IO[str]] = {}

    def start(self, config: dict[str, Any], info: dict[str, Any]) -> None:
        """Cut the files back if a run goes on, and open them."""
        last = {name: self._resumed_at for name in self._paths}
        if self._resumed_at is not None and self._resumed_at >= config["total_timesteps"]:
            last["evaluations"] = self._resumed_at - 1  # a finished run is only evaluated again
        for name, path in self._paths.items():
            limit = last[name]
            if limit is not None and path.exists():
                rows = [row for row in read_jsonl(path) if row.get("env_steps", 0) <= limit]
                write_atomic(path, "".join(json.dumps(row) + "\n" for row in rows).encode())
            self._files[name] = open(path, "a", encoding="utf-8")  # noqa: SIM115 - closed by close()

    def log(self, metrics: Metrics) -> None:
        """Append one row to metrics.jsonl."""
        self._append("metrics", metrics)

    def evaluation(self, record: dict[str, Any]) -> None:
        """Append one row to evaluations.jsonl."""
        self._append("evaluations", record)

    def close(self) -> None:
        """Close both files."""
        for file in self._files.values():
            file.close()

    def _append(self, name: str, row: dict[str, Any]) -> None:
        self._files[name].write(json.dumps(row, allow_nan=False) + "\n")
        self._files[name].flush()
