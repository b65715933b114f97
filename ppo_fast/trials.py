"""The trials of a sweep: Optuna proposes and remembers them, in a journal that processes on several machines may share.

A trial is worked on as long as a process, or a run that it has started, has the lock of the trial's directory. The
system lets go of a lock when its holders end, however they end; then whoever comes next takes the trial up.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ppo_fast.config import Config
from ppo_fast.errors import BackendError, ConfigError
from ppo_fast.lock import Lock, NoLocksError
from ppo_fast.pool import Job
from ppo_fast.race import Curve, Verdict, trial_curve
from ppo_fast.scores import iqm
from ppo_fast.search import Choice, Space

_NAME = "sweep"
_GARBLED = (ValueError, KeyError, TypeError, AttributeError, AssertionError)  # Optuna's, on text of another kind
_PATIENCE_S = 300.0  # a process needs the journal for milliseconds at a time

COMPLETED, STOPPED, DIVERGED, REFUSED, FAILED = "completed", "stopped early", "NaN", "not allowed", "failed"


@dataclass(frozen=True)
class Claim:
    """A trial that this process works on."""

    number: int
    options: dict[str, Any]
    path: Path  # directory of its runs
    lock: Lock
    taken_up: bool  # whether another process had begun it


@dataclass(kw_only=True)
class Run(Job):
    """One run of a trial."""

    path: Path
    cfg: Config
    trial: Trial
    starts: int = 0


@dataclass
class Trial:
    """A trial that this process works on."""

    claim: Claim
    runs: list[Run]
    waiting: list[Run]
    sizes: list[int] = field(default_factory=list)  # of the files of evaluations when they were last looked at
    over: bool = False  # whether the sweep knows how it ended


@dataclass(frozen=True)
class Record:
    """What is known of a trial."""

    number: int
    ending: str
    """one of the words above; empty while it is worked on, or waits to be taken up"""
    options: dict[str, Any]
    words: dict[str, Any]
    """the options as they are written on a command line"""
    score: float | None
    """interquartile mean of the final scores; where it was stopped early, the best until then"""
    finals: list[float]
    """final score per seed"""
    seconds: float
    """of training, of the slowest run"""
    why: str


class Trials:
    """The trials of the sweep in a directory.

    Args:
        out: the directory; it is made.
        space: what is searched.
        about: everything that scores depend on beside the options searched; the same for all who share the directory.
        seed: of the proposals; trial n is proposed from it, n and the trials that have ended.

    Raises:
        BackendError: Optuna is not installed.
        ConfigError: the directory cannot be made or locked, is damaged, or that of another sweep.
    """

    def __init__(self, out: Path, space: Space, about: Mapping[str, Any], seed: int) -> None:
        optuna = _optuna()
        optuna.logging.set_verbosity(optuna.logging.WARNING)  # it would tell of every step on stderr
        self._out, self._space, self._seed = out, space, seed
        self._journal = out / "trials.journal"
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as err:
            raise ConfigError(f"out {str(out)!r} cannot be made: {err.strerror}") from None
        with self._alone():
            _cut_torn_line(self._journal)
            path = str(self._journal.absolute())
            try:
                backend = optuna.storages.journal.JournalFileBackend(
                    path, optuna.storages.journal.JournalFileOpenLock(path)
                )
                storage = optuna.storages.JournalStorage(backend)
                self._study = optuna.create_study(
                    study_name=_NAME, storage=storage, direction="maximize", load_if_exists=True
                )
            except _GARBLED as err:
                raise ConfigError(f"{self._journal} is damaged: {err}") from None
            self._check_same(dict(about))

    def _check_same(self, about: dict[str, Any]) -> None:
        made = self._study.user_attrs.get("about")
        if made is None:
            self._study.set_user_attr("about", about)
            return
        for name in (*about, *made):
            if (was := made.get(name)) != (now := about.get(name)):
                raise ConfigError(f"{self._out} was made with {name} {was!r}, not {now!r}: take another --out")

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Have the directory to this process: nobody else claims, tells or writes meanwhile."""
        lock, give_up = Lock(self._out / "sweep.lock"), time.monotonic() + _PATIENCE_S
        try:
            while not lock.try_take():
                if time.monotonic() > give_up:
                    raise ConfigError(f"{self._out} has been held by another process for {_PATIENCE_S:.0f} s")
                time.sleep(0.02)
        except NoLocksError as err:
            raise ConfigError(
                f"{self._out} is on a file system without locks ({err.strerror}), by which a sweep tells trials that "
                "are worked on from those whose process has ended: take another --out"
            ) from None
        except OSError as err:
            raise ConfigError(f"out {str(self._out)!r} cannot be written: {err.strerror}") from None
        try:
            yield
        finally:
            lock.release()

    def claim(self, wanted: int) -> Claim | None:
        """Return a trial to work on: one whose process has ended, or else a new one; None if there are enough.

        Args:
            wanted: how many trials are to be. Those that failed or were not allowed are made up for by others.

        Raises:
            ConfigError: the directory has a trial that the journal does not know of.
        """
        with self._alone():
            trials = self._study.get_trials(deepcopy=False)
            for trial in trials:
                if not trial.state.is_finished() and (lock := self._lock(trial.number)):
                    return self._claimed(trial, lock, taken_up=True)
            if sum(_ending(trial) not in (FAILED, REFUSED) for trial in trials) >= wanted:
                return None
            if (path := self.path(len(trials))).exists():  # runs of other options would be taken up
                raise ConfigError(f"{path} is there, and {self._journal} does not know of it: take another --out")
            trial = self._study.ask()
            lock = self._lock(trial.number)
            assert lock is not None, "nobody else knows of it"
            return self._claimed(trial, lock, taken_up=False)

    def _lock(self, number: int) -> Lock | None:
        path = self.path(number)
        path.mkdir(exist_ok=True)
        lock = Lock(path / ".lock")
        return lock if lock.try_take() else None

    def path(self, number: int) -> Path:
        """Return the directory of a trial."""
        return self._out / f"trial-{number:04d}"

    def _claimed(self, proposed: Any, lock: Lock, *, taken_up: bool) -> Claim:
        """Return the options that are proposed for a trial; a proposal that was broken off is completed."""
        optuna = _optuna()
        (named,) = np.random.SeedSequence((self._seed, proposed.number)).generate_state(1)
        self._study.sampler = optuna.samplers.TPESampler(seed=int(named), constant_liar=True)
        trial = optuna.trial.Trial(self._study, proposed._trial_id)
        for name, dimension in self._space.items():
            if isinstance(dimension, Choice):
                trial.suggest_categorical(name, tuple(dimension.values))
            else:
                suggest = trial.suggest_int if dimension.whole else trial.suggest_float
                step = {"step": dimension.step} if dimension.step is not None else {}
                suggest(name, dimension.low, dimension.high, log=dimension.log, **step)
        path = self.path(trial.number)
        return Claim(trial.number, self._options(trial.params), path, lock, taken_up)

    def _options(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options behind the words that Optuna keeps."""
        return {
            name: dimension.values[params[name]] if isinstance(dimension, Choice) else params[name]
            for name, dimension in self._space.items()
            if name in params
        }

    def completed(self, claim: Claim, finals: list[float], runs: Sequence[Curve]) -> float:
        """Say that all runs of a trial have ended; return its score.

        Args:
            claim: the trial.
            finals: final score per seed.
            runs: evaluations per seed.
        """
        score, curve = iqm(np.array(finals)), trial_curve(runs)
        # Seconds are integers to Optuna: a value is known from the next full one on.
        steps = {math.ceil(t): value for t, value in zip(curve.at.tolist(), curve.values.tolist(), strict=True)}
        known = {"finals": finals, "seconds": float(curve.at[-1])}
        self._tell(claim, COMPLETED, known, lambda trial: [trial.report(value, t) for t, value in steps.items()], score)
        return score

    def stopped(self, claim: Claim, verdict: Verdict) -> None:
        """Say that a trial was not worth going on with."""
        known = {"seconds": verdict.t, "why": f"the median of the others was {verdict.median:,.1f}"}
        self._tell(claim, STOPPED, known, lambda trial: trial.report(verdict.best, math.ceil(verdict.t)))

    def diverged(self, claim: Claim, why: str) -> None:
        """Say that a run of a trial came to NaN: the worst there is."""
        self._tell(claim, DIVERGED, {"why": why})

    def refused(self, claim: Claim, why: str) -> None:
        """Say that the options of a trial are not allowed together: the worst there is, and not counted."""
        self._tell(claim, REFUSED, {"why": why})

    def failed(self, claim: Claim, why: str) -> None:
        """Say that a run of a trial failed for a reason that its options may have nothing to do with; not counted."""
        self._tell(claim, FAILED, {"why": why})

    def _tell(
        self,
        claim: Claim,
        ending: str,
        known: Mapping[str, Any],
        report: Callable[[Any], object] = lambda trial: None,
        score: float | None = None,
    ) -> None:
        optuna = _optuna()
        states = {COMPLETED: optuna.trial.TrialState.COMPLETE, FAILED: optuna.trial.TrialState.FAIL}
        with self._alone():
            (frozen,) = [each for each in self._study.get_trials(deepcopy=False) if each.number == claim.number]
            trial = optuna.trial.Trial(self._study, frozen._trial_id)
            report(trial)
            for name, value in {**known, "ending": ending}.items():
                trial.set_user_attr(name, value)
            self._study.tell(claim.number, score, state=states.get(ending, optuna.trial.TrialState.PRUNED))

    def curves(self) -> list[Curve]:
        """Return V of every trial that has been completed."""
        trials = [t for t in self._study.get_trials(deepcopy=False) if _ending(t) == COMPLETED]
        return [Curve(*np.array(sorted(trial.intermediate_values.items()), np.float64).T) for trial in trials]

    def records(self) -> list[Record]:
        """Return what is known of all trials, in the order in which they were proposed."""
        return [
            Record(
                trial.number, _ending(trial), self._options(trial.params), dict(trial.params),
                trial.value if trial.state.is_finished() else None,
                trial.user_attrs.get("finals", []), trial.user_attrs.get("seconds", math.nan),
                trial.user_attrs.get("why", ""),
            )
            for trial in self._study.get_trials(deepcopy=False)
        ]  # fmt: skip

    def write(self, write: Callable[[list[Record]], None]) -> None:
        """Have ``write`` put down what is known, with nobody else at it, so that nothing older replaces it."""
        with self._alone():
            write(self.records())


def _ending(trial: Any) -> str:
    return str(trial.user_attrs.get("ending", "")) if trial.state.is_finished() else ""


def _optuna() -> Any:
    try:
        import optuna
        import optuna.storages.journal
    except ImportError as err:
        raise BackendError(f"a sweep needs Optuna ({err}): pip install 'ppo_fast[sweep]'") from None
    return optuna


def _cut_torn_line(path: Path) -> None:
    """Remove the end of a line that was being written when the machine stopped or the disk was full."""
    if path.exists() and (text := path.read_bytes()) and not text.endswith(b"\n"):
        with open(path, "r+b") as file:
            file.truncate(text.rfind(b"\n") + 1)
