"""``python -m ppo_fast.reference``: train with the readable PPO, and print what it learns."""

from __future__ import annotations

import math
import sys
from typing import Any

import gymnasium
import numpy as np
import torch
import tyro

from ..errors import ConfigError, EnvError, PPOFastError, did_you_mean
from .ppo import PPO, Settings


def main() -> int:
    """Parse the options, train, evaluate."""
    settings = tyro.cli(Settings, prog="python -m ppo_fast.reference", description=PPO.__doc__)
    try:
        check_numbers(settings)
        check_env(settings.env)
    except PPOFastError as error:
        print(f"ppo_fast.reference: error: {error}", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    ppo = PPO(settings)

    def report(row: dict[str, Any]) -> None:
        shown = "-" if row["episode_return"] is None else f"{row['episode_return']:.1f}"
        sps = row["env_steps"] / row["wall_s"]
        line = f"{row['env_steps']:>10,} steps  {sps:>7,.0f} SPS  return {shown:>8}  KL {row['approx_kl']:.4f}"
        print(line, flush=True)

    ppo.run(report)
    returns = ppo.evaluate()
    print(f"evaluation over {len(returns)} episodes: {returns.mean():.1f} +- {returns.std():.1f}")
    return 0


def check_numbers(s: Settings) -> None:
    """Raise ConfigError for a number out of range."""

    def require(ok: bool, name: str, allowed: str) -> None:
        if not ok:
            raise ConfigError(f"{name} must be {allowed}, got {getattr(s, name)!r}")

    for name in ("num_envs", "num_steps", "minibatch_size", "update_epochs", "total_timesteps"):
        require(getattr(s, name) >= 1, name, "at least 1")
    require(0 <= s.seed < 2**64, "seed", "in [0, 2**64)")
    for name in ("learning_rate", "clip_coef", "max_grad_norm"):
        require(0 < getattr(s, name) < math.inf, name, "a finite number above 0")
    for name in ("ent_coef", "vf_coef"):
        require(0 <= getattr(s, name) < math.inf, name, "a finite number, at least 0")
    for name in ("gamma", "gae_lambda"):
        require(0 <= getattr(s, name) <= 1, name, "in [0, 1]")
    require(s.target_kl is None or 0 < s.target_kl < math.inf, "target_kl", "a finite number above 0, or unset")
    require(math.isfinite(s.log_std_init), "log_std_init", "finite")
    require(len(s.hidden_sizes) >= 1 and min(s.hidden_sizes) >= 1, "hidden_sizes", "one or more widths, each >= 1")
    batch = s.num_envs * s.num_steps
    if batch % s.minibatch_size:
        raise ConfigError(f"minibatch_size must divide num_envs * num_steps = {batch}, got {s.minibatch_size}")


def check_env(env_id: str) -> None:
    """Raise EnvError for an environment that is unknown, cannot be made, or has spaces that are not supported."""
    if ":" not in env_id and env_id not in gymnasium.registry:  # 'module:Name-v0' is registered by its module
        raise EnvError(f"unknown environment {env_id!r}{did_you_mean(env_id, gymnasium.registry)}")
    try:
        env: gymnasium.Env[Any, Any] = gymnasium.make(env_id)
    except Exception as error:  # anything: a missing simulator, a retired version, a module that does not import
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise EnvError(f"{env_id}: Gymnasium cannot make it: {reason}") from error
    env.close()
    for role, space in (("observation", env.observation_space), ("action", env.action_space)):
        if role == "action" and isinstance(space, gymnasium.spaces.Discrete):
            continue
        is_box = isinstance(space, gymnasium.spaces.Box)
        if not is_box or len(space.shape) != 1 or not np.issubdtype(space.dtype, np.floating):
            allowed = "a one-dim. float Box" + " or Discrete" * (role == "action")
            shown = " ".join(str(space).split())
            raise EnvError(f"{env_id}: its {role} space {shown} is not supported; allowed is {allowed}")


if __name__ == "__main__":
    sys.exit(main())
