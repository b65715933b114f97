"""Metrics as TensorBoard scalars."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import Any

from ppo_fast.sinks import Metrics

# Everything without a group of its own is a property of the rollout.
_GROUPS = {
    "policy_loss": "loss", "value_loss": "loss", "entropy": "loss", "approx_kl": "loss", "clip_frac": "loss",
    "grad_norm": "loss", "explained_var": "loss", "learning_rate": "loss", "epochs": "loss",
    "sps": "time", "wall_s": "time", "startup_s": "time", "iteration": "time",
}  # fmt: skip


def tag(name: str) -> str:
    """Return ``group/name`` of a metric."""
    return name if "/" in name else f"{_GROUPS.get(name, 'rollout')}/{name}"


class TensorBoardSink:
    """Write scalars to ``<run_dir>/tensorboard``.

    Events are written as they come, by TensorBoard's own record writer. Its usual writer has a thread and a buffer: a
    kill would lose two minutes, and a full disk end the thread with a traceback that no sink could catch.
    """

    def __init__(self, run_dir: Path) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter
        from torch.utils.tensorboard import summary

        self._open, self._events, self._summary, self._text = RecordWriter, event_pb2, summary_pb2, summary.text
        self._dir = run_dir / "tensorboard"
        self._writer: Any = None

    def start(self, config: dict[str, Any], info: dict[str, Any]) -> None:
        """Open the event file and write the config as text; what was written beyond the resumed step is superseded."""
        self._dir.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
        self._writer = self._open(open(self._dir / name, "ab", buffering=0))  # noqa: SIM115 - closed by close()
        self._write(file_version="brain.Event:2")
        if info.get("resumed_at") is not None:
            self.rewind(info["resumed_at"])
        self._write(summary=self._text("config", "\n".join(f"    {k} = {v!r}" for k, v in config.items())))

    def rewind(self, env_steps: int) -> None:
        """Have TensorBoard hide what was written beyond ``env_steps``."""
        self._write(step=env_steps + 1, session_log=self._events.SessionLog(status=self._events.SessionLog.START))

    def log(self, metrics: Metrics) -> None:
        """Write one iteration's scalars, as one event: a call for each would cost 1 % of a fast iteration."""
        scalars = [
            self._summary.Summary.Value(tag=tag(name), simple_value=value)
            for name, value in metrics.items()
            if value is not None and name != "env_steps"
        ]
        self._write(step=metrics["env_steps"], summary=self._summary.Summary(value=scalars))

    def evaluation(self, record: dict[str, Any]) -> None:
        """Write the mean return of an evaluation."""
        mean = sum(record["returns"]) / len(record["returns"])
        value = self._summary.Summary.Value(tag="evaluation/return", simple_value=mean)
        self._write(step=record["env_steps"], summary=self._summary.Summary(value=[value]))

    def close(self) -> None:
        """Close the event file."""
        if self._writer is not None:
            self._writer.close()

    def _write(self, **what: Any) -> None:
        self._writer.write(self._events.Event(wall_time=time.time(), **what).SerializeToString())
