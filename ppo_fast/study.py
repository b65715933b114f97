"""``python -m ppo_fast.study``: tasks x seeds, as many runs at a time as the cores allow; broken off, it goes on."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ppo_fast.errors import ConfigError, EnvError, PPOFastError

if TYPE_CHECKING:
    from ppo_fast.config import Config

PROG = "python -m ppo_fast.study"

# How often runs are evaluated: the return between two evaluations may move, and evaluating Ant costs 20,000 steps.
EVAL_EVERY, LONG, EVAL_EVERY_LONG = 50_000, 3_000_000, 250_000


@dataclasses.dataclass(frozen=True)
class StudyOptions:
    """Train each task with several seeds, and make the table and the curves. What follows -- goes to every run.

    The same command goes on where it was broken off: finished runs are skipped, others are taken up.
    """

    out: str
    """directory of the study: a run directory per task and seed, results.json, table.md, curves.png"""
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


@dataclasses.dataclass
class Job:
    """One run of the study."""

    name: str
    command: list[str]
    path: Path
    cfg: Config
    process: subprocess.Popen[bytes] | None = None
    cpus: frozenset[int] = frozenset()


def main(args: list[str] | None = None) -> int:
    """Parse the options, make the runs that are missing, write the results; return the exit code."""
    from ppo_fast.cli import parse_options, run_command

    argv = sys.argv[1:] if args is None else args
    cut = argv.index("--") if "--" in argv else len(argv)

    def study() -> int:
        options = parse_options(StudyOptions, argv[:cut], prog=PROG, description=inspect.getdoc(StudyOptions))
        return _study(options, argv[cut + 1 :])

    return run_command(study, prog="ppo_fast.study")


def _study(options: StudyOptions, extra: list[str]) -> int:
    jobs = _jobs(options, extra)
    out = Path(options.out)
    (out / "logs").mkdir(parents=True, exist_ok=True)
    everything = [job.path for job in jobs]
    waiting = [job for job in jobs if not _finished(job)]
    print(
        f"{len(jobs)} runs, {len(jobs) - len(waiting)} finished, on {options.cores_per_run} of the cores each",
        flush=True,
    )
    pool = Pool(options, everything)
    # SIGTERM becomes an exception, so that the pool stops its runs first.
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        for job in jobs:
            if job not in waiting:
                pool.check(job)
        failed = pool.run(waiting)
    finally:
        signal.signal(signal.SIGTERM, before)
    _write(options, everything, draw=True)
    print((out / "table.md").read_text())
    for name in failed:
        print(f"failed: {name}, see {out / 'logs' / name}.log", file=sys.stderr)
    return 1 if failed else 0


def _jobs(options: StudyOptions, extra: list[str]) -> list[Job]:
    """Return all runs of the study, the seeds of a task not one after the other, so that every task has results early.

    Raises:
        ConfigError: an option of the study or of the runs is wrong; nothing has been made then.
    """
    from ppo_fast import envs
    from ppo_fast.cli import parse_config
    from ppo_fast.cpus import num_cpus

    for name, least in (("seeds", 1), ("first_seed", 0), ("eval_every", 0), ("gymnasium_episodes", 0)):
        if getattr(options, name) < least:
            raise ConfigError(f"{name} must be at least {least}, got {getattr(options, name)}")
    if not 1 <= options.cores_per_run <= num_cpus():
        raise ConfigError(f"cores_per_run must be from 1 to {num_cpus()}, got {options.cores_per_run}")
    if not options.envs:
        raise ConfigError("envs must name at least one environment")
    for flag in ("--env", "--seed", "--run-dir", "--resume", "--eval-every"):
        if any(arg.partition("=")[0].replace("_", "-") == flag for arg in extra):
            raise ConfigError(f"{flag} is the study's to set, and cannot follow --")
    wanted = {env: parse_config(["--env", env, *extra], prog=PROG, description="") for env in options.envs}
    for env, cfg in wanted.items():
        envs.spec(cfg.env, cfg.env_backend, cfg.env_kwargs)
        every = options.eval_every or (EVAL_EVERY if cfg.total_timesteps <= LONG else EVAL_EVERY_LONG)
        wanted[env] = dataclasses.replace(cfg, eval_every=every)
    jobs = []
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        for env in options.envs:
            name = f"{env.replace('/', '_').replace(':', '_')}-seed{seed}"
            path = Path(options.out) / name
            _check_same(path, dataclasses.replace(wanted[env], seed=seed))
            run = ["--env", env, "--seed", str(seed), "--run-dir", str(path), "--resume", "auto", "--quiet", *extra]
            command = [sys.executable, "-m", "ppo_fast.train", *run, "--eval-every", str(wanted[env].eval_every)]
            jobs.append(Job(name, command, path, wanted[env]))
    return jobs


def _check_same(path: Path, cfg: Config) -> None:
    """Raise ``ConfigError`` if there is a run of other options already."""
    from ppo_fast.run_info import NO_EFFECT

    try:
        made = json.loads((path / "config.json").read_bytes())
    except (OSError, ValueError):
        return  # no run yet; a damaged one is the trainer's to refuse
    for name, value in cfg.to_dict().items():
        if name not in NO_EFFECT | {"total_timesteps"} and name in made and made[name] != value:
            raise ConfigError(f"{path} was made with {name} {made[name]!r}, not {value!r}: take another --out")


def _finished(job: Job) -> bool:
    from ppo_fast.scores import read_run

    if not (job.path / "config.json").exists():
        return False
    steps = read_run(job.path).steps
    return bool(steps.size) and bool(steps[-1] >= job.cfg.total_timesteps)


class Pool:
    """Runs at a time, each pinned to cores of its own."""

    def __init__(self, options: StudyOptions, everything: Sequence[Path]) -> None:
        cpus, each = sorted(os.sched_getaffinity(0)), options.cores_per_run
        self.free = [frozenset(cpus[i * each : (i + 1) * each]) for i in range(len(cpus) // each)]
        self.options, self.everything = options, everything
        self.logs = Path(options.out) / "logs"
        self.running: list[Job] = []
        self.failed: list[str] = []

    def run(self, waiting: list[Job]) -> list[str]:
        """Make the runs; return the names of those that failed. A signal stops them, and they can be taken up."""
        try:
            while waiting or self.running:
                while waiting and self.free:
                    self._start(waiting.pop(0))
                time.sleep(0.2)
                self._collect()
        except BaseException:
            for job in self.running:
                if job.process is not None:
                    job.process.send_signal(signal.SIGTERM)
            for job in self.running:
                if job.process is not None:
                    job.process.wait()
            raise
        return self.failed

    def _start(self, job: Job) -> None:
        """Start a run: a child inherits the cores that this process may use at that moment."""
        from ppo_fast import scores

        (job.path / scores.ON_GYMNASIUM).unlink(missing_ok=True)  # a finished run that is to go on
        job.cpus = self.free.pop(0)
        all_cpus = os.sched_getaffinity(0)
        os.sched_setaffinity(0, job.cpus)
        try:
            with open(self.logs / f"{job.name}.log", "ab") as log:  # the child keeps its own handle
                job.process = subprocess.Popen(
                    job.command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True
                )
        finally:
            os.sched_setaffinity(0, all_cpus)
        self.running.append(job)
        print(f"started  {job.name}", flush=True)

    def _collect(self) -> None:
        """Take note of the runs that have ended."""
        for job in [job for job in self.running if job.process is not None and job.process.poll() is not None]:
            self.running.remove(job)
            self.free.append(job.cpus)
            code = job.process.returncode if job.process is not None else 1
            if code or not _finished(job):
                self.failed.append(job.name)
                print(f"FAILED   {job.name}, exit code {code}", flush=True)
                continue
            score = _write(self.options, self.everything)[job.path]
            print(f"finished {job.name}: {score:,.1f}", flush=True)
            self.check(job)

    def check(self, job: Job) -> None:
        """Evaluate a finished run on Gymnasium; where that fails, the others go on."""
        try:
            _on_gymnasium(self.options, job)
        except PPOFastError as err:
            self.failed.append(job.name)
            print(f"FAILED   {job.name}, on Gymnasium: {err}", flush=True)


def _on_gymnasium(options: StudyOptions, job: Job) -> None:
    """Evaluate the final policy on Gymnasium's environments too, unless that has been done, and keep what came out."""
    from ppo_fast import envs, evaluation, files, scores

    path = job.path / scores.ON_GYMNASIUM
    if path.exists() or not options.gymnasium_episodes:
        return
    env, seed = job.cfg.env, job.cfg.seed
    try:
        envs.spec(env, "gymnasium", job.cfg.env_kwargs)
    except EnvError:
        return  # one of EnvPool's own
    stats = evaluation.evaluate(
        evaluation.load_policy(job.path), env, episodes=options.gymnasium_episodes, seed=seed, backend="gymnasium"
    )
    kept = {"returns": stats.returns.tolist(), "lengths": stats.lengths.tolist()}
    files.write_atomic(path, files.to_json(kept))


def _write(options: StudyOptions, paths: Sequence[Path], *, draw: bool = False) -> dict[Path, float]:
    """Write results.json and table.md of the runs that there are, and the curves if asked to; return their scores."""
    from ppo_fast import files, scores
    from ppo_fast.plotting import draw_runs

    out = Path(options.out)
    runs = [scores.read_run(path) for path in paths if (path / "config.json").exists()]
    results = {"runs": scores.to_json(runs), "made": {run.path.name: _made(run.path) for run in runs}}
    files.write_atomic(out / "results.json", files.to_json(results))
    files.write_atomic(out / "table.md", ("\n".join(scores.table(runs, options.at)) + "\n").encode())
    if draw and any(run.means.size for run in runs):
        draw_runs(runs, out / "curves.png")
    return {run.path: run.final for run in runs if run.means.size}


def _made(path: Path) -> dict[str, object]:
    """Return what a run was made of: its options, and the commit, versions and machine it ran on."""
    config, info = (json.loads((path / name).read_bytes()) for name in ("config.json", "run_info.json"))
    return {"config": config, **{name: info.get(name) for name in ("commit", "versions", "machine")}}


if __name__ == "__main__":
    sys.exit(main())
