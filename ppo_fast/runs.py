"""Training runs that a study or a sweep starts: their options, their command lines, how far they have come."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

from ppo_fast import checkpoint, envs
from ppo_fast.algos import foreign
from ppo_fast.cli import parse_values
from ppo_fast.config import Config, as_json, check_types
from ppo_fast.config_rules import check_each
from ppo_fast.errors import ConfigError
from ppo_fast.run_info import NO_EFFECT
from ppo_fast.scores import read_run

OWN = ("env", "seed", "run_dir", "resume", "eval_every")  # set by who starts the runs

# How often runs are evaluated: the return between two evaluations may move, and evaluating Ant costs 20,000 steps.
EVAL_EVERY, LONG, EVAL_EVERY_LONG = 50_000, 3_000_000, 250_000


_PROTOCOL = {"eval_every", "eval_episodes"}  # of these a run does not depend, but its score


def options_of(env: str, extra: Sequence[str], eval_every: int, *, whose: str, prog: str) -> dict[str, Any]:
    """Return the options of a run of ``env`` with the flags ``extra``, evaluated by the protocol.

    Each value is allowed for itself; whether they go together is for ``Config`` to say.

    Args:
        env: environment id.
        extra: what followed ``--`` on the command line.
        eval_every: environment steps between evaluations; 0: 50,000, and 250,000 for runs of more than 3M steps.
        whose: who sets the options in ``OWN``, for the message.
        prog: the command, for ``--help``.

    Raises:
        ConfigError: one of ``extra`` is not allowed, or there is no such environment.
    """
    for name in OWN:
        flag = f"--{name.replace('_', '-')}"
        if any(arg.partition("=")[0].replace("_", "-") == flag for arg in extra):
            raise ConfigError(f"{flag} is the {whose}'s to set, and cannot follow --")
    options = parse_values(["--env", env, *extra], prog=prog, description="")
    alone = types.SimpleNamespace(**options)
    check_types(alone)
    check_each(alone)
    envs.spec(env, options["env_backend"], options["env_kwargs"])
    every = EVAL_EVERY if options["total_timesteps"] <= LONG else EVAL_EVERY_LONG
    return {**options, "eval_every": eval_every or every}


def what_scores_depend_on(options: Mapping[str, Any], *, but: Container[str]) -> dict[str, Any]:
    """Return the options that a training or its evaluation depends on, as JSON has them, without those in ``but``."""
    left_out = {*NO_EFFECT, *foreign(options["algo"])} - _PROTOCOL - {"preset"}  # which no run can change
    return {name: as_json(value) for name, value in options.items() if name not in left_out and name not in but}


def command(cfg: Config, path: Path, flags: Sequence[str]) -> list[str]:
    """Return the command line that makes the run ``path``, or goes on with it.

    Args:
        cfg: its options, of which environment, seed and protocol are taken.
        path: its run directory.
        flags: that make the other options.
    """
    run = ["--env", cfg.env, "--seed", str(cfg.seed), f"--run-dir={path}", "--resume", "auto", "--quiet", *flags]
    return [sys.executable, "-m", "ppo_fast.train", *run, "--eval-every", str(cfg.eval_every)]


def check_same(path: Path, cfg: Config) -> None:
    """Raise ``ConfigError`` if there is a run of other options already."""
    try:
        made = json.loads((path / "config.json").read_bytes())
    except (OSError, ValueError):
        return  # no run yet; a damaged one is the trainer's to refuse
    if found := difference(made, cfg, but={"total_timesteps"}):
        raise ConfigError(f"{path} was made with {found}: take another --out")
    if (preset := made.get("preset", cfg.preset)) != cfg.preset:  # which no run can change, be its options the same
        raise ConfigError(f"{path} was made with preset {preset!r}, not {cfg.preset!r}: take another --out")


def difference(made: Mapping[str, Any], cfg: Config, *, but: Container[str] = ()) -> str:
    """Return in words an option in which the scores of ``cfg`` depend on another value than those of ``made`` did.

    Args:
        made: options as a run's ``config.json`` has them; one that it does not have, because it is older, may differ.
        cfg: the options that are asked for.
        but: options that may differ.
    """
    for name, value in cfg.to_dict().items():
        if name not in NO_EFFECT - _PROTOCOL and name not in but and name in made and made[name] != value:
            return f"{name} {made[name]!r}, not {value!r}"
    return ""


def is_finished(path: Path, cfg: Config) -> bool:
    """Return whether the run ``path`` has come to the last step of ``cfg``, and saved it; checkpoints may be gone."""
    if not (path / "config.json").exists():
        return False
    steps, saved = read_run(path).steps, checkpoint.find(path / "checkpoints")
    ended = bool(steps.size) and bool(steps[-1] >= cfg.total_timesteps)
    return ended and (not saved or saved[0] == checkpoint.path_of(path / "checkpoints", int(steps[-1])))
