"""``python -m ppo_fast.reference``: train with the readable PPO, TRPO or REINFORCE, and print what it learns."""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from typing import Any

import gymnasium
import numpy as np
import torch
import tyro

from ..errors import ConfigError, EnvError, PPOFastError, did_you_mean
from . import ppo, reinforce, trpo
from .on_policy import OnPolicy, Settings

ALGOS: dict[str, tuple[type[Settings], type[OnPolicy]]] = {
    "ppo": (ppo.Settings, ppo.PPO),
    "trpo": (trpo.Settings, trpo.TRPO),
    "reinforce": (reinforce.Settings, reinforce.Reinforce),
}
PROG = "python -m ppo_fast.reference"


def main() -> int:
    """Parse the options, train, evaluate; return the exit code."""
    try:
        return _main()
    except KeyboardInterrupt:
        print("ppo_fast.reference: interrupted", file=sys.stderr)
        return 130


def _main() -> int:
    try:
        kind, algorithm, args = choose(sys.argv[1:])
        settings = tyro.cli(kind, prog=PROG, description=algorithm.__doc__, args=args)
        check_numbers(settings)
        check_env(settings.env)
    except PPOFastError as error:
        print(f"ppo_fast.reference: error: {error}", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    trainer = algorithm(settings)

    def report(row: dict[str, Any]) -> None:
        shown = "-" if row["episode_return"] is None else f"{row['episode_return']:.1f}"
        sps = row["env_steps"] / row["wall_s"]
        line = f"{row['env_steps']:>10,} steps  {sps:>7,.0f} SPS  return {shown:>8}  KL {row['approx_kl']:.4f}"
        print(line, flush=True)

    trainer.run(report)
    returns = trainer.evaluate()
    print(f"evaluation over {len(returns)} episodes: {returns.mean():.1f} +- {returns.std():.1f}")
    return 0


def choose(args: list[str]) -> tuple[type[Settings], Any, list[str]]:
    """Return the options and the class of the algorithm that ``--algo`` names, and the other arguments.

    Raises:
        ConfigError: there is no such algorithm, or an option belongs to another one.
    """
    parser = argparse.ArgumentParser(prog=PROG, add_help=False, allow_abbrev=False)
    parser.add_argument("--algo", default="ppo")
    try:
        known, rest = parser.parse_known_args(args)
    except SystemExit:
        raise ConfigError("algo must be named after --algo") from None
    if known.algo not in ALGOS:
        raise ConfigError(f"algo must be one of {', '.join(map(repr, ALGOS))}, got {known.algo!r}")
    kind, algorithm = ALGOS[known.algo]
    mine = {field.name for field in dataclasses.fields(kind)}
    for arg in rest:
        option = arg.partition("=")[0].removeprefix("--").removeprefix("no-").replace("-", "_")
        owners = [name for name, (theirs, _) in ALGOS.items() if option in theirs.__dataclass_fields__]
        if arg.startswith("--") and owners and option not in mine:
            raise ConfigError(f"{option} belongs to {' and '.join(owners)}, and algo is {known.algo!r}")
    return kind, algorithm, rest


def check_numbers(s: Settings) -> None:
    """Raise ConfigError for a number out of range."""

    def require(ok: bool, name: str, allowed: str) -> None:
        if not ok:
            raise ConfigError(f"{name} must be {allowed}, got {getattr(s, name)!r}")

    at_least_1 = (
        "num_envs num_steps minibatch_size total_timesteps update_epochs critic_epochs cg_steps backtrack_steps"
    )
    for name in at_least_1.split():
        require(getattr(s, name, 1) >= 1, name, "at least 1")
    require(0 <= s.seed < 2**64, "seed", "in [0, 2**64)")
    for name in ("learning_rate", "policy_lr", "clip_coef", "max_grad_norm", "delta"):
        require(0 < getattr(s, name, 1.0) < math.inf, name, "a finite number above 0")
    for name in ("ent_coef", "vf_coef", "cg_damping"):
        require(0 <= getattr(s, name, 0.0) < math.inf, name, "a finite number, at least 0")
    require(0 < getattr(s, "backtrack_coef", 0.5) < 1, "backtrack_coef", "between 0 and 1")
    for name in ("gamma", "gae_lambda"):
        require(0 <= getattr(s, name) <= 1, name, "in [0, 1]")
    for name in ("target_kl", "adaptive_kl"):
        value = getattr(s, name, None)
        require(value is None or 0 < value < math.inf, name, "a finite number above 0, or unset")
    if getattr(s, "adaptive_kl", None) is not None and s.anneal_lr:
        raise ConfigError("adaptive_kl and anneal_lr both set the learning rate: --no-anneal-lr leaves it to the first")
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
        if role == "action" and (isinstance(space, gymnasium.spaces.Discrete) or is_multi_discrete(space)):
            continue
        is_box = isinstance(space, gymnasium.spaces.Box)
        if not is_box or len(space.shape) != 1 or not np.issubdtype(space.dtype, np.floating):
            allowed = "a one-dim. float Box" + ", Discrete or a one-dim. MultiDiscrete from 0" * (role == "action")
            shown = " ".join(str(space).split())
            raise EnvError(f"{env_id}: its {role} space {shown} is not supported; allowed is {allowed}")


def is_multi_discrete(space: Any) -> bool:
    """Say whether ``space`` is a vector of choices that are counted from 0."""
    return isinstance(space, gymnasium.spaces.MultiDiscrete) and space.nvec.ndim == 1 and not space.start.any()


if __name__ == "__main__":
    sys.exit(main())
