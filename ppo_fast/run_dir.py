"""The directory of a run: what is in it, when it may be written, and how a run is taken up again.

config.json           the resolved options
run_info.json         versions, machine, device, backends
metrics.jsonl         one object per iteration
evaluations.jsonl     one object per evaluation
checkpoints/          see checkpoint.py
learning_curve.png    drawn at the end
"""

from __future__ import annotations

import datetime
import logging
from pathlib import Path
from typing import Any

import numpy as np

from ppo_fast import checkpoint
from ppo_fast.batch import Rollout
from ppo_fast.config import Config
from ppo_fast.errors import CheckpointError, ConfigError, NonFiniteError
from ppo_fast.sinks.files import JsonlSink

log = logging.getLogger(__name__)


def default_path(cfg: Config) -> Path:
    """Return ``runs/<env>-<preset>-seed<seed>-<date>``."""
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    return Path("runs") / f"{cfg.env.replace('/', '_').replace(':', '_')}-{cfg.preset}-seed{cfg.seed}-{now}"


class RunDir:
    """A run directory that this process may write."""

    def __init__(self, path: Path, resumed_at: int | None) -> None:
        self.path, self._resumed_at = path, resumed_at
        self.checkpoints = path / "checkpoints"

    @classmethod
    def open(cls, cfg: Config) -> tuple[RunDir, checkpoint.Checkpoint | None]:
        """Make or take up the run directory that ``cfg`` means, and read the checkpoint to go on from.

        Raises:
            ConfigError: it cannot be written, or holds a run and ``resume`` was not given.
            CheckpointError: what ``resume`` names is missing or damaged.
        """
        saved = None
        if cfg.resume and cfg.resume != "auto":
            saved = checkpoint.locate(cfg.resume)
            home = saved.path.parent.parent
            path = Path(cfg.run_dir) if cfg.run_dir else home
            if path.resolve() != home.resolve() and _holds_run(path):
                raise ConfigError(f"run_dir {str(path)!r} already holds another run than {cfg.resume!r}")
        else:
            if cfg.resume == "auto" and not cfg.run_dir:
                raise ConfigError("resume 'auto' needs run_dir, the directory whose newest checkpoint is meant")
            path = Path(cfg.run_dir) if cfg.run_dir else default_path(cfg)
            if cfg.resume == "auto":
                if checkpoint.find(path / "checkpoints"):
                    saved = checkpoint.load_newest(path / "checkpoints")
                elif any((path / "checkpoints").glob("*.corrupt")):
                    raise CheckpointError(f"every checkpoint in {path / 'checkpoints'} is damaged")
            elif _holds_run(path):
                raise ConfigError(f"run_dir {str(path)!r} already holds a run: --resume auto goes on with it")
        try:
            (path / "checkpoints").mkdir(parents=True, exist_ok=True)
            probe = path / f".tmp-{id(cfg)}"
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as err:
            raise ConfigError(f"run_dir {str(path)!r} cannot be written: {err.strerror}") from None
        checkpoint.remove_stale(path / "checkpoints")
        return cls(path, saved.state["env_steps"] if saved else (0 if cfg.resume else None)), saved

    def jsonl(self) -> JsonlSink:
        """Open metrics.jsonl and evaluations.jsonl, cut back to the checkpoint where the run goes on."""
        return JsonlSink(self.path, resumed_at=self._resumed_at)

    def write_config(self, cfg: Config, info: dict[str, Any]) -> None:
        """Write config.json and run_info.json."""
        checkpoint.write_atomic(self.path / "config.json", checkpoint.to_json(cfg.to_dict()))
        checkpoint.write_atomic(self.path / "run_info.json", checkpoint.to_json(info))

    def report_nonfinite(self, err: NonFiniteError, state: Any, rollout: Rollout) -> None:
        """Write nonfinite.json: what was found, when, and the range of every array of the rollout."""
        arrays = {}
        for name in ("obs", "norm_obs", "actions", "log_probs", "rewards", "values_all", "advantages", "returns"):
            array = getattr(rollout, name)
            finite = array[np.isfinite(array)]
            arrays[name] = {
                "shape": list(array.shape),
                "non_finite": int(array.size - finite.size),
                "min": float(finite.min()) if finite.size else None,
                "max": float(finite.max()) if finite.size else None,
            }
        report = {"error": str(err), "state": vars(state), "arrays": arrays}
        checkpoint.write_atomic(self.path / "nonfinite.json", checkpoint.to_json(report))

    def draw(self) -> None:
        """Draw learning_curve.png; a failure is logged, since the run itself is complete."""
        from ppo_fast.plotting import draw_learning_curve

        try:
            draw_learning_curve(self.path)
        except Exception as err:
            log.warning("learning_curve.png could not be drawn: %s", err)


def _holds_run(path: Path) -> bool:
    return (path / "metrics.jsonl").exists() or bool(checkpoint.find(path / "checkpoints"))
