"""Metrics as TensorBoard scalars."""

from __future__ import annotations

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
    """Write scalars to ``<run_dir>/tensorboard``."""

    def __init__(self, run_dir: Path) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary
        from torch.utils import tensorboard

        self._open, self._summary = tensorboard.SummaryWriter, Summary
        self._dir = str(run_dir / "tensorboard")
        self._writer: Any = None

    def start(self, config: dict[str, Any], info: dict[str, Any]) -> None:
        """Open the event file and write the config as text; what was written beyond the resumed step is superseded."""
        resumed_at = info.get("resumed_at")
        self._writer = self._open(self._dir, purge_step=None if resumed_at is None else resumed_at + 1)
        self._writer.add_text("config", "\n".join(f"    {k} = {v!r}" for k, v in config.items()))

    def rewind(self, env_steps: int) -> None:
        """Have TensorBoard hide what was written beyond ``env_steps``."""
        self._writer.close()
        self._writer = self._open(self._dir, purge_step=env_steps + 1)

    def log(self, metrics: Metrics) -> None:
        """Write one iteration's scalars, as one event: a call of add_scalar for each costs 1 % of a fast iteration."""
        scalars = [
            self._summary.Value(tag=tag(name), simple_value=value)
            for name, value in metrics.items()
            if value is not None and name != "env_steps"
        ]
        self._writer.file_writer.add_summary(self._summary(value=scalars), metrics["env_steps"])

    def evaluation(self, record: dict[str, Any]) -> None:
        """Write the mean return of an evaluation."""
        self._writer.add_scalar(
            "evaluation/return", sum(record["returns"]) / len(record["returns"]), record["env_steps"]
        )

    def close(self) -> None:
        """Flush and close."""
        if self._writer is not None:
            self._writer.close()
