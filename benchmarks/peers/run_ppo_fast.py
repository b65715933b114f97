"""ppo_fast as one lane of ``python -m benchmarks.peers``: the whole trainer, its sinks and checkpoints included."""

from __future__ import annotations

from typing import Any

from pace import Pace, job, versions

from ppo_fast import Trainer, resolve


class PaceSink:
    """Ends an iteration where the trainer logs one."""

    def __init__(self, asked: dict[str, Any]) -> None:
        self.trainer: Trainer
        self._pace = Pace(asked, self.facts)
        self._phases: dict[str, float] = {}
        self._row: dict[str, Any] = {}

    def start(self, config: dict[str, Any], info: dict[str, Any]) -> None: ...

    def log(self, row: dict[str, Any]) -> None:
        self._row = row
        for name, value in row.items():
            if name.startswith("time/"):
                phase = name.removeprefix("time/")
                self._phases[phase] = self._phases.get(phase, 0.0) + value
        self._pace.iteration(row["env_steps"])

    def evaluation(self, record: dict[str, Any]) -> None: ...

    def close(self) -> None: ...

    def facts(self) -> dict[str, Any]:
        """Return what shows that it learns, what it runs on, and where the stretch's time went."""
        phases, self._phases = self._phases, {}
        return {
            "optimizer_steps": self.trainer.learner.adam_steps,
            "episode_return": self._row["episode_return"],
            "num_params": self.trainer.model.num_params,
            "versions": versions("ppo_fast", "torch", "numpy", "envpool", "gymnasium"),
            "info": self.trainer.info,
            "phases": phases,
        }


def main() -> None:
    """Train until the parent has seen enough."""
    asked = job()
    sink = PaceSink(asked)
    cfg = resolve(
        env=asked["env_id"],
        seed=asked["seed"],
        total_timesteps=1_000_000_000,  # ends when it has been measured
        run_dir="run",
        quiet=True,
        eval_every=0,  # no clock of these benchmarks counts evaluations
        **{name: tuple(value) if isinstance(value, list) else value for name, value in asked["options"].items()},
    )
    sink.trainer = Trainer(cfg, [sink])
    sink.trainer.run()


if __name__ == "__main__":
    main()
