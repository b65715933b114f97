"""Hyper-parameters per task and aim, each line with its source, and the order in which options override each other.

``fast`` is the least wall-clock to a good policy: minibatches of 256, wider layers where they are no later.
``sample`` is the best return at 1M and 3M steps: minibatches of 64 (the recipe of Tianshou's MuJoCo benchmark: 64
environments x 32 steps, 10 epochs), except where larger ones learned as much or more. On most tasks both are the same.
TRPO and REINFORCE have the preset's rollout and networks, and an update of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ppo_fast.algos import foreign, why_foreign
from ppo_fast.config import DEFAULTS, Config, from_dict
from ppo_fast.errors import ConfigError

# 64 environments x 64 steps, 10 epochs of 16 minibatches of 256. Ant at 1M steps, seed 1: 2.7k to 4.0k with this (three
# runs that differ in rounding), 2.2k with 5 epochs, 1.3k with 5 epochs of minibatches of 1024 (one run each).
_FAST: dict[str, Any] = {
    "num_envs": 64,
    "num_steps": 64,
    "minibatch_size": 256,
    "update_epochs": 10,
    "learning_rate": 3e-4,
}
# Tianshou's benchmark recipe, without its recomputed advantages: 64 x 32 steps, 10 epochs of minibatches of 64.
_SAMPLE: dict[str, Any] = {**_FAST, "num_steps": 32, "minibatch_size": 64}

# Less initial noise, log-std -1 against -0.5 at 1M steps: HalfCheetah 5.6k to 6.4k against 5.5k (seed 1, two runs that
# differ in rounding), 8.0k to 8.5k against 5.2k (seed 2); Walker2d 4.8k against 4.2k (seed 1). No difference on Hopper
# (1.4k, seed 1); not compared on Ant.
_CALM: dict[str, Any] = {"log_std_init": -1.0}

# Swimming pays late: gamma and lambda of rl-zoo3. Returns at 1M of seeds 31 and 32: 355 and 350 with all five, 318 and
# 293 with less initial noise, 350 and 297 with 16 environments x 256 steps, -4 and 86 with the general options.
_SWIMMER: dict[str, Any] = {
    "gamma": 0.9999, "gae_lambda": 0.98, "num_steps": 128, "minibatch_size": 256, "learning_rate": 6e-4,
    "log_std_init": 0.0,
}  # fmt: skip

# What an action does shows at once. Returns at 1M of seeds 31 and 32: -4.0 and -3.9 with both, -4.2 and -4.0 with more
# initial noise, -4.8 and -4.4 with gamma 0.99.
_REACHER: dict[str, Any] = {"gamma": 0.9, "log_std_init": -1.0}

# Nearly all of what is seen is a pole that stands, and next to that the normaliser makes the first states of an episode
# huge. Mean return from 0.8M to 1M of seeds 31 and 32: 8.9k and 9.4k without it and with minibatches of 256, 8.2k and
# 9.4k without it, 8.1k and 9.1k with the minibatches, 8.7k and 8.2k with neither; lower and higher gamma, other initial
# noise, a KL stop and an entropy bonus had less.
_DOUBLE_PENDULUM: dict[str, Any] = {"norm_obs": False, "num_steps": 64, "minibatch_size": 256}

# A fall is one row in hundreds, and what is scaled per minibatch, advantages or gradient, gives the minibatches without
# one as much weight. Annealed over 3M, last tenth, seeds 31 and 32: 3.3k and 3.3k with advantages scaled by batch
# and hardly a gradient clipped. On seed 31 with neither 3.2k, after falls to 2.0k; with minibatches of 64 and half the
# rate 2.6k, with an entropy bonus as well 3.0k; with a gamma of 0.995 it stood still. On HalfCheetah it was no better.
# On seeds 51 to 55 that ended at 2.7k with layers of 64 (with minibatches of 64, at 2.5k), one seed falling at the end.
# Layers of 128: 3.6k, 3.6k, 3.7k, 3.4k, 3.4k and 3.5k on seeds 27 to 32, without a fall in the last million steps;
# on 56 to 60 3.3k, one of them falling at the end. Longer lambdas gain early and lose late: on seeds 27 to 32 0.95,
# 0.97 and 0.98 had 2.4k, 2.9k and 3.0k at 1M, and 3.5k, 3.2k and 3.3k at 3M, where with each of the longer ones a fast
# gait of one seed fell every 400 steps. A gamma of 0.995 hops slowly and stays up: 3.2k on seed 31; with lambda 0.97
# 2.7k there and 3.3k on 30.
_HOPPER: dict[str, Any] = {**_FAST, "norm_adv": "batch", "max_grad_norm": 100.0, "hidden_sizes": (128, 128)}

# Annealed over 3M steps, last tenth, seeds 31 and 32: 4.7k and 5.4k so, 4.8k and 4.5k with layers of 64, 4.2k and 4.3k
# with those and without the stop; wide without the stop went too far (a KL of 0.15), and stood at 2.5k after 1.9M (seed
# 31). Minibatches of 64 need half the learning rate and reached 3.1k at 1M (one run). Small layers without the stop are
# no earlier (alone on a core, 135 s and 133 s to 2000 and 302 s and 184 s to 3000; 131, 176, 184 and 275 s so).
_ANT: dict[str, Any] = {**_CALM, "target_kl": 0.02, "hidden_sizes": (128, 128)}

# Annealed over 3M steps, last tenth. Seeds 28, 30 and 31: 8.6k, 8.0k and 7.7k so, 6.8k, 6.9k and 7.5k with layers of
# 64. With those: 9.0k, 8.7k and 8.7k on seeds 27, 29 and 32, but 7.1k in the mean of seeds 51 to 55 (8.4k so), where
# the median time to 5000 was the same, 44 s, and to 6500 70 s of four of them (71 s of all five so); annealed over
# 10M, 9.5k, 8.1k and 8.3k on seeds 31, 51 and 52. Minibatches of 64 ended at 6.5k and 6.1k (31 and 32), at 7.1k with
# half the rate (31); on seed 28 a KL stop of 0.015 ended at 6.8k, ELU at 6.0k, a log-std of -0.5 at 5.4k and of -2 at
# 4.8k; first episodes of staggered length had 7.6k and 8.2k on seeds 28 and 31 and changed nothing on 27 and 29.
_CHEETAH: dict[str, Any] = {**_CALM, "hidden_sizes": (128, 128)}

# 3M steps, last tenth, seed 32: 5.8k so, 5.0k with layers of 64; half a million steps in, 3.5k and 1.2k. With those,
# 5.6k on seed 31, and 4.6k and 5.5k (stopped at 2.5M) with Hopper's options, but 4.4k in the mean of seeds 51 to 55
# (5.4k so), which reached 4000 in 189 s in the median (128 s so). Minibatches of 64 were not tried here.
_WALKER: dict[str, Any] = {**_CALM, "hidden_sizes": (128, 128)}

# Ten whole epochs go too far: with minibatches of 64, 1M steps ended at 0.8k, 1.6k and 0.7k without the stop, at
# 5.5k, 2.4k and 5.7k with it (seeds 11 to 13, docs/lineage.md; at 1M and 64 wide it did nothing on HalfCheetah and
# Ant, and harm on Hopper). With minibatches of 256 and it, 5.3k and 5.5k on seeds 12 and 13, 5.4k on 31, where it was
# 3.2k without.
_HUMANOID: dict[str, Any] = {"target_kl": 0.02}

# Annealed over 3M steps, seed 31: 150k at 1M, 221k at the end; without the stop the same until 0.9M, where it was
# left, at a KL of 0.05.
_STANDUP: dict[str, Any] = {"target_kl": 0.02}

# In both presets: what learned most was as early as anything else.
_BOTH: dict[str, dict[str, Any]] = {
    "Ant-v5": {**_FAST, **_ANT},
    "HalfCheetah-v5": {**_FAST, **_CHEETAH},
    "Humanoid-v5": {**_FAST, **_HUMANOID},
    "HumanoidStandup-v5": {**_FAST, **_STANDUP},
    "InvertedDoublePendulum-v5": _DOUBLE_PENDULUM,
    "Swimmer-v5": _SWIMMER,
    "Walker2d-v5": {**_FAST, **_WALKER},
}

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "fast": {"*": _FAST, **_BOTH, "Reacher-v5": _REACHER},
    "sample": {"*": _SAMPLE, **_BOTH, "Reacher-v5": _REACHER, "Hopper-v5": _HOPPER},
}

# What the others have in place of PPO's update. They normalise advantages over the batch that their policy step takes.
# TRPO: damping, delta (0.04 on HalfCheetah, 0.01 elsewhere), and the critic's 20 epochs at 1e-3, are rl-zoo3's. On seed
# 1, 300k steps, one run each, delta 0.04 against 0.01 had 5.3k against 4.3k on HalfCheetah and 1.4k against 1.3k on
# Ant; on Hopper, 1M steps, 0.04 ended at 1.0k and 0.7k (two seeds), 0.01 at 3.3k, 3.6k and 0.9k (three).
# REINFORCE: 3e-3 for the policy against 1e-2, HalfCheetah, seed 1, 300k steps: 3.6k against 2.8k (one run each).
OTHERS: dict[str, dict[str, dict[str, Any]]] = {
    "trpo": {"*": {"norm_adv": "batch", "learning_rate": 1e-3}, "HalfCheetah-v5": {"delta": 0.04}},
    "reinforce": {"*": {"norm_adv": "batch", "learning_rate": 1e-3, "policy_lr": 3e-3}},
}


def preset(env: str, name: str, algo: str = "ppo") -> dict[str, Any]:
    """Return the overrides of preset ``name`` for task ``env``: the general ones, the task's own, the algorithm's.

    Raises:
        ConfigError: there is no such preset.
    """
    if name not in PRESETS:
        raise ConfigError(f"preset must be one of {', '.join(map(repr, PRESETS))}, got {name!r}")
    tables = (PRESETS[name], OTHERS.get(algo, {}))
    options = {option: value for table in tables for key in ("*", env) for option, value in table.get(key, {}).items()}
    return {option: value for option, value in options.items() if option not in foreign(algo)}


def resolve_options(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Merge built-in values < preset of the task < ``layers``, weakest first, without checking the values.

    Raises:
        ConfigError: a key is no option, or belongs to another algorithm, or the preset does not exist.
    """
    chosen: dict[str, Any] = {}
    for layer in layers:
        chosen |= from_dict(layer, source="options")
    env, name, algo = (str(chosen.get(option, DEFAULTS[option])) for option in ("env", "preset", "algo"))
    if wrong := why_foreign(chosen, algo):
        raise ConfigError(wrong)
    return {**DEFAULTS, **preset(env, name, algo), **chosen}


def resolve(**overrides: Any) -> Config:
    """Build the ``Config`` of built-in values < preset of the task < ``overrides``.

    Raises:
        ConfigError: a value is not allowed.
    """
    return Config(**resolve_options(overrides))
