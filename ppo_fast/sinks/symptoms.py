"""What is wrong with a run, as warnings in the log: once when it arises, and again only after it was gone."""

from __future__ import annotations

import logging
from typing import Any

from ppo_fast.sinks import Metrics
from ppo_fast.symptoms import Symptom, Symptoms

log = logging.getLogger(__name__)


class SymptomSink:
    """Warn of every symptom that arises."""

    def __init__(self) -> None:
        self._symptoms: Symptoms | None = None

    @property
    def present(self) -> list[Symptom]:
        """What is wrong now, the gravest first."""
        return self._symptoms.present if self._symptoms else []

    def start(self, config: dict[str, Any], info: dict[str, Any]) -> None:
        """Take what is going to run."""
        self._symptoms = Symptoms(config, info)

    def log(self, metrics: Metrics) -> None:
        """Look at one row."""
        assert self._symptoms is not None
        for symptom in self._symptoms.take(metrics):
            log.warning("after %s steps: %s", f"{metrics['env_steps']:,}", symptom)

    def evaluation(self, record: dict[str, Any]) -> None:
        """Evaluations are not judged."""

    def rewind(self, env_steps: int) -> None:
        """Forget the rows so far."""
        if self._symptoms:
            self._symptoms.forget()

    def close(self) -> None:
        """Nothing to free."""
