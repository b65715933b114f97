"""The directory of a run: what is in it, when it may be written, and how a run is taken up again.

config.json           the resolved options
run_info.json         versions, machine, device, backends
metrics.jsonl         one object per iteration
evaluations.jsonl     one object per evaluation
checkpoints/          see checkpoint.py
learning_curve.png    drawn at the end
report.html           written at the end, see report/
nonfinite.json        where NaN or infinity was found, if it was; nonfinite-k.json by process k
.lock                 held while a trainer writes here
"""

from __future__ import annotations

import datetime
import errno
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ppo_fast import checkpoint, files
from ppo_fast.batch import Rollout
from ppo_fast.config import Config
from ppo_fast.distributed import ALONE, Peers
from ppo_fast.errors import CheckpointError, ConfigError, LostError, NonFiniteError, PPOFastError
from ppo_fast.lock import Lock
from ppo_fast.nonfinite import write_report
from ppo_fast.sinks.files import JsonlSink

log = logging.getLogger(__name__)

# What no resumed run can change.
_FIXED = (
    "env",
    "env_kwargs",
    "preset",
    "algo",
    "hidden_sizes",
    "activation",
    "shared_trunk",
    "norm_obs",
    "norm_reward",
)


def default_path(cfg: Config) -> Path:
    """Return ``runs/<env>-<preset>-seed<seed>-<date>``, the algorithm before the preset unless it is PPO."""
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    algo = "" if cfg.algo == "ppo" else f"{cfg.algo}-"
    return Path("runs") / f"{cfg.env.replace('/', '_').replace(':', '_')}-{algo}{cfg.preset}-seed{cfg.seed}-{now}"


class RunDir:
    """A run directory that this process, and no other, may write; :meth:`create` makes it.

    Of several processes that train together the first writes; the others read, so all must see the directory.
    """

    def __init__(self, path: Path, peers: Peers = ALONE) -> None:
        self.path, self._peers = path, peers
        self.checkpoints = path / "checkpoints"
        self._resumed_at: int | None = None
        self._evaluated_at: int | None = None
        self._lock = Lock(path / ".lock")

    @classmethod
    def open(cls, cfg: Config, peers: Peers = ALONE) -> tuple[RunDir, checkpoint.Checkpoint | None]:
        """Find the run directory that ``cfg`` means, lock it if it exists, and read the checkpoint to go on from.

        Of several processes the first does, and tells the others.

        Nothing is made yet; whoever does not go on calls :meth:`release`.

        Raises:
            ConfigError: it cannot be written, or another trainer writes there, or it holds a run and ``resume`` was not
                given, or the run that is taken up cannot go on under ``cfg``.
            CheckpointError: what ``resume`` names is missing or damaged.
        """
        found: list[tuple[RunDir, checkpoint.Checkpoint | None]] = []

        def find() -> bytes:
            run, saved = cls._open(cfg, peers)
            found.append((run, saved))
            return json.dumps([str(run.path.absolute()), str(saved.path.absolute()) if saved else None]).encode()

        path, resumed = json.loads(peers.first(find))
        try:
            with peers.together():
                if peers.rank:
                    found.append((cls(Path(path), peers), _seen(Path(resumed)) if resumed else None))
        except PPOFastError:
            for run, _ in found:
                run.release()
            raise
        return found[0]

    @classmethod
    def _open(cls, cfg: Config, peers: Peers) -> tuple[RunDir, checkpoint.Checkpoint | None]:
        if cfg.resume == "auto" and not cfg.run_dir:
            raise ConfigError("resume 'auto' needs run_dir, the directory whose newest checkpoint is meant")
        run: RunDir | None = None
        try:
            if cfg.resume not in ("", "auto"):
                path = _home(cfg)
            else:
                path = Path(cfg.run_dir) if cfg.run_dir else default_path(cfg)
            held = _holds_run(path) or any((path / "checkpoints").glob(".tmp-*-replaced-*"))
            if held and not cfg.resume:
                raise ConfigError(f"run_dir {str(path)!r} already holds a run: --resume auto goes on with it")
            _check_writable(path)
            run = cls(path, peers)
            if held:
                run._lock.take()
                checkpoint.remove_stale(run.checkpoints)
            return run, run._find(cfg)
        except BaseException as err:
            if run is not None:
                run.release()
            if isinstance(err, PPOFastError) or not isinstance(err, (OSError, ValueError)):
                raise
            what = f"run_dir {str(cfg.run_dir or cfg.resume)!r}"
            raise ConfigError(f"{what} cannot be written: {getattr(err, 'strerror', err)}") from None

    def _find(self, cfg: Config) -> checkpoint.Checkpoint | None:
        if not cfg.resume:
            return None
        if cfg.resume == "auto":
            saved = _newest(self.checkpoints)
        else:
            saved = checkpoint.locate(cfg.resume, rename_damaged=True)
        if saved is not None:
            _check_continues(cfg, saved)
            evaluated_at = saved.state.get("evaluated_at")
            self._evaluated_at = evaluated_at if type(evaluated_at) is int else None
        self._resumed_at = saved.state["env_steps"] if saved else 0
        return saved

    def create(self, cfg: Config, info: dict[str, Any]) -> None:
        """Make the directory, clear away what a kill left, and write config.json and run_info.json.

        Checkpoints beyond the one that the run goes on from belong to a future that is given up: they are set aside.

        Raises:
            ConfigError: it cannot be written, or another trainer writes there.
        """
        with self._peers.together():
            if self._peers.rank == 0:
                self._create(cfg, info)

    def newest(self) -> checkpoint.Checkpoint | None:
        """Read the newest good checkpoint, the same in every process; None if there is none."""

        def find() -> bytes:
            there = checkpoint.find(self.checkpoints)
            return str(checkpoint.load_newest(self.checkpoints, rename_damaged=True).path).encode() if there else b""

        path = self._peers.first(find).decode()
        with self._peers.together():
            return _seen(Path(path)) if path else None

    def _create(self, cfg: Config, info: dict[str, Any]) -> None:
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            self._lock.take()
            files.remove_stale(self.path)
            checkpoint.remove_stale(self.checkpoints)
            if self._resumed_at is not None:
                self.abandon_beyond(self._resumed_at)
            files.write_atomic(self.path / "config.json", files.to_json(cfg.to_dict()))
            files.write_atomic(self.path / "run_info.json", files.to_json(info))
        except OSError as err:
            raise ConfigError(f"run_dir {str(self.path)!r} cannot be written: {err.strerror}") from err

    def abandon_beyond(self, env_steps: int) -> None:
        """Set aside the checkpoints of later steps."""
        here = checkpoint.path_of(self.checkpoints, env_steps)
        for later in [path for path in checkpoint.find(self.checkpoints) if path.name > here.name]:
            aside = checkpoint.set_aside(later, ".abandoned")
            log.warning("the run goes on from an earlier step: %s set aside as %s", later, aside.name)

    def release(self) -> None:
        """Let another trainer write here."""
        self._lock.release()

    def jsonl(self) -> JsonlSink:
        """Return the sink of metrics.jsonl and evaluations.jsonl, to be cut back to where the run goes on."""
        return JsonlSink(self.path, resumed_at=self._resumed_at, evaluated_at=self._evaluated_at)

    def report_nonfinite(
        self, err: NonFiniteError, state: Any, rollout: Rollout, parameters: Mapping[str, Any]
    ) -> None:
        """Write nonfinite.json, see :mod:`ppo_fast.nonfinite`; process k that is not the first nonfinite-k.json."""
        name = f"nonfinite-{self._peers.rank}.json" if self._peers.rank else "nonfinite.json"
        write_report(self.path / name, err, state, rollout, parameters)

    def draw(self) -> None:
        """Draw learning_curve.png and write report.html; a failure is logged, since the run itself is complete."""
        from ppo_fast.plotting import draw_learning_curve

        if self._peers.rank:
            return
        try:
            draw_learning_curve(self.path)
        except Exception as err:
            log.warning("learning_curve.png could not be drawn: %s", err)
        self.report()

    def report(self) -> None:
        """Write report.html of the run as it stands; a failure is logged."""
        from ppo_fast import report

        if not self._peers.rank:
            report.write_report(self.path)


def _seen(path: Path) -> checkpoint.Checkpoint:
    """Read the checkpoint that the first process has chosen."""
    try:
        return checkpoint.load(path)
    except CheckpointError as err:
        raise CheckpointError(f"{err}; every process must see the run directory, on a shared file system") from None


def _holds_run(path: Path) -> bool:
    return (path / "metrics.jsonl").exists() or bool(checkpoint.find(path / "checkpoints"))


def _newest(checkpoints: Path) -> checkpoint.Checkpoint | None:
    """Return what ``--resume auto`` goes on from: None for a directory that never held a checkpoint."""
    if checkpoint.find(checkpoints):
        return checkpoint.load_newest(checkpoints, rename_damaged=True)
    if any(checkpoints.glob("*.corrupt")):
        raise LostError(f"every checkpoint in {checkpoints} is damaged; delete the directory to start afresh")
    return None


def _home(cfg: Config) -> Path:
    """Return the run directory of a run that goes on from ``cfg.resume``: ``run_dir``, or the one it is in."""
    named = Path(cfg.resume).absolute()
    if named.parent.name == "checkpoints":
        home: Path | None = named.parent.parent
    else:
        home = named if (named / "checkpoints").is_dir() else None
    if not cfg.run_dir:
        if home is None and named.exists():
            raise ConfigError(f"resume {cfg.resume!r} is in no run directory, so run_dir must be given")
        return home or named
    path = Path(cfg.run_dir)
    if _holds_run(path) and (home is None or path.resolve() != home.resolve()):
        raise ConfigError(f"run_dir {str(path)!r} already holds another run than {cfg.resume!r}")
    return path


def _check_writable(path: Path) -> None:
    """Raise OSError where ``path`` could not be made or written, without making it."""
    above = path.absolute()
    while not above.exists():
        above = above.parent
    if not above.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, f"{above} is not a directory")
    if not os.access(above, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, f"no permission to write in {above}")


def _check_continues(cfg: Config, saved: checkpoint.Checkpoint) -> None:
    """Raise ``ConfigError`` if an option differs that a run cannot change on its way."""
    try:
        config = {
            "shared_trunk": False,
            "algo": "ppo",
            "env_kwargs": {},
            **saved.state["config"],
        }  # older ones do not have these options
        old = {name: config[name] for name in _FIXED}
        int(saved.state["env_steps"])
    except (KeyError, TypeError, ValueError) as err:
        raise CheckpointError(f"{saved.path} does not fit this version: {err}") from None
    for name, now in cfg.to_dict().items():
        if name in _FIXED and old[name] != now:
            raise ConfigError(f"{name} was {old[name]!r} in {saved.path}, and cannot become {now!r} on resume")
    before, now = config.get("learning_rate"), cfg.learning_rate
    if cfg.adaptive_kl is not None and config.get("adaptive_kl") is not None and before != now:  # it would be ignored
        raise ConfigError(
            f"learning_rate was {before!r} in {saved.path}, and cannot become {now!r} on resume: adaptive_kl moved it"
        )
