"""How fast each learner is on this machine for the shapes of one run. What ``--learner auto`` takes is a rule.

The rule (:mod:`ppo_fast.learners.choose`) does not measure: two runs with the same options take the same learner.

Axes: T steps · N envs · D observation · A action.
"""

from __future__ import annotations

import dataclasses
import math
import time
from typing import Any

import numpy as np
import torch

from ppo_fast.batch import Rollout
from ppo_fast.config import Config
from ppo_fast.errors import BackendError
from ppo_fast.learners.base import Learner
from ppo_fast.learners.choose import make_learner
from ppo_fast.models import ActorCritic

_LEAST = 3  # updates that are timed, of which the fastest counts: other programs can only slow one down
_SECONDS = 2.0  # for which updates are repeated
_MOST = 50


@dataclasses.dataclass(frozen=True)
class Timing:
    """One learner: how it runs, and what its fastest update took, all of it, per minibatch; or why it cannot be had."""

    device: str
    learner: str
    update: str
    us_per_minibatch: float | None = None
    why_not: str = ""

    def options(self) -> str:
        """Return the command line that asks for it."""
        update = f" --update {self.update}" if self.learner == "torch" else ""
        return f"--device {self.device} --learner {self.learner}{update}"


def calibrate(cfg: Config, model: ActorCritic, device: torch.device) -> tuple[list[Timing], str]:
    """Time the update of every learner that could run ``cfg`` here; return them, the fastest first, and auto's choice.

    On the CPU torch runs eagerly, because a compilation takes longer than all else here.

    Args:
        cfg: of PPO; its own ``device``, ``learner`` and ``update`` are what is chosen among.
        model: shapes of the networks.
        device: what ``--device auto`` means here.

    Returns:
        The timings, and device, learner and reason of ``--learner auto`` in words.
    """
    ways = [("cpu", "native", "auto"), ("cpu", "torch", "eager")]
    if device.type == "cuda":
        ways += [("cuda", "torch", update) for update in ("eager", "compile", "graph")]
    rollout = _random_rollout(cfg, model)
    found: dict[tuple[str, str, str], Timing] = {}
    learners: dict[tuple[str, str, str], Learner] = {}
    for way in ways:
        try:
            learners[way] = _make(cfg, model, *way)
        except BackendError as err:
            found[way] = Timing(*way, why_not=str(err))
    for way, seconds in _fastest(learners, rollout).items():
        each = 1e6 * seconds / (cfg.update_epochs * cfg.num_minibatches)
        found[way] = Timing(way[0], way[1], learners[way].mode, round(each, 2))
    order = sorted(found.values(), key=lambda timing: timing.us_per_minibatch or math.inf)
    return order, _choice(cfg, model, device)


def _make(cfg: Config, model: ActorCritic, device: str, learner: Any, update: Any) -> Learner:
    own = dataclasses.replace(cfg, device="auto", learner=learner, update=update, target_kl=None)
    return make_learner(model, model.init(cfg.seed, cfg.log_std_init), own, torch.device(device))[0]


def _fastest(learners: dict[tuple[str, str, str], Learner], rollout: Rollout) -> dict[tuple[str, str, str], float]:
    """Return the seconds of each learner's fastest update; they take turns, so that a busy machine is so for all."""
    for learner in learners.values():
        learner.update(rollout)  # what is done once
    taken: dict[tuple[str, str, str], list[float]] = {way: [] for way in learners}
    begun, rounds = time.perf_counter(), 0
    while rounds < _LEAST or (rounds < _MOST and time.perf_counter() - begun < _SECONDS):
        for way, learner in learners.items():
            start = time.perf_counter()
            learner.update(rollout)  # its metrics are numbers, so it has waited for the device
            taken[way].append(time.perf_counter() - start)
        rounds += 1
    return {way: min(seconds) for way, seconds in taken.items()}


def _choice(cfg: Config, model: ActorCritic, device: torch.device) -> str:
    auto = dataclasses.replace(cfg, device="auto", learner="auto", update="auto", precision="float32")
    flat = model.init(cfg.seed, cfg.log_std_init)
    made, why = make_learner(model, flat, auto, device)
    return f"{made.name} on {device}, update {made.mode} ({why})"


def _random_rollout(cfg: Config, model: ActorCritic) -> Rollout:
    """Return a rollout whose numbers are of ordinary size, acted by the initial parameters."""
    rng = np.random.default_rng(cfg.seed)
    rollout = Rollout.allocate(cfg.num_steps, cfg.num_envs, model.obs_dim, model.act_dim)
    for array in (rollout.norm_obs, rollout.advantages, rollout.returns, rollout.values_all):
        array[:] = rng.normal(size=array.shape)
    params = model.params(model.init(cfg.seed, cfg.log_std_init))
    noise = rng.normal(size=rollout.actions.shape) if not model.num_actions else rng.random(rollout.actions.shape)
    with torch.no_grad():
        rows = torch.from_numpy(rollout.norm_obs[:-1].reshape(cfg.batch_size, -1))
        head = model.head(params, rows).reshape(cfg.num_steps, cfg.num_envs, -1)
        policy = model.policy(head, params.log_std)
        actions = policy.sample(torch.from_numpy(noise))
        rollout.actions[:] = actions.numpy()
        rollout.log_probs[:] = policy.log_prob(actions).numpy()
    rollout.valid[:] = True
    return rollout
