"""Metrics to Weights & Biases (the ``wandb`` extra)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ppo_fast.sinks import Metrics
from ppo_fast.sinks.tensorboard import tag


class WandbSink:
    """Log to a W&B run named after the run directory; ``WANDB_*`` variables configure it."""

    def __init__(self, run_dir: Path) -> None:
        import wandb

        self._init, self._dir = wandb.init, run_dir
        self._run: Any = None

    def start(self, config: dict[str, Any], info: dict[str, Any]) -> None:
        """Start the run with its config."""
        self._run = self._init(
            project="ppo_fast", name=self._dir.name, dir=str(self._dir), config={**config, "info": info}
        )
        # As the axis, and not as W&B's own step, which cannot go back as a run does after a rollback.
        self._run.define_metric("*", step_metric=tag("env_steps"))

    def log(self, metrics: Metrics) -> None:
        """Log one iteration."""
        self._run.log({tag(k): v for k, v in metrics.items() if v is not None})

    def evaluation(self, record: dict[str, Any]) -> None:
        """Log the mean return of an evaluation."""
        mean = sum(record["returns"]) / len(record["returns"])
        self._run.log({"evaluation/return": mean, tag("env_steps"): record["env_steps"]})

    def close(self) -> None:
        """Finish the run."""
        if self._run is not None:
            self._run.finish()
