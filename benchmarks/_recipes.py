"""What is trained: tasks, and recipes of batch, networks and epochs, with their sources."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ppo_fast import resolve
from ppo_fast.config import Config

# Task, and how much more work makes a second of it than of Ant-v5.
TASKS = {"Ant-v5": 1, "HalfCheetah-v5": 4}
MORE_TASKS = {"Humanoid-v5": 1, "Hopper-v5": 3, "Walker2d-v5": 2}  # with --all-tasks
WORK = TASKS | MORE_TASKS

FAST, SAMPLE, SAMPLE_EFFICIENT, RL_GAMES = "preset fast", "preset sample", "sample-efficient", "rl_games"

# The batch of Tianshou's MuJoCo benchmark (examples/mujoco/mujoco_ppo.py at 6426a397): the most optimizer steps per env
# step, and the most return from 1M steps.
_SAMPLE_EFFICIENT: dict[str, Any] = {
    "num_envs": 64,
    "num_steps": 32,
    "minibatch_size": 64,
    "update_epochs": 10,
    "hidden_sizes": (64, 64),
    "activation": "tanh",
    "shared_trunk": False,
}

# rl_games/configs/mujoco/<task>_envpool.yaml at 262cf20: 64 actors, minibatches of 2048, ELU, one trunk for actor and
# critic. Its schedule of the learning rate and its normalised critic, which ppo_fast has no option for, cost next to
# nothing.
_RL_GAMES: dict[str, Any] = {
    "num_envs": 64,
    "minibatch_size": 2048,
    "activation": "elu",
    "shared_trunk": True,
    "norm_adv": "batch",
}
_RL_GAMES_OF_TASK: dict[str, dict[str, Any]] = {
    "Ant-v5": {"hidden_sizes": (256, 128, 64), "num_steps": 64, "update_epochs": 4, "clip_vloss": True},
    "HalfCheetah-v5": {"hidden_sizes": (128, 64, 32), "num_steps": 256, "update_epochs": 5},
    "Hopper-v5": {"hidden_sizes": (256, 128, 64), "num_steps": 64, "update_epochs": 5},
    "Humanoid-v5": {"hidden_sizes": (512, 256, 128), "num_steps": 128, "update_epochs": 5, "clip_vloss": True},
    "Walker2d-v5": {"hidden_sizes": (256, 128, 64), "num_steps": 128, "update_epochs": 5},
}


def recipes(env_id: str) -> dict[str, dict[str, Any]]:
    """Return name -> options of every recipe for a task; preset sample only where no other is the same."""
    out: dict[str, dict[str, Any]] = {
        FAST: {"preset": "fast"},
        SAMPLE_EFFICIENT: _SAMPLE_EFFICIENT,
        RL_GAMES: {**_RL_GAMES, **_RL_GAMES_OF_TASK[env_id]},
    }
    return out if preset_sample_is(env_id, out) else {**out, SAMPLE: {"preset": "sample"}}


def preset_sample_is(env_id: str, others: Mapping[str, dict[str, Any]]) -> str:
    """Return which of ``others``, name -> options, preset sample is for a task; empty if none."""
    sample = resolve(env=env_id, preset="sample")
    same = (
        name for name, options in others.items() if replace(resolve(env=env_id, **options), preset="sample") == sample
    )
    return next(same, "")


def describe(cfg: Config) -> str:
    """Return batch, epochs and networks in a line."""
    trunk = ", shared trunk" if cfg.shared_trunk else ""
    return (
        f"{cfg.num_envs} x {cfg.num_steps}, {cfg.update_epochs} epochs of {cfg.minibatch_size}, "
        f"{'-'.join(map(str, cfg.hidden_sizes))} {cfg.activation}{trunk}"
    )
