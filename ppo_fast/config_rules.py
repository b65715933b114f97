"""Which values of the options are allowed, alone and together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ppo_fast.algos import BELONGS, why_foreign
from ppo_fast.errors import ConfigError

MAX_ENVS = 65_536  # beyond any machine that one process could use; a slip of the keyboard must not fill the memory


def check_values(cfg: Any, defaults: Mapping[str, Any]) -> None:
    """Raise ``ConfigError`` for a value that is not allowed, or for options that exclude each other.

    Args:
        cfg: a :class:`~ppo_fast.config.Config` whose values have the right types.
        defaults: the built-in value of every option.
    """
    check_each(cfg)
    _check_together(cfg, defaults)


def check_each(cfg: Any) -> None:
    """Raise ``ConfigError`` for a value that is not allowed whatever the others are."""

    def require(ok: bool, name: str, allowed: str) -> None:
        if not ok:
            raise ConfigError(f"{name} must be {allowed}, got {getattr(cfg, name)!r}")

    at_least_1 = "num_envs num_steps minibatch_size update_epochs total_timesteps torch_threads eval_episodes"
    at_least_1 += " critic_epochs cg_steps backtrack_steps"
    for name in (*at_least_1.split(), "keep_checkpoints"):
        require(getattr(cfg, name) >= 1, name, "at least 1")
    for name in ("env_threads", "learner_threads", "eval_every", "checkpoint_every"):
        require(getattr(cfg, name) >= 0, name, "at least 0")
    require(cfg.num_envs <= MAX_ENVS, "num_envs", f"at most {MAX_ENVS}")
    require(0 <= cfg.seed < 2**64, "seed", "in [0, 2**64)")
    positive = "learning_rate policy_lr clip_coef max_grad_norm clip_obs clip_reward delta"
    for name in positive.split():
        require(0 < getattr(cfg, name) < math.inf, name, "a finite number above 0")
    require(2.0**-126 <= cfg.adam_eps < math.inf, "adam_eps", "a finite number, at least 2**-126")  # a normal float32
    require(0 < cfg.backtrack_coef < 1, "backtrack_coef", "between 0 and 1")
    for name in ("ent_coef", "vf_coef", "cg_damping"):
        require(0 <= getattr(cfg, name) < math.inf, name, "a finite number, at least 0")
    for name in ("gamma", "gae_lambda"):
        require(0 <= getattr(cfg, name) <= 1, name, "in [0, 1]")
    require(math.isfinite(cfg.log_std_init), "log_std_init", "finite")
    for name in ("target_kl", "adaptive_kl"):
        value = getattr(cfg, name)
        require(value is None or 0 < value < math.inf, name, "a finite number above 0, or unset")
    require(len(cfg.hidden_sizes) >= 1 and min(cfg.hidden_sizes) >= 1, "hidden_sizes", "one or more widths, each >= 1")
    require(max(cfg.hidden_sizes) < 2**31, "hidden_sizes", "widths below 2**31")
    require(len(set(cfg.log)) == len(cfg.log), "log", "a list without repetitions")


def _check_together(cfg: Any, defaults: Mapping[str, Any]) -> None:
    """Raise ``ConfigError`` for options that exclude each other."""
    set_by_hand = [name for name in BELONGS if getattr(cfg, name) != defaults[name]]
    if wrong := why_foreign(set_by_hand, cfg.algo):
        raise ConfigError(wrong)
    if cfg.adaptive_kl is not None and cfg.anneal_lr:
        raise ConfigError("adaptive_kl and anneal_lr both set the learning rate: --no-anneal-lr leaves it to the first")
    if cfg.algo != "ppo" and cfg.norm_adv == "minibatch":
        raise ConfigError(
            f"norm_adv 'minibatch' belongs to PPO, and algo is {cfg.algo!r}, whose policy step takes the whole batch; "
            "'batch' and 'none' are allowed"
        )
    if cfg.policy_weight != "advantage" and cfg.gae_lambda != 1.0:
        raise ConfigError(
            f"policy_weight {cfg.policy_weight!r} needs gae_lambda 1, without which returns hold values of the critic, "
            f"got {cfg.gae_lambda!r}"
        )
    torchs = [name for name, ours in (("update", "auto"), ("precision", "float32")) if getattr(cfg, name) != ours]
    if cfg.learner_threads and (cfg.learner == "torch" or torchs):
        asked = "learner 'torch'" if cfg.learner == "torch" else f"torch's {torchs[0]} {getattr(cfg, torchs[0])!r}"
        raise ConfigError(
            f"learner_threads {cfg.learner_threads} belongs to the native learner, and {asked} was asked for; "
            "leave it at 0, or set torch_threads"
        )
    if cfg.learner == "native" and torchs:
        name = torchs[0]
        raise ConfigError(
            f"{name} {getattr(cfg, name)!r} belongs to the torch learner, and learner 'native' was asked for; "
            f"leave {name} at {defaults[name]!r}, or take learner 'torch'"
        )
    if cfg.precision == "tf32" and cfg.device == "cpu":
        raise ConfigError("precision 'tf32' is for NVIDIA GPUs, and device is 'cpu'; allowed: 'float32', 'bf16'")
    if cfg.on_nan == "rollback" and not cfg.checkpoint_every:
        raise ConfigError("on_nan 'rollback' needs checkpoints to go back to, and checkpoint_every is 0")
    if cfg.total_timesteps <= cfg.batch_size:
        raise ConfigError(
            f"total_timesteps must be above num_envs * num_steps = {cfg.batch_size}, the first rollout, which is not "
            f"learned from, got {cfg.total_timesteps}"
        )
    if cfg.batch_size % cfg.minibatch_size:
        raise ConfigError(
            f"minibatch_size must divide num_envs * num_steps = {cfg.num_envs} * {cfg.num_steps} = {cfg.batch_size}, "
            f"got {cfg.minibatch_size}"
        )
