"""What is trained: tasks and recipes. Those that peers train by as well, with their sources, are in peers/cases.py."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ppo_fast import resolve
from ppo_fast.config import Config

from .peers import cases

# Task, and how much more work makes a second of it than of Ant-v5.
TASKS = {"Ant-v5": 1, "HalfCheetah-v5": 4}
MORE_TASKS = {"Humanoid-v5": 1, "Hopper-v5": 3, "Walker2d-v5": 2}  # with --all-tasks
WORK = TASKS | MORE_TASKS

FAST, SAMPLE, SAMPLE_EFFICIENT, RL_GAMES = "preset fast", "preset sample", "sample-efficient", "rl_games"


def recipes(env_id: str) -> dict[str, dict[str, Any]]:
    """Return name -> options of every recipe for a task; preset sample only where no other is the same."""
    others = _others(env_id)
    return others if preset_sample_is(env_id) else {**others, SAMPLE: {"preset": "sample"}}


def preset_sample_is(env_id: str) -> str:
    """Return which of the other recipes for a task preset sample is; empty if none."""
    sample = resolve(env=env_id, preset="sample")
    for name, options in _others(env_id).items():
        if replace(resolve(env=env_id, **options), preset="sample") == sample:
            return name
    return ""


def _others(env_id: str) -> dict[str, dict[str, Any]]:
    return {FAST: {"preset": "fast"}, SAMPLE_EFFICIENT: cases.SAMPLE_EFFICIENT, RL_GAMES: cases.RL_GAMES[env_id]}


def describe(cfg: Config) -> str:
    """Return batch, epochs and networks in a line."""
    trunk = ", shared trunk" if cfg.shared_trunk else ""
    return (
        f"{cfg.num_envs} x {cfg.num_steps}, {cfg.update_epochs} epochs of {cfg.minibatch_size}, "
        f"{'-'.join(map(str, cfg.hidden_sizes))} {cfg.activation}{trunk}"
    )
