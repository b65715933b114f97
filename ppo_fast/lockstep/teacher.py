"""The reference trainer, watched: at each of its stages the fast path is given what it had, and held to what it made.

T steps · N envs · B = T·N rows · M rows of a minibatch · D observation · P parameters.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from gymnasium.wrappers.vector import TransformObservation, TransformReward
from torch import Tensor, nn

from ppo_fast.models import ActorCritic
from ppo_fast.reference.policy import ActorCritic as ReferenceNet
from ppo_fast.reference.ppo import PPO, Settings
from ppo_fast.reference.rng import normals, uniforms
from ppo_fast.reference.shuffle import permutation

Array = npt.NDArray[Any]
MOMENTS = ("exp_avg", "exp_avg_sq")


class Watcher:
    """Compares the fast path with the reference, stage by stage; a subclass overrides what it has a stage for."""

    rules: dict[str, Any]  # by stage

    def rollout(self, ppo: Teacher) -> None:
        """See T steps: ``ppo.batch``. Policy and observation statistics are still those that acted."""

    def scaled(self, ppo: Teacher) -> None:
        """See the rewards scaled: ``ppo.scaled_rewards``, and the statistics of returns advanced."""

    def judged(self, ppo: Teacher) -> None:
        """See advantages and returns in ``ppo.batch``."""

    def minibatch(self, ppo: Teacher, rows: dict[str, Tensor], epoch: int, chosen: Array) -> None:
        """See a minibatch before its step: its rows that count, and the indices (M,) of all its rows."""

    def learned(self, ppo: Teacher) -> None:
        """See the end of an iteration, the observation statistics advanced."""


class Teacher(PPO):
    """The reference trainer, on observations and rewards rounded to float32 as the fast trainer's adapters round them.

    Args:
        settings: the reference's options; ``target_kl`` must be None.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.envs = TransformObservation(self.envs, lambda obs: obs.astype(np.float32))
        self.envs = TransformReward(self.envs, lambda reward: reward.astype(np.float32).astype(np.float64))
        self.obs = self.obs.astype(np.float32)
        self.watchers: list[Watcher] = []
        self.batch: dict[str, Array] = {}  # the last rollout, as the reference keeps it
        self.scaled_rewards = np.zeros(0, np.float32)
        self._order: Iterator[tuple[int, Array]] = iter(())

    @property
    def obs_all(self) -> Array:
        """(T+1, N, D) the observations of the last rollout, the one that follows it included."""
        return np.concatenate([self.batch["obs"], self.obs[None]])

    @property
    def noise_names(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """(T·N,) environments and steps that name the noise of the last rollout."""
        num_steps, num_envs = self.batch["valid"].shape
        steps = np.arange(self.steps_done - num_steps, self.steps_done)
        return np.tile(np.arange(num_envs), num_steps), np.repeat(steps, num_envs)

    @property
    def noise(self) -> npt.NDArray[np.float64]:
        """(T·N, A) the noise of the last rollout: normals, or uniforms where a discrete action is drawn."""
        draw = uniforms if self.num_actions else normals
        return draw(self.settings.seed, *self.noise_names, self.act_dim)

    def rollout(self) -> dict[str, Array]:
        """Take T steps, as the reference does."""
        self.batch = super().rollout()
        for watcher in self.watchers:
            watcher.rollout(self)
        return self.batch

    def scale_rewards(self, batch: dict[str, Array]) -> Array:
        """Scale rewards, as the reference does."""
        self.scaled_rewards = super().scale_rewards(batch)
        for watcher in self.watchers:
            watcher.scaled(self)
        return self.scaled_rewards

    def judge(self, batch: dict[str, Array]) -> None:
        """Add advantages and value targets, as the reference does."""
        super().judge(batch)
        for watcher in self.watchers:
            watcher.judged(self)

    def learn(self, batch: dict[str, Array]) -> dict[str, float]:
        """Learn, as the reference does."""
        self._order = iter(self._minibatches(batch["valid"].reshape(-1)))
        learned = super().learn(batch)
        for watcher in self.watchers:
            watcher.learned(self)
        return learned

    def minibatch(self, rows: dict[str, Tensor]) -> float:
        """Take one gradient step, as the reference does."""
        epoch, chosen = next(self._order)
        for watcher in self.watchers:
            watcher.minibatch(self, rows, epoch, chosen)
        return super().minibatch(rows)

    def warm_up(self) -> None:
        """Show the normalisers a rollout, as the reference does."""
        super().warm_up()
        for watcher in self.watchers:
            watcher.learned(self)

    def _minibatches(self, valid: Array) -> list[tuple[int, Array]]:
        """Return (epoch, indices) of the minibatches with a row that counts, which learn() is about to visit."""
        s = self.settings
        return [
            (epoch, chosen)
            for epoch in range(self.epochs_done, self.epochs_done + s.update_epochs)
            for chosen in permutation(valid.size, s.seed, epoch).reshape(-1, s.minibatch_size)
            if valid[chosen].any()
        ]


class Twin:
    """The reference's loss and step in float32 or in float64, from wherever the teacher stands.

    In float32 it is the yardstick, what plain code loses; in float64 it is the truth.
    """

    def __init__(self, ppo: PPO, model: ActorCritic, dtype: torch.dtype) -> None:
        self.model, self.dtype = model, dtype
        self.ppo = copy.copy(ppo)
        self.ppo.net = copy.deepcopy(ppo.net).to(dtype)
        self.ppo.optimizer = torch.optim.Adam(self.ppo.net.parameters())

    def follow(self, ppo: PPO) -> None:
        """Take the teacher's parameters, optimizer state and learning rate, cast to this dtype."""
        self.ppo.net.load_state_dict(ppo.net.state_dict())
        self.ppo.optimizer.load_state_dict(copy.deepcopy(ppo.optimizer.state_dict()))  # else float32 moments are shared

    def minibatch(self, rows: Mapping[str, Tensor]) -> tuple[dict[str, float], dict[str, Tensor], dict[str, Tensor]]:
        """Return what the teacher makes of a minibatch: loss and KL, clipped gradient by name, and the new state."""
        rows = {name: row.to(self.dtype) if row.is_floating_point() else row for name, row in rows.items()}
        with torch.no_grad():
            loss, kl = PPO.loss(self.ppo, rows)
        PPO.minibatch(self.ppo, rows)
        named = reference_parameters(self.ppo.net).items()
        gradient = {name: parameter.grad for name, parameter in named if parameter.grad is not None}
        return {"loss": float(loss), "KL": float(kl)}, gradient, flat_state(self.ppo, self.model)

    def adam(self, gradient: Tensor) -> dict[str, Tensor]:
        """Return the new state that Adam makes of a gradient (P,), which has been clipped."""
        views = self.model.unflatten(gradient.to(self.dtype))
        for name, parameter in reference_parameters(self.ppo.net).items():
            parameter.grad = views[name].clone()
        self.ppo.optimizer.step()
        return flat_state(self.ppo, self.model)


def reference_parameters(net: ReferenceNet) -> dict[str, Tensor]:
    """Return the reference's parameters under the names of the flat vector."""
    out: dict[str, Tensor] = {} if net.num_actions else {"actor.log_std": net.log_std}
    for which, network in net.named_children():
        for layer, linear in enumerate(part for part in network.children() if isinstance(part, nn.Linear)):
            out[f"{which}.{layer}.weight"], out[f"{which}.{layer}.bias"] = linear.weight, linear.bias
    return out


def flat_state(ppo: PPO, model: ActorCritic) -> dict[str, Tensor]:
    """Return ``flat``, ``exp_avg`` and ``exp_avg_sq`` of the reference, (P,) each; moments begin at 0."""
    named, state = reference_parameters(ppo.net), ppo.optimizer.state
    parameters = [named[name] for name in model.shapes()]

    def join(tensors: Iterable[Tensor]) -> Tensor:
        return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])

    moments = {key: join(state[p][key] if p in state else torch.zeros_like(p) for p in parameters) for key in MOMENTS}
    return {"flat": join(parameters), **moments}


def steps_of_adam(ppo: PPO) -> int:
    """Return how many steps the reference's Adam has taken."""
    return max((int(state["step"]) for state in ppo.optimizer.state.values()), default=0)
