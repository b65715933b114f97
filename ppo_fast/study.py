"""``python -m ppo_fast.study``: tasks x seeds, as many runs at a time as the cores allow; broken off, it goes on."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import sys
from inspect import getdoc
from pathlib import Path
from typing import TYPE_CHECKING

from ppo_fast.errors import CheckpointError, ConfigError, EnvError, PPOFastError
from ppo_fast.lock import Lock, NoLocksError
from ppo_fast.pool import Job, Pool

if TYPE_CHECKING:
    from ppo_fast.config import Config

log = logging.getLogger(__name__)

PROG = "python -m ppo_fast.study"


@dataclasses.dataclass(frozen=True)
class StudyOptions:
    """Train each task with several seeds, and make the table and the curves. What follows -- goes to every run.

    The same command goes on where it was broken off: finished runs are skipped, others are taken up.
    """

    out: str
    """directory of the study: a run directory per task and seed, results.json, table.md, curves.png,
    comparison.html"""
    envs: tuple[str, ...] = ("Ant-v5", "HalfCheetah-v5", "Hopper-v5", "Humanoid-v5", "Walker2d-v5")
    """environment ids"""
    seeds: int = 5
    """seeds per task"""
    first_seed: int = 1
    """the first of them"""
    cores_per_run: int = 1
    """cores that a run is pinned to; all of them to time runs, 1 to make many"""
    eval_every: int = 0
    """environment steps between evaluations; 0: 50,000, and 250,000 for runs of more than 3M steps"""
    gymnasium_episodes: int = 20
    """the final policy is also evaluated on Gymnasium's own environments, over so many episodes; 0: it is not"""
    at: tuple[int, ...] = (1_000_000,)
    """the table also says how runs that went beyond stood after so many steps"""


@dataclasses.dataclass(kw_only=True)
class Run(Job):
    """One run of the study."""

    path: Path
    cfg: Config


def main(args: list[str] | None = None) -> int:
    """Parse the options, make the runs that are missing, write the results; return the exit code."""
    from ppo_fast.cli import parse_options, run_command

    argv = sys.argv[1:] if args is None else args
    cut = argv.index("--") if "--" in argv else len(argv)

    def study() -> int:
        options = parse_options(StudyOptions, argv[:cut], prog=PROG, description=getdoc(StudyOptions), runs_follow=True)
        made = Study(options, argv[cut + 1 :])
        try:
            return made.run()
        finally:
            made.lock.release()

    return run_command(study, prog="ppo_fast.study")


def _runs(options: StudyOptions, extra: list[str]) -> list[Run]:
    """Return all runs of the study, the seeds of a task not one after the other, so that every task has results early.

    Raises:
        ConfigError: an option of the study or of the runs is wrong; nothing has been made then.
    """
    from ppo_fast.config import Config
    from ppo_fast.runs import check_same, command, options_of

    for name, least in (("seeds", 1), ("first_seed", 0), ("eval_every", 0), ("gymnasium_episodes", 0)):
        if getattr(options, name) < least:
            raise ConfigError(f"{name} must be at least {least}, got {getattr(options, name)}")
    if min(options.at, default=1) < 1:
        raise ConfigError(f"at must name steps, each at least 1, got {' '.join(map(str, options.at))}")
    if not options.envs:
        raise ConfigError("envs must name at least one environment")
    if twice := sorted({env for env in options.envs if options.envs.count(env) > 1}):
        raise ConfigError(f"envs names {', '.join(twice)} more than once")
    wanted = {
        env: Config(**options_of(env, extra, options.eval_every, whose="study", prog=PROG)) for env in options.envs
    }
    runs, out = [], Path(options.out)
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        for env in options.envs:
            name = f"{env.replace('/', '_').replace(':', '_')}-seed{seed}"
            path, cfg = out / name, dataclasses.replace(wanted[env], seed=seed)
            check_same(path, cfg)
            log = out / "logs" / f"{name}.log"
            runs.append(Run(name=name, command=command(cfg, path, extra), log=log, path=path, cfg=cfg))
    return runs


class Study:
    """The runs of a study.

    Raises:
        ConfigError: an option of the study or of the runs is wrong; nothing has been made then.
    """

    def __init__(self, options: StudyOptions, extra: list[str]) -> None:
        self.options, self.out = options, Path(options.out)
        self.runs = _runs(options, extra)
        self.pool = Pool[Run](options.cores_per_run)
        self.lock = Lock(self.out / "study.lock")
        self.failed: list[str] = []

    def run(self) -> int:
        """Make the runs that are missing, write the results; return the exit code."""
        from ppo_fast.runs import is_finished

        self._take()
        waiting = [run for run in self.runs if not is_finished(run.path, run.cfg)]
        print(
            f"{len(self.runs)} runs, {len(self.runs) - len(waiting)} finished, on {self.options.cores_per_run} of the "
            "cores each",
            flush=True,
        )
        for run in self.runs:
            if run not in waiting:
                self.check(run)
        self.pool.run(lambda: self._next(waiting), self._ended)
        try:
            self._write(draw=True)
        except OSError as err:
            raise ConfigError(f"out {self.options.out!r} cannot be written: {err.strerror}") from None
        print((self.out / "table.md").read_text())
        for name in self.failed:
            print(f"failed: {name}, see {self.out / 'logs' / name}.log", file=sys.stderr)
        return 1 if self.failed else 0

    def _take(self) -> None:
        """Make the directory, and have it to this study and its runs, which keep the lock if they outlive it."""
        try:
            (self.out / "logs").mkdir(parents=True, exist_ok=True)
            if not self.lock.try_take():
                raise ConfigError(f"out {self.options.out!r} is worked on by another study, or by runs that one left")
        except NoLocksError as err:
            log.warning("%s cannot be locked, so nothing keeps a second study out: %s", self.out, err.strerror)
        except OSError as err:
            raise ConfigError(f"out {self.options.out!r} cannot be made: {err.strerror}") from None

    def _next(self, waiting: list[Run]) -> Run | None:
        from ppo_fast import scores

        if not waiting:
            return None
        run = waiting.pop(0)
        (run.path / scores.ON_GYMNASIUM).unlink(missing_ok=True)  # a finished run that is to go on
        with contextlib.suppress(ValueError):  # without locks there is none to keep
            run.keeps = (self.lock.fileno(),)
        print(f"started  {run.name}", flush=True)
        return run

    def _ended(self, run: Run) -> None:
        from ppo_fast import scores
        from ppo_fast.runs import is_finished

        if run.code or not is_finished(run.path, run.cfg):
            self.failed.append(run.name)
            print(f"FAILED   {run.name}, exit code {run.code}", flush=True)
            return
        print(f"finished {run.name}: {scores.read_run(run.path).final:,.1f}", flush=True)
        try:
            self._write()
        except OSError as err:  # a full disk stops no run
            log.warning("results of %s not written, tried again when a run ends: %s", self.out, err.strerror)
        self.check(run)

    def check(self, run: Run) -> None:
        """Evaluate a finished run on Gymnasium; where that fails, the others go on."""
        try:
            _on_gymnasium(self.options, run)
        except (PPOFastError, OSError) as err:
            self.failed.append(run.name)
            print(f"FAILED   {run.name}, on Gymnasium: {err}", flush=True)

    def _write(self, *, draw: bool = False) -> None:
        """Write results.json and table.md of the runs there are, if asked to the curves too."""
        from ppo_fast import files, scores
        from ppo_fast.plotting import draw_runs
        from ppo_fast.report.compare import compare_page

        # Its run_info.json is the last that a run writes before it begins.
        runs = [scores.read_run(run.path) for run in self.runs if (run.path / "run_info.json").exists()]
        results = {"runs": scores.to_json(runs), "made": {run.path.name: _made(run.path) for run in runs}}
        files.write_atomic(self.out / "results.json", files.to_json(results))
        files.write_atomic(self.out / "table.md", ("\n".join(scores.table(runs, self.options.at)) + "\n").encode())
        if draw and any(run.means.size for run in runs):
            evaluated = [run for run in runs if run.means.size]
            draw_runs(evaluated, self.out / "curves.png")
            files.write_atomic(page := self.out / "comparison.html", compare_page(evaluated, page))


def _on_gymnasium(options: StudyOptions, run: Run) -> None:
    """Evaluate the final policy on Gymnasium's environments too, unless that has been done, and keep what came out.

    Raises:
        CheckpointError: the run's newest good checkpoint is not of its last evaluation.
    """
    from ppo_fast import checkpoint, envs, evaluation, files, scores

    path, last = run.path / scores.ON_GYMNASIUM, int(scores.read_run(run.path).steps[-1])
    if not options.gymnasium_episodes or _is_kept(path, last, options.gymnasium_episodes):
        return
    env, seed = run.cfg.env, run.cfg.seed
    try:
        envs.spec(env, "gymnasium", run.cfg.env_kwargs)
    except EnvError:
        return  # one of EnvPool's own
    saved = checkpoint.locate(run.path)
    if (steps := saved.state.get("env_steps")) != last:
        raise CheckpointError(f"its newest good checkpoint is of step {steps}, its last evaluation of {last}")
    stats = evaluation.evaluate(
        evaluation.policy_from(saved), env, episodes=options.gymnasium_episodes, seed=seed, backend="gymnasium"
    )
    kept = {"env_steps": last, "returns": stats.returns.tolist(), "lengths": stats.lengths.tolist()}
    files.write_atomic(path, files.to_json(kept))


def _is_kept(path: Path, env_steps: int, episodes: int) -> bool:
    """Return whether ``path`` tells of so many episodes of the policy after so many steps."""
    if not path.exists():
        return False
    kept = json.loads(path.read_bytes())
    return bool(kept.get("env_steps") == env_steps and len(kept["returns"]) == episodes)


def _made(path: Path) -> dict[str, object]:
    """Return what a run was made of: its options, and the commit, versions and machine it ran on.

    Results are shared, so that of its directory they hold the name alone.
    """
    config, info = (json.loads((path / name).read_bytes()) for name in ("config.json", "run_info.json"))
    return {
        "config": {**config, "run_dir": path.name},
        **{name: info.get(name) for name in ("commit", "versions", "machine")},
    }


if __name__ == "__main__":
    sys.exit(main())
