"""``python -m ppo_fast.sweep``: search for options by trials of several seeds, on all cores."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Mapping
from inspect import getdoc
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppo_fast.errors import ConfigError, NonFiniteError
from ppo_fast.pool import Pool

if TYPE_CHECKING:
    from ppo_fast.config import Config
    from ppo_fast.race import Verdict
    from ppo_fast.trials import Claim, Run, Trial

PROG = "python -m ppo_fast.sweep"
STARTS = 3  # of a run whose process was killed
IN_A_ROW = 3  # trials that fail before there is no use in going on
REFUSED_IN_A_ROW = 50  # proposals that are not allowed
LOOK_ELSEWHERE_S = 2.0
TOLD = (128 + 2, 128 + 15)  # exit codes of a run that saved and left because of SIGINT or SIGTERM


@dataclasses.dataclass(frozen=True)
class SweepOptions:
    """Search for the options with the highest final score over several seeds. What follows -- goes to every run.

    The same command goes on where it was broken off, and joins in where others are at it: with --out on a file system
    that they share, processes on several machines work on one sweep. Each pins its runs to the cores that it may use.
    """

    out: str
    """directory of the sweep: the trials and their runs, table.md, results.json, best.toml for train --config"""
    search: tuple[str, ...]
    """words like option=log:LOW:HIGH, option=range:LOW:HIGH[:STEP], option=choice:A,B,... where 64-64 is a list"""
    env: str = "Ant-v5"
    """environment id"""
    trials: int = 50
    """how many trials there are to be in all"""
    seeds: int = 3
    """runs per trial; the score is the interquartile mean of theirs"""
    first_seed: int = 101
    """the first of their seeds; report what was found on others"""
    cores_per_run: int = 1
    """cores that a run is pinned to"""
    eval_every: int = 0
    """environment steps between evaluations; 0: 50,000, and 250,000 for runs of more than 3M steps"""
    judge_after: int = 5
    """stop a trial that is below the median of at least so many others at the same time of training; 0: never"""
    sweep_seed: int = 1
    """keys the proposals"""


def main(args: list[str] | None = None) -> int:
    """Parse the options, make trials until there are enough; return the exit code."""
    from ppo_fast.cli import parse_options, run_command

    argv = sys.argv[1:] if args is None else args
    cut = argv.index("--") if "--" in argv else len(argv)

    def sweep() -> int:
        if sum(arg.partition("=")[0] == "--search" for arg in argv[:cut]) > 1:  # tyro would take the last
            raise ConfigError("--search is given more than once; name all options behind one: --search a=... b=...")
        options = parse_options(SweepOptions, argv[:cut], prog=PROG, description=getdoc(SweepOptions), runs_follow=True)
        return Sweep(options, argv[cut + 1 :]).run()

    return run_command(sweep, prog="ppo_fast.sweep")


class Sweep:
    """What this process does for a sweep.

    Raises:
        BackendError: Optuna is not installed.
        ConfigError: an option of the sweep or of the runs is wrong; nothing has been made then.
    """

    def __init__(self, options: SweepOptions, extra: list[str]) -> None:
        from ppo_fast.runs import options_of, what_scores_depend_on
        from ppo_fast.search import check_some, read_space
        from ppo_fast.trials import Trials

        least = {"trials": 1, "seeds": 1, "first_seed": 0, "eval_every": 0, "judge_after": 0, "sweep_seed": 0}
        for name, bound in least.items():
            if getattr(options, name) < bound:
                raise ConfigError(f"{name} must be at least {bound}, got {getattr(options, name)}")
        self.options, self.extra, self.out = options, extra, Path(options.out)
        self.base = options_of(options.env, extra, options.eval_every, whose="sweep", prog=PROG)
        self.space = read_space(options.search, self.base)
        for name in self.space:
            flags = {f"--{name}".replace("_", "-"), f"--no-{name}".replace("_", "-")}
            if any(arg.partition("=")[0].replace("_", "-") in flags for arg in extra):
                raise ConfigError(f"{name} is searched, and cannot follow --")
        self.pool: Pool[Run] = Pool(options.cores_per_run)
        check_some(self.space, self._config, REFUSED_IN_A_ROW)
        about = what_scores_depend_on(self.base, but={*self.space, "seed"})
        about |= {"search": sorted(options.search), "seeds": options.seeds, "first_seed": options.first_seed}
        self.trials = Trials(self.out, self.space, about, options.sweep_seed)
        self.mine: list[Trial] = []
        self.failed_in_a_row, self.refused_in_a_row, self.why_refused = 0, 0, ""

    def run(self) -> int:
        """Make trials until there are enough, say what was found; return the exit code."""
        from ppo_fast.sweep_results import summary

        (self.out / "logs").mkdir(exist_ok=True)
        there = sum(bool(record.ending) for record in self.trials.records())
        print(
            f"{self.options.trials} trials of {self.options.seeds} seeds on {self.options.env}, {there} have ended; "
            f"{len(self.pool.free)} runs at a time, on {self.options.cores_per_run} of the cores each",
            flush=True,
        )
        waits = False
        while True:
            self.pool.run(self._next, self._ended, self._judge_all)
            others = sum(not record.ending for record in self.trials.records())
            if not others or self.failed_in_a_row >= IN_A_ROW:
                break
            if not waits:  # for a process elsewhere, or for a run whose sweep was killed
                print(
                    f"waiting for {others} trials that are worked on elsewhere, to take up what ends early", flush=True
                )
            waits = True
            time.sleep(LOOK_ELSEWHERE_S)
        self._write()
        print(summary(self.trials.records(), list(self.space), self.out))
        if self.failed_in_a_row >= IN_A_ROW:
            print(f"given up: {IN_A_ROW} trials in a row failed, see {self.out / 'logs'}", file=sys.stderr)
            return 1
        return 0

    # --- trials begin ------------------------------------------------------------------------------------------------
    def _next(self) -> Run | None:
        """Return the next run of a trial that has been begun, or the first of another trial."""
        if self.failed_in_a_row >= IN_A_ROW:
            return None
        waiting = [trial for trial in self.mine if trial.waiting]
        trial = waiting[0] if waiting else self._begin()
        if trial is None:
            return None
        run = trial.waiting.pop(0)
        run.starts += 1
        return run

    def _begin(self) -> Trial | None:
        """Take a trial up, or begin one that is allowed; None if there are enough."""
        from ppo_fast.search import to_flags

        while self.refused_in_a_row < REFUSED_IN_A_ROW:
            if (claim := self.trials.claim(self.options.trials)) is None:
                return None
            flags = " ".join(to_flags(claim.options))
            print(f"trial {claim.number}{' is taken up' * claim.taken_up}: {flags}", flush=True)
            try:
                trial = self._trial(claim)
            except ConfigError as err:
                self._refuse(claim, str(err))
                claim.lock.release()
                print(f"trial {claim.number}: not allowed: {err}", flush=True)
                continue
            if trial.waiting:
                self.mine.append(trial)
                return trial
            self._complete(trial)  # whose process ended just before it could say so
        self._write()
        raise ConfigError(
            f"search: {REFUSED_IN_A_ROW} proposals in a row were not allowed, the last because {self.why_refused}"
        )

    def _refuse(self, claim: Claim, why: str) -> None:
        self.refused_in_a_row, self.why_refused = self.refused_in_a_row + 1, why
        self.trials.refused(claim, why)

    def _trial(self, claim: Claim) -> Trial:
        from ppo_fast.runs import command, is_finished
        from ppo_fast.trials import Run, Trial

        cfg = self._config(claim.options)
        flags = self._flags(claim.options)
        trial = Trial(claim, [], [])
        for seed in range(self.options.first_seed, self.options.first_seed + self.options.seeds):
            its = dataclasses.replace(cfg, seed=seed)
            path, name = claim.path / f"seed{seed}", f"{claim.path.name}-seed{seed}"
            run = Run(
                name=name, command=command(its, path, flags), log=self.out / "logs" / f"{name}.log", path=path, cfg=its,
                trial=trial, keeps=(claim.lock.fileno(),),
            )  # fmt: skip
            trial.runs.append(run)
            if not is_finished(path, its):
                trial.waiting.append(run)
        return trial

    # --- trials end --------------------------------------------------------------------------------------------------
    def _ended(self, run: Run) -> None:
        from ppo_fast.runs import is_finished

        trial, code = run.trial, run.code or 0
        if trial.over:
            self._let_go(trial)
        elif (code < 0 or code in TOLD) and run.starts < STARTS:
            trial.waiting.insert(0, run)
            print(f"trial {trial.claim.number}: {run.name} was ended from outside, and is taken up", flush=True)
        elif code or not is_finished(run.path, run.cfg):
            self._fail(trial, run, code)
        elif all(is_finished(each.path, each.cfg) for each in trial.runs):
            self._complete(trial)
        self._write()

    def _complete(self, trial: Trial) -> None:
        from ppo_fast.race import Curve
        from ppo_fast.scores import read_run

        runs = [read_run(run.path) for run in trial.runs]
        curves = [Curve(run.wall_s, run.means) for run in runs]
        score = self.trials.completed(trial.claim, [run.final for run in runs], curves)
        self.failed_in_a_row = self.refused_in_a_row = 0
        self._over(trial, f"{score:,.1f} (IQM of {len(runs)} seeds, {max(run.wall_s[-1] for run in runs):,.0f} s)")

    def _fail(self, trial: Trial, run: Run, code: int) -> None:
        lines = run.log.read_text(errors="replace").splitlines() or ["no word of it"]
        why = f"{run.name}, exit code {code}: {lines[-1]}"
        if code == ConfigError.exit_code and not (run.path / "evaluations.jsonl").exists():
            why = lines[-1]  # what can be known only where it runs, as that there is no GPU
            self._refuse(trial.claim, why)
            self._over(trial, f"not allowed: {why}")
            return
        if code == NonFiniteError.exit_code and ": stopped: " in lines[-1]:  # a traceback has the same code
            self.trials.diverged(trial.claim, why)
        else:
            self.trials.failed(trial.claim, why)
            self.failed_in_a_row += 1
        self._over(trial, f"FAILED: {why}")

    def _judge_all(self) -> None:
        """Stop the trials that are worse than the others were after the same time, when something new is known."""
        if not self.options.judge_after:
            return
        for trial in [trial for trial in self.mine if not trial.over]:
            verdict = self._judge(trial)
            if verdict is None or not verdict.hopeless:
                continue
            self.trials.stopped(trial.claim, verdict)
            found = f"{verdict.best:,.1f} after {verdict.t:,.0f} s"
            self._over(trial, f"stopped early: {found}, when the median of the others was {verdict.median:,.1f}")
            self._write()

    def _judge(self, trial: Trial) -> Verdict | None:
        from ppo_fast.race import judge, read_curve
        from ppo_fast.runs import is_finished

        files = [run.path / "evaluations.jsonl" for run in trial.runs]
        sizes = [file.stat().st_size if file.exists() else 0 for file in files]
        if sizes == trial.sizes:
            return None
        trial.sizes = sizes
        curves = [read_curve(run.path) for run in trial.runs]
        ended = [is_finished(run.path, run.cfg) for run in trial.runs]
        return judge(curves, ended, self.trials.curves(), self.options.judge_after)

    def _over(self, trial: Trial, said: str) -> None:
        """Say how a trial ended, and end those of its runs that still run."""
        print(f"trial {trial.claim.number}: {said}", flush=True)
        trial.over, trial.waiting = True, []
        for run in self.pool.running:
            if run.trial is trial:
                self.pool.stop(run)
        self._let_go(trial)

    def _let_go(self, trial: Trial) -> None:
        """Give the lock back when nothing of a trial runs any more."""
        if not any(run.trial is trial for run in self.pool.running):
            trial.claim.lock.release()
            self.mine = [each for each in self.mine if each is not trial]

    def _write(self) -> None:
        from ppo_fast.sweep_results import write

        self.trials.write(lambda records: write(self.out, records, list(self.space), self._config))

    # --- options -----------------------------------------------------------------------------------------------------
    def _flags(self, options: Mapping[str, Any]) -> list[str]:
        from ppo_fast.search import to_flags

        return [*self.extra, *to_flags(options)]

    def _config(self, options: Mapping[str, Any]) -> Config:
        """Return all options of a trial but the seed, through the door that its runs will take."""
        from ppo_fast.cli import parse_config

        cfg = parse_config(["--env", self.options.env, *self._flags(options)], prog=PROG, description="")
        return dataclasses.replace(cfg, eval_every=self.base["eval_every"])


if __name__ == "__main__":
    sys.exit(main())
