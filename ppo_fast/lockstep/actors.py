"""The actors: each is shown the reference's observations as if it had acted, and what it makes of them is compared.

T steps · N envs · D observation · A action · P parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ppo_fast.config import Config
from ppo_fast.envs.base import Bool, CheckedVectorEnv, EnvSpec, Float32
from ppo_fast.errors import BackendError
from ppo_fast.lockstep.numerics import take_over
from ppo_fast.lockstep.report import Group, Stages
from ppo_fast.lockstep.rules import Equal, TwoTimesRule
from ppo_fast.lockstep.teacher import Teacher, Twin, Watcher, flat_state
from ppo_fast.models import ActorCritic
from ppo_fast.normalizers import ObsNormalizer
from ppo_fast.reference.policy import ActorCritic as ReferenceNet
from ppo_fast.reference.policy import choose
from ppo_fast.rollout import NativeRolloutWorker, RolloutWorker, Worker
from ppo_fast.timing import PhaseTimer

STAGES: Stages = {
    "stored rows": Equal,
    "actions to the env": Equal,
    "normalised rows": TwoTimesRule,
    "sampled actions": TwoTimesRule,
    "log-probabilities": TwoTimesRule,
    "values": TwoTimesRule,
}
NEAR = 1e-6  # a uniform this close to a boundary between two actions, relatively, may fall to either side in float32
MakeActor = Callable[["Replay", ActorCritic, ObsNormalizer, Config], Worker]


class Replay(CheckedVectorEnv):
    """Environments that answer what the reference's answered, whatever the actions, which are written down."""

    def __init__(self, spec: EnvSpec, num_envs: int, first_obs: Float32) -> None:
        super().__init__(spec, num_envs)
        self._first_obs = first_obs
        self._t = 0

    def play(self, ppo: Teacher) -> None:
        """Answer the next T steps with the reference's last rollout."""
        self._batch, self._obs_all, self._t = ppo.batch, ppo.obs_all, 0
        self.actions = np.full(self._batch["actions"].shape, np.nan, np.float32)

    def _reset(self, obs: Float32) -> None:
        obs[:] = self._first_obs

    def _step(
        self, actions: Float32, obs: Float32, rewards: Float32, terminated: Bool, truncated: Bool, valid: Bool
    ) -> None:
        t, batch = self._t, self._batch
        self.actions[t] = actions
        obs[:], rewards[:], terminated[:] = self._obs_all[t + 1], batch["rewards"][t], batch["terminated"][t]
        truncated[:], valid[:] = batch["done"][t] & ~batch["terminated"][t], batch["valid"][t]
        self._t += 1

    def _close(self, *, interrupted: bool) -> None:
        """Nothing was opened."""


def torch_actor(env: Replay, model: ActorCritic, normalizer: ObsNormalizer, cfg: Config) -> Worker:
    """Make the actor of ``--actor torch``."""
    return RolloutWorker(
        env, model, normalizer, num_steps=cfg.num_steps, seed=cfg.seed, device=torch.device("cpu"), timer=PhaseTimer()
    )


def native_actor(simd: str) -> MakeActor:
    """Return what makes the actor of ``--actor native`` at one SIMD level."""

    def make(env: Replay, model: ActorCritic, normalizer: ObsNormalizer, cfg: Config) -> Worker:
        return NativeRolloutWorker(
            env, model, normalizer, num_steps=cfg.num_steps, seed=cfg.seed, timer=PhaseTimer(), simd=simd
        )

    return make


#: Every actor that a run may use; one that raises BackendError is listed with the reason.
ACTORS: dict[str, MakeActor] = {
    "torch": torch_actor,
    **{f"native {simd}": native_actor(simd) for simd in ("avx512", "avx2", "baseline")},
}


class Actor(Watcher):
    """One actor, from one rollout of the reference to the next."""

    def __init__(self, make: MakeActor, ppo: Teacher, model: ActorCritic, spec: EnvSpec, cfg: Config) -> None:
        self._cfg, self._model = cfg, model
        self._env = Replay(spec, cfg.num_envs, ppo.obs)
        self._normalizer = ObsNormalizer(model.obs_dim, clip=cfg.clip_obs)
        self._worker = make(self._env, model, self._normalizer, cfg)
        self._exact = Twin(ppo, model, torch.float64)

    def rollout(self, ppo: Teacher) -> None:
        """Act through the rollout again, with the reference's parameters and statistics."""
        batch, rules = ppo.batch, self.rules
        take_over(self._normalizer.moments, ppo.obs_normalizer)
        self._normalizer.freeze()
        self._env.play(ppo)
        ours = self._worker.collect(flat_state(ppo, self._model)["flat"])
        rules["stored rows"].add(ours.obs, ppo.obs_all)
        rules["stored rows"].add(ours.rewards, batch["rewards"].astype(np.float32))
        for name in ("terminated", "done", "valid"):
            rules["stored rows"].add(getattr(ours, name), batch[name])
        # A discrete action stays an index up to the adapter.
        to_env = ours.actions if ppo.num_actions else ppo.to_env(ours.actions)
        rules["actions to the env"].add(self._env.actions, to_env)

        mean, std = ppo.obs_normalizer.mean, ppo.obs_normalizer.std
        plain = normalize(ours.obs, mean.astype(np.float32), std.astype(np.float32), self._cfg.clip_obs)
        exact = normalize(ours.obs.astype(np.float64), mean, std, self._cfg.clip_obs)
        self._add("normalised rows", ours.norm_obs, plain, exact)

        self._exact.follow(ppo)
        plain_policy, exact_policy = (
            evaluate(p.net, torch.from_numpy(ours.norm_obs).to(dtype), torch.from_numpy(ours.actions).to(dtype))
            for p, dtype in ((ppo, torch.float32), (self._exact.ppo, torch.float64))
        )
        self._add("log-probabilities", ours.log_probs, plain_policy.log_probs, exact_policy.log_probs)
        self._add("values", ours.values_all, plain_policy.values, exact_policy.values)
        if ppo.num_actions:
            rules["sampled actions"].add(ours.actions, nearest_choice(ours.actions, exact_policy.heads, ppo.noise))
        else:
            noise = torch.from_numpy(ppo.noise.astype(np.float32)).view(ours.actions.shape)
            plain_actions, exact_actions = (
                p.heads + torch.exp(p.log_std) * noise.to(p.heads.dtype) for p in (plain_policy, exact_policy)
            )
            self._add("sampled actions", ours.actions, plain_actions, exact_actions)

    def _add(self, stage: str, candidate: Any, plain: Any, exact: Any) -> None:
        self.rules[stage].add({stage: candidate}, {stage: plain}, {stage: exact}, batches=self._cfg.num_steps)


def normalize(rows: Any, mean: Any, std: Any, clip: float) -> Any:
    """Compute what the reference's normaliser computes, in the dtype of its arguments."""
    return np.clip((rows - mean) / std, -clip, clip)


class Evaluation(NamedTuple):
    """What the reference's networks make of a rollout."""

    heads: Tensor  # (T, N, H) means, or logits
    log_probs: Tensor  # (T, N)
    values: Tensor  # (T+1, N)
    log_std: Tensor  # (A,), empty of a categorical policy


@torch.no_grad()
def evaluate(net: ReferenceNet, norm_obs: Tensor, actions: Tensor) -> Evaluation:
    """Evaluate the reference's networks on normalised rows (T+1, N, D), and on actions (T, N, A), in their dtype."""
    heads, values = net(norm_obs)
    heads = heads[:-1]
    log_probs = net.log_prob(heads.flatten(0, 1), actions.flatten(0, 1)).view(actions.shape[:2])
    return Evaluation(heads, log_probs, values, heads.new_empty(0) if net.num_actions else net.log_std.detach())


def nearest_choice(actions: Float32, logits: Tensor, u: npt.NDArray[np.float64]) -> Float32:
    """Return what the reference chooses in float64 by uniforms (T·N, 1), or ``actions`` where rounding may decide."""
    low, high = (choose(logits.flatten(0, 1), u * (1 + sign * NEAR)).numpy().reshape(actions.shape) for sign in (-1, 1))
    return np.clip(actions, low, high)


def make_actors(ppo: Teacher, model: ActorCritic, spec: EnvSpec, cfg: Config) -> tuple[Group, list[Actor]]:
    """Return the table of the actors, and those that can be had here."""
    stages = {**STAGES, "sampled actions": Equal} if spec.num_actions else STAGES
    group, actors = Group("actors", stages), []
    for name, make in ACTORS.items():
        try:
            actor = Actor(make, ppo, model, spec, cfg)
        except BackendError as error:
            group.missing[name] = str(error)
            continue
        actor.rules = group.add_column(name)
        actors.append(actor)
    return group, actors
