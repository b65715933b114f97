"""``python -m ppo_fast.play RUN``: evaluate a trained policy, and film it."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclasses.dataclass(frozen=True)
class PlayOptions:
    """Evaluate a policy with the mean action and frozen statistics."""

    run: Annotated[str, tyro.conf.Positional]
    """run directory (its newest good checkpoint) or one checkpoint directory"""
    episodes: int = 20
    """episodes to evaluate"""
    video: str = ""
    """write one episode as an mp4 file to this path"""
    seed: int = 1
    """seed of the evaluation's environments"""
    env_backend: Literal["auto", "envpool", "gymnasium"] = "auto"
    """what steps the environments"""


def main(args: list[str] | None = None) -> int:
    """Parse the options, evaluate, film; return the exit code."""
    from ppo_fast.cli import run_command

    options = tyro.cli(PlayOptions, prog="python -m ppo_fast.play", args=args)
    return run_command(lambda: _play(options), prog="ppo_fast.play")


def _play(options: PlayOptions) -> None:
    from ppo_fast import checkpoint
    from ppo_fast.errors import ConfigError
    from ppo_fast.evaluation import evaluate, policy_from
    from ppo_fast.video import film

    if options.episodes < 1:
        raise ConfigError(f"episodes must be at least 1, got {options.episodes}")
    target = Path(options.video)
    if options.video and (target.suffix != ".mp4" or not target.absolute().parent.is_dir()):
        raise ConfigError(f"video must be a path ending in .mp4 in a directory that exists, got {options.video!r}")
    saved = checkpoint.locate(options.run)
    policy = policy_from(saved)
    stats = evaluate(
        policy, policy.spec.env_id, episodes=options.episodes, seed=options.seed, backend=options.env_backend
    )
    print(
        f"{policy.spec.env_id}, {saved.path}\n"
        f"return {stats.mean:.1f} +- {stats.ci95:.1f} (95 % CI of the mean over {len(stats.returns)} episodes), "
        f"std {stats.std:.1f}, min {stats.returns.min():.1f}, max {stats.returns.max():.1f}; "
        f"length {stats.lengths.mean():.0f}"
    )
    if options.video:
        print(f"video {film(saved.path, target, seed=options.seed)}")


if __name__ == "__main__":
    sys.exit(main())
