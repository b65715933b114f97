"""What is compared: recipes in the words of ppo_fast's options, and the settings under which each trainer runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ppo_fast.errors import ConfigError

TASKS = ("Ant-v5", "HalfCheetah-v5")
OURS = "ppo_fast"
PEERS = ("rl_games", "stable_baselines3")

# rl_games' recipes for EnvPool, which its package ships as configs/mujoco/*_envpool.yaml (1.6.5; for the v4 tasks).
# run_rl_games.py compares them with the files. What ppo_fast has no option for: the learning rate follows the KL
# divergence minibatch by minibatch, and the critic's targets are normalised instead of the rewards.
_RL_GAMES: dict[str, Any] = {
    "num_envs": 64,
    "minibatch_size": 2048,
    "activation": "elu",
    "shared_trunk": True,
    "log_std_init": 0.0,
    "norm_adv": "batch",
    "clip_coef": 0.2,
    "gamma": 0.99,
    "gae_lambda": 0.95,
    "ent_coef": 0.0,
    "max_grad_norm": 1.0,
    "target_kl": None,  # whatever the task's preset has
    "clip_obs": 5.0,
}


def _own(hidden: tuple[int, ...], rate: float, steps: int, epochs: int, vf_coef: float, clip_v: bool) -> dict[str, Any]:
    return _RL_GAMES | {
        "hidden_sizes": hidden,
        "learning_rate": rate,
        "num_steps": steps,
        "update_epochs": epochs,
        "vf_coef": vf_coef,
        "clip_vloss": clip_v,
    }


RL_GAMES: dict[str, dict[str, Any]] = {
    "Ant-v5": _own((256, 128, 64), 3e-4, 64, 4, 2.0, True),
    "HalfCheetah-v5": _own((128, 64, 32), 5e-4, 256, 5, 4.0, False),
    "Hopper-v5": _own((256, 128, 64), 5e-4, 64, 5, 2.0, False),
    "Humanoid-v5": _own((512, 256, 128), 3e-4, 128, 5, 4.0, True),
    "Walker2d-v5": _own((256, 128, 64), 3e-4, 128, 5, 2.0, False),
}

# The batch of Tianshou's MuJoCo benchmark: most return from 1M steps.
SAMPLE_EFFICIENT: dict[str, Any] = {
    "num_envs": 64,
    "num_steps": 32,
    "minibatch_size": 64,
    "update_epochs": 10,
    "hidden_sizes": (64, 64),
    "activation": "tanh",
    "shared_trunk": False,
    "log_std_init": -0.5,
    "norm_adv": "minibatch",
    "learning_rate": 3e-4,
    "clip_coef": 0.2,
    "clip_vloss": False,
    "gamma": 0.99,
    "gae_lambda": 0.95,
    "ent_coef": 0.0,
    "vf_coef": 0.5,
    "max_grad_norm": 0.5,
    "target_kl": None,
    "clip_obs": 10.0,
    "clip_reward": 10.0,
}

SMOKE: dict[str, Any] = {"num_envs": 4, "num_steps": 8, "minibatch_size": 16, "update_epochs": 2, "hidden_sizes": (8,)}


@dataclass(frozen=True)
class Recipe:
    """One batch and network, and who trains with it."""

    name: str  # as the children know it
    title: str
    trainers: tuple[str, ...]

    def options(self, env_id: str) -> dict[str, Any]:
        """Return the recipe for a task in the words of ppo_fast's options.

        Raises:
            ConfigError: rl_games ships no recipe for the task.
        """
        if self.name != "rl_games":
            return SAMPLE_EFFICIENT
        if env_id not in RL_GAMES:
            raise ConfigError(
                f"env must be one of {', '.join(RL_GAMES)}, for which rl_games has a recipe, got {env_id!r}"
            )
        return RL_GAMES[env_id]


RECIPES = (
    Recipe("rl_games", "rl_games' recipe", (OURS, "rl_games")),
    Recipe("sample", "sample-efficient recipe", (OURS, *PEERS)),
)


@dataclass(frozen=True)
class Setting:
    """How one trainer is run: environment variables, and options that only its script knows."""

    name: str
    variables: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    best: bool = False  # takes part in the comparison; the others only in the trials


_ONE, _PASSIVE = {"OMP_NUM_THREADS": "1"}, {"OMP_WAIT_POLICY": "passive"}

# `--trials` compares them all; what follows was seen on two cores with nothing else to do. On a busy machine both peers
# as they come, with a torch thread per core that waits spinning, were 6 to 28 times slower on HalfCheetah.
SETTINGS: dict[str, tuple[Setting, ...]] = {
    OURS: (Setting("as it comes", best=True),),
    # Eager and torch.compile, its default, are within 12 % of each other, and eager starts 20 s sooner. More threads
    # that wait passively help the larger networks of its own recipe by up to 5 % and halve the speed of the small ones.
    "rl_games": (
        Setting("1 torch thread, eager", _ONE, {"torch_threads": 1, "torch_compile": False}, best=True),
        Setting(
            "as it comes, passive waiting, eager", _PASSIVE, {"torch_threads": 0, "torch_compile": False}, best=True
        ),
        Setting("1 torch thread", _ONE, {"torch_threads": 1, "torch_compile": True}, best=True),
        Setting("as it comes, passive waiting", _PASSIVE, {"torch_threads": 0, "torch_compile": True}),
        Setting("as it comes", {}, {"torch_threads": 0, "torch_compile": True}),
    ),
    # On HalfCheetah, where the update takes most of the time, DummyVecEnv was 10 % faster than EnvPool (two rounds of
    # 3 s, which differed by 40 %), SubprocVecEnv slower.
    "stable_baselines3": (
        Setting("EnvPool, 1 torch thread", _ONE, {"torch_threads": 1, "vec_env": "envpool"}, best=True),
        Setting("EnvPool, as it comes", {}, {"torch_threads": 0, "vec_env": "envpool"}, best=True),
        Setting("EnvPool, as it comes, passive waiting", _PASSIVE, {"torch_threads": 0, "vec_env": "envpool"}),
        Setting("DummyVecEnv, 1 torch thread", _ONE, {"torch_threads": 1, "vec_env": "dummy"}),
        Setting("SubprocVecEnv, 1 torch thread", _ONE, {"torch_threads": 1, "vec_env": "subproc"}),
    ),
}
