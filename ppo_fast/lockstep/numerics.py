"""What is computed around the networks: noise, statistics, rewards, advantages, orders, by every kernel backend."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ppo_fast import kernels
from ppo_fast.config import Config
from ppo_fast.lockstep.report import Group, Stages
from ppo_fast.lockstep.rules import Equal, TwoRoundings
from ppo_fast.lockstep.teacher import Teacher, Watcher
from ppo_fast.normalizers import Moments, ObsNormalizer, RewardScaler
from ppo_fast.reference import shuffle
from ppo_fast.reference.on_policy import RunningNormalizer

STAGES: Stages = {
    "action noise": Equal,
    "observation moments": Equal,
    "return moments": Equal,
    "scaled rewards": TwoRoundings,
    "GAE": Equal,
    "minibatch order": Equal,
    "gather": Equal,
}


class Backend(Watcher):
    """Run the kernels of one backend, and the normalisers on it, on what the reference had."""

    def __init__(self, name: str, cfg: Config, obs_dim: int) -> None:
        self.name, self._cfg = name, cfg
        self._normalizer = ObsNormalizer(obs_dim, clip=cfg.clip_obs)
        self._scaler = RewardScaler(cfg.num_envs, gamma=cfg.gamma, clip=cfg.clip_reward)
        self._epoch = -1  # the last one that was shuffled

    def rollout(self, ppo: Teacher) -> None:
        """Draw the noise of the rollout."""
        with using(self.name):
            draw = kernels.uniforms if ppo.num_actions else kernels.normals
            noise = draw(*ppo.noise_names, ppo.act_dim, seed=self._cfg.seed)
        self.rules["action noise"].add(noise, ppo.noise)

    def scaled(self, ppo: Teacher) -> None:
        """Advance the statistics of returns, and scale."""
        batch, theirs = ppo.batch, ppo.return_normalizer
        rewards = batch["rewards"].astype(np.float32)
        with using(self.name):
            self._scaler.update(rewards, batch["done"], batch["valid"])
        self._same_moments("return moments", self._scaler.moments, theirs)
        self.rules["return moments"].add(self._scaler.discounted, ppo.discounted_return)
        take_over(self._scaler.moments, theirs)
        self._scaler.discounted[:] = ppo.discounted_return
        scaled = self._scaler.scale(rewards, out=np.empty_like(rewards))
        limit = self._cfg.clip_reward
        self.rules["scaled rewards"].add(scaled, np.clip(batch["rewards"] / theirs.std[0], -limit, limit))

    def judged(self, ppo: Teacher) -> None:
        """Sweep back over the rollout."""
        batch = ppo.batch
        values, next_values = batch["values"][:-1], batch["values"][1:]
        with using(self.name):
            results = kernels.gae(
                ppo.scaled_rewards, values, next_values, batch["terminated"], batch["done"],
                gamma=self._cfg.gamma, gae_lambda=self._cfg.gae_lambda,
            )  # fmt: skip
        for name, ours in zip(("advantages", "returns"), results, strict=True):
            self.rules["GAE"].add(ours, batch[name])

    def minibatch(self, ppo: Teacher, rows: dict[str, Tensor], epoch: int, chosen: npt.NDArray[np.int64]) -> None:
        """Fetch the rows of a minibatch, and at its first one shuffle the epoch."""
        cfg, valid = self._cfg, ppo.batch["valid"].reshape(-1)
        with using(self.name):
            fetched = kernels.gather(ppo.batch["norm_obs"].reshape(cfg.batch_size, -1), chosen[valid[chosen]])
            self.rules["gather"].add(fetched, rows["norm_obs"].numpy())
            if epoch != self._epoch:
                self._epoch = epoch
                order = kernels.permutation(cfg.batch_size, seed=cfg.seed, stream=epoch)
                self.rules["minibatch order"].add(order, shuffle.permutation(cfg.batch_size, cfg.seed, epoch))

    def learned(self, ppo: Teacher) -> None:
        """Advance the statistics of observations."""
        with using(self.name):
            self._normalizer.update(ppo.batch["obs"], ppo.batch["valid"])
        self._same_moments("observation moments", self._normalizer.moments, ppo.obs_normalizer)
        take_over(self._normalizer.moments, ppo.obs_normalizer)

    def _same_moments(self, stage: str, ours: Moments, theirs: RunningNormalizer) -> None:
        for name, array in ours.state().items():
            self.rules[stage].add(array, getattr(theirs, name))


def make_backends(cfg: Config, obs_dim: int) -> tuple[Group, list[Backend]]:
    """Return the table of the backends, and those that can be had here."""
    group = Group("kernels", STAGES, missing=kernels.why_not())
    backends = [Backend(name, cfg, obs_dim) for name, there in kernels.available().items() if there]
    for backend in backends:
        backend.rules = group.add_column(backend.name)
    return group, backends


def take_over(ours: Moments, theirs: RunningNormalizer) -> None:
    """Copy the reference's statistics, so that an error of one iteration is not met again in the next."""
    ours.load({name: getattr(theirs, name) for name in ours.state()})


@contextlib.contextmanager
def using(backend: str) -> Iterator[None]:
    """Select a kernel backend for a while."""
    before = kernels.active()
    kernels.use(backend)
    try:
        yield
    finally:
        kernels.use(before)
