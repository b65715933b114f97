"""``metrics.jsonl`` and ``evaluations.jsonl``: one JSON object a line, flushed as it comes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ppo_fast.checkpoint import write_atomic
from ppo_fast.sinks import Metrics


class JsonlSink:
    """Append rows to the two files of a run directory.

    Args:
        run_dir: where they are.
        resumed_at: ``env_steps`` of the checkpoint a run goes on from; rows of later steps are removed, since they are
            about to be written again.
    """

    def __init__(self, run_dir: Path, *, resumed_at: int | None = None) -> None:
        self._paths = (run_dir / "metrics.jsonl", run_dir / "evaluations.jsonl")
        if resumed_at is not None:
            for path in self._paths:
                rows = [row for row in read_jsonl(path) if row["env_steps"] <= resumed_at]
                write_atomic(path, "".join(json.dumps(row) + "\n" for row in rows).encode())
        self._metrics, self._evaluations = (open(path, "a", encoding="utf-8") for path in self._paths)

    def start(self, config: dict[str, Any], info: dict[str, Any]) -> None:
        """Nothing: the trainer writes config.json."""

    def log(self, metrics: Metrics) -> None:
        """Append one row to metrics.jsonl."""
        self._metrics.write(json.dumps(metrics, allow_nan=False) + "\n")
        self._metrics.flush()

    def evaluation(self, record: dict[str, Any]) -> None:
        """Append one row to evaluations.jsonl."""
        self._evaluations.write(json.dumps(record, allow_nan=False) + "\n")
        self._evaluations.flush()

    def close(self) -> None:
        """Close both files."""
        self._metrics.close()
        self._evaluations.close()


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a JSONL file; none if it is missing, and without a last line cut short by a kill."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows
