"""Stable-Baselines3 as one lane of ``python -m benchmarks.peers``; runs in its own virtual environment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import envpool
import gymnasium as gym
import numpy as np
import torch
from evaluate import evaluation
from pace import Pace, job, versions
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecMonitor, VecNormalize

ACTIVATIONS = {"tanh": torch.nn.Tanh, "relu": torch.nn.ReLU, "elu": torch.nn.ELU}


class EnvPoolVecEnv(VecEnv):
    """EnvPool as a VecEnv, as in EnvPool's own example for Stable-Baselines3, less what costs time there.

    The example fills a dict of all infos for every environment in every step and resets finished environments one by
    one; here a dict holds what Stable-Baselines3 reads, and one call resets them all.
    """

    def __init__(self, env_id: str, num_envs: int, seed: int, num_threads: int) -> None:
        self.pool = envpool.make(
            env_id, env_type="gymnasium", num_envs=num_envs, seed=seed, num_threads=num_threads
        )  # fmt: skip
        super().__init__(num_envs, self.pool.observation_space, self.pool.action_space)
        self._actions: np.ndarray

    def reset(self) -> np.ndarray:
        return self.pool.reset()[0]

    def step_async(self, actions: np.ndarray) -> None:
        self._actions = actions

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        obs, rewards, terminated, truncated, _ = self.pool.step(self._actions)
        dones = terminated | truncated
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        if dones.any():
            (finished,) = np.nonzero(dones)
            for env in finished:
                infos[env] = {
                    "terminal_observation": obs[env].copy(),
                    "TimeLimit.truncated": bool(truncated[env] and not terminated[env]),
                }
            obs[finished] = self.pool.reset(finished)[0]
        return obs, rewards.astype(np.float32), dones, infos

    def close(self) -> None: ...

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [getattr(self.pool, attr_name, None)] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        raise NotImplementedError

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        raise NotImplementedError

    def env_is_wrapped(self, wrapper_class: type, indices: Any = None) -> Sequence[bool]:
        return [False] * len(list(self._get_indices(indices)))


class Callback(BaseCallback):
    """Ends an iteration where the next rollout begins."""

    def __init__(self, asked: dict[str, Any]) -> None:
        super().__init__()
        self._asked = asked
        self._pace = Pace(asked, self.facts)

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if self.num_timesteps:
            self._pace.iteration(self.num_timesteps)

    def facts(self) -> dict[str, Any]:
        """Return what shows that it learns, and on what."""
        returns = [episode["r"] for episode in self.model.ep_info_buffer]
        optimizer = self.model.policy.optimizer
        return {
            "optimizer_steps": int(next(iter(optimizer.state.values()))["step"].item()),
            "episode_return": float(np.mean(returns)) if returns else None,
            "num_params": sum(p.numel() for p in self.model.policy.parameters()),
            "versions": versions("stable-baselines3", "torch", "numpy", "envpool", "gymnasium"),
            **evaluation(self._asked, self._act),
        }

    def _act(self, obs: np.ndarray) -> np.ndarray:
        """Return what the policy takes for best, with the statistics as they are."""
        return self.model.predict(self.model.get_vec_normalize_env().normalize_obs(obs), deterministic=True)[0]


def make_env(kind: str, asked: dict[str, Any]) -> VecEnv:
    """Return the environments, stepped by EnvPool, in this process, or in a process each."""
    env_id, num_envs, seed = asked["env_id"], asked["options"]["num_envs"], asked["seed"]
    if kind == "envpool":
        return EnvPoolVecEnv(env_id, num_envs, seed, asked["env_threads"])
    makers = [lambda: gym.make(env_id) for _ in range(num_envs)]
    # fork: the processes share the memory of what is imported, and torch has not computed anything yet.
    env = DummyVecEnv(makers) if kind == "dummy" else SubprocVecEnv(makers, start_method="fork")
    env.seed(seed)
    return env


def main() -> None:
    """Train until the parent has seen enough."""
    asked = job()
    options, setting = asked["options"], asked["setting"]
    env = VecNormalize(
        VecMonitor(make_env(setting["vec_env"], asked)),
        clip_obs=options["clip_obs"], clip_reward=options["clip_reward"], gamma=options["gamma"],
    )  # fmt: skip
    if setting["torch_threads"]:
        torch.set_num_threads(setting["torch_threads"])
    rate = options["learning_rate"]
    model = PPO(
        "MlpPolicy",
        env,
        n_steps=options["num_steps"],
        batch_size=options["minibatch_size"],
        n_epochs=options["update_epochs"],
        learning_rate=lambda remaining: rate * remaining,
        gamma=options["gamma"],
        gae_lambda=options["gae_lambda"],
        clip_range=options["clip_coef"],
        clip_range_vf=options["clip_coef"] if options["clip_vloss"] else None,
        ent_coef=options["ent_coef"],
        vf_coef=options["vf_coef"] / 2,  # its value loss is the square, not half of it
        max_grad_norm=options["max_grad_norm"],
        policy_kwargs={
            "net_arch": options["hidden_sizes"],  # of actor and critic, which share nothing
            "activation_fn": ACTIVATIONS[options["activation"]],
            "log_std_init": options["log_std_init"],
        },
        seed=asked["seed"],
        device="cpu",
        verbose=1,
    )
    model.learn(
        total_timesteps=asked.get("total_timesteps", 1_000_000_000), callback=Callback(asked)
    )  # ends when it has been measured


if __name__ == "__main__":
    main()
