"""``python -m ppo_fast.play RUN``: evaluate a trained policy, film it, show it in a window."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ppo_fast.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class PlayOptions:
    """Evaluate a policy with the mean action and frozen statistics."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """run directory (its newest good checkpoint) or one checkpoint directory"""
    best: bool = False
    """the checkpoint with the best evaluation instead of the newest"""
    env: str = ""
    """needed, to confirm it, where the run's environment is imported from a module ('module:Name-v0')"""
    episodes: int = 20
    """episodes to evaluate"""
    video: str = ""
    """write one episode as an mp4 file to this path"""
    render: Literal["none", "human"] = "none"
    """human: also show the episodes in a window, in real time, until it is closed"""
    seed: int = 1
    """seed of the evaluation's environments"""
    env_backend: Literal["auto", "envpool", "gymnasium"] = "auto"
    """what steps the environments"""


def main(args: list[str] | None = None) -> int:
    """Parse the options, evaluate, film; return the exit code."""
    from ppo_fast.cli import parse_options, run_command

    def play() -> None:
        _play(parse_options(PlayOptions, args, prog="python -m ppo_fast.play"))

    return run_command(play, prog="ppo_fast.play")


def _play(options: PlayOptions) -> None:
    from ppo_fast import checkpoint
    from ppo_fast.cli import trust_env
    from ppo_fast.evaluation import evaluate, policy_from
    from ppo_fast.video import can_be_filmed, film
    from ppo_fast.window import require_screen, show

    _check(options)
    saved = checkpoint.locate(options.run, best=options.best)
    policy = policy_from(saved)
    if options.env not in ("", policy.spec.env_id):
        raise ConfigError(f"env {options.env!r} is not that of the run, {policy.spec.env_id!r}")
    trust_env(policy.spec.env_id, options.env)
    if options.video and not can_be_filmed(policy.spec.env_id):
        raise ConfigError(f"video of {policy.spec.env_id!r} cannot be made: Gymnasium films, and only EnvPool has it")
    if options.render == "human":
        if not can_be_filmed(policy.spec.env_id):
            raise ConfigError(f"{policy.spec.env_id!r} cannot be shown: Gymnasium draws, and only EnvPool has it")
        require_screen()
    stats = evaluate(
        policy, policy.spec.env_id, episodes=options.episodes, seed=options.seed, backend=options.env_backend
    )
    print(
        f"{policy.spec.env_id}, {saved.path}\n"
        f"return {stats.mean:.1f} +- {stats.ci95:.1f} (95 % CI of the mean over {len(stats.returns)} episodes), "
        f"std {stats.std:.1f}, min {stats.returns.min():.1f}, max {stats.returns.max():.1f}; "
        f"length {stats.lengths.mean():.0f}",
        flush=True,
    )
    if options.video:
        print(f"video {film(saved.path, Path(options.video), seed=options.seed)}", flush=True)
    if options.render == "human":
        show(saved.path, episodes=options.episodes, seed=options.seed)


def _check(options: PlayOptions) -> None:
    """Raise ``ConfigError`` for whatever can be known before the episodes are run."""
    from ppo_fast.cli import target_file

    if options.episodes < 1:
        raise ConfigError(f"episodes must be at least 1, got {options.episodes}")
    if not 0 <= options.seed < 2**64:
        raise ConfigError(f"seed must be in [0, 2**64), got {options.seed}")
    if options.video:
        target_file("video", options.video, ".mp4")


if __name__ == "__main__":
    sys.exit(main())
