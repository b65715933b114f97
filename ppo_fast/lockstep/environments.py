"""The environments: our Gymnasium adapter beside the reference's vector environments, on the same seeds and actions."""

from __future__ import annotations

import numpy as np

from ppo_fast import envs
from ppo_fast.config import Config
from ppo_fast.lockstep.report import Group, Stages
from ppo_fast.lockstep.rules import Equal
from ppo_fast.lockstep.teacher import Teacher, Watcher

STAGES: Stages = {"observations": Equal, "rewards": Equal, "episode ends": Equal}


class Environments(Watcher):
    """Step the adapter with the reference's actions; it resets, rescales and rounds on its own.

    EnvPool draws its own first states, so it cannot be held to the reference here.
    """

    def __init__(self, cfg: Config) -> None:
        self.group = Group("environments", STAGES)
        self.group.missing["envpool"] = "its generator draws other first states; from equal states the tests compare it"
        self.rules = self.group.add_column("gymnasium")
        self._env = envs.make(cfg.env, cfg.num_envs, seed=cfg.seed, backend="gymnasium")
        self._obs = np.empty((cfg.num_envs, self._env.spec.obs_dim), np.float32)
        self._env.reset(self._obs)

    def rollout(self, ppo: Teacher) -> None:
        """Step through the rollout again."""
        batch, obs_all = ppo.batch, ppo.obs_all
        rewards = np.empty(self._env.num_envs, np.float32)
        terminated, truncated, valid = (np.empty(self._env.num_envs, np.bool_) for _ in range(3))
        self.rules["observations"].add(self._obs, obs_all[0])
        for t, actions in enumerate(batch["actions"]):
            self._env.step(actions, self._obs, rewards, terminated, truncated, valid)
            self.rules["observations"].add(self._obs, obs_all[t + 1])
            self.rules["rewards"].add(rewards, batch["rewards"][t].astype(np.float32))
            for name, flag in (("terminated", terminated), ("done", terminated | truncated), ("valid", valid)):
                self.rules["episode ends"].add(flag, batch[name][t])

    def close(self) -> None:
        """Close the environments."""
        self._env.close()
