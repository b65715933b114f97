"""Policies as users call them, and honest evaluation: deterministic actions, frozen statistics, raw rewards.

Axes: N rows · D observation · A action · E episodes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ppo_fast import checkpoint, envs
from ppo_fast.config import Config, from_dict
from ppo_fast.envs.base import ActionRescaler, EnvSpec
from ppo_fast.errors import CheckpointError, NonFiniteError, ShapeError
from ppo_fast.keywords import checked_keywords
from ppo_fast.models import ActorCritic
from ppo_fast.normalizers import ObsNormalizer
from ppo_fast.state import make_model, unpack_policy

MAX_EPISODE_STEPS = 10_000  # where an environment without a time limit of its own is cut
EVALUATION = 1  # purpose of the environments' seeds: never those of training


class Policy:
    """A policy with its normaliser inside: raw observations in, deterministic actions out."""

    def __init__(self, model: ActorCritic, flat: Tensor, normalizer: ObsNormalizer, spec: EnvSpec) -> None:
        self.model, self.normalizer, self.spec = model, normalizer, spec
        self.flat = flat.detach().cpu().clone()
        self._params = model.params(self.flat)

    @torch.no_grad()
    def head(self, obs: NDArray[Any]) -> Tensor:
        """Return the means in policy units (N, A), or the logits (N, K), for raw observations (N, D).

        Raises:
            ShapeError: ``obs`` is not (N, D).
        """
        if obs.ndim != 2 or obs.shape[1] != self.model.obs_dim:
            raise ShapeError(f"obs must have shape (N, {self.model.obs_dim}), got {obs.shape}")
        norm_obs = self.normalizer.normalize(obs.astype(np.float32))
        return self.model.head(self._params, torch.from_numpy(norm_obs))

    def mode(self, obs: NDArray[Any]) -> NDArray[np.float32]:
        """Return the most likely action in policy units, (N, A) float32, for raw observations (N, D).

        Raises:
            ShapeError: ``obs`` is not (N, D).
        """
        mode: NDArray[np.float32] = self.model.policy(self.head(obs), self._params.log_std).mode().numpy()
        return mode

    def __call__(self, obs: NDArray[Any]) -> Any:
        """Return what the environment's ``step`` takes, for raw observations (D,) or (N, D).

        Continuous actions are (A,) or (N, A) float32 in the environment's units; discrete ones an int64 or (N,) int64,
        of a MultiDiscrete space (C,) or (N, C) int64.

        Raises:
            ShapeError: ``obs`` is neither (D,) nor (N, D).
            NonFiniteError: a discrete action cannot be chosen, because a logit is NaN or infinite.
        """
        mode = self.mode(np.atleast_2d(obs))
        if self.spec.num_actions:
            if np.isnan(mode).any():
                raise NonFiniteError(f"{self.spec.env_id}: the policy's logits are not finite")
            actions: NDArray[Any] = self.spec.name_actions(mode[:, 0])
        else:
            actions = ActionRescaler(self.spec, len(mode))(mode).copy()
        return actions[0] if np.ndim(obs) == 1 else actions


@dataclass(frozen=True)
class EpisodeStats:
    """Returns and lengths of E episodes."""

    returns: NDArray[np.float64]
    lengths: NDArray[np.int64]

    def to_json(self) -> dict[str, list[float] | list[int]]:
        """Return ``returns`` and ``lengths``."""
        return {"returns": self.returns.tolist(), "lengths": self.lengths.tolist()}

    @property
    def mean(self) -> float:
        """Mean return."""
        return float(self.returns.mean())

    @property
    def std(self) -> float:
        """Sample standard deviation of the return; 0 for one episode."""
        return float(self.returns.std(ddof=1)) if len(self.returns) > 1 else 0.0

    @property
    def ci95(self) -> float:
        """Half-width of the normal 95 % confidence interval of the mean."""
        return 1.96 * self.std / math.sqrt(len(self.returns))


class InterruptedEvaluation(Exception):
    """An evaluation was broken off because ``stop`` said so."""


def evaluate(
    policy: Policy,
    env_id: str,
    *,
    env_kwargs: Mapping[str, Any] | None = None,
    episodes: int = 20,
    seed: int = 1,
    backend: str = "auto",
    num_threads: int = 0,
    stop: Callable[[], bool] = lambda: False,
) -> EpisodeStats:
    """Run ``episodes`` full episodes, one per environment, so that short ones are not favoured.

    Actions are the most likely ones. The environments are their own: training is not disturbed, and the same seed gives
    the same episodes. ``stop`` is asked before every step. ``env_kwargs`` None are those that the policy was trained
    with, where ``env_id`` is what it was trained in, and none elsewhere.

    Raises:
        InterruptedEvaluation: ``stop`` returned True.
        EnvError, ConfigError, BackendError: the environments cannot be made.
        NonFiniteError: a reward was NaN or infinite.
    """
    if env_kwargs is None:
        env_kwargs = policy.spec.env_kwargs if env_id == policy.spec.env_id else {}
    env = envs.make(
        env_id, episodes, seed=seed, backend=backend, num_threads=num_threads, purpose=EVALUATION, env_kwargs=env_kwargs
    )
    try:
        n, d = episodes, env.spec.obs_dim
        obs, rewards = np.zeros((n, d), np.float32), np.zeros(n, np.float32)
        terminated, truncated, valid = (np.zeros(n, np.bool_) for _ in range(3))
        returns, lengths = np.zeros(n), np.zeros(n, np.int64)
        running = np.ones(n, np.bool_)
        env.reset(obs)
        for _ in range(env.spec.max_episode_steps or MAX_EPISODE_STEPS):
            if not running.any():
                break
            if stop():
                raise InterruptedEvaluation
            env.step(policy.mode(obs), obs, rewards, terminated, truncated, valid)
            counts = running & valid
            returns[counts] += rewards[counts]
            lengths += counts
            running &= ~(terminated | truncated)
    finally:
        env.close()
    if not np.isfinite(returns).all():
        bad = np.flatnonzero(~np.isfinite(returns)).tolist()
        raise NonFiniteError(f"evaluation: the returns of episodes {bad} are not finite")
    return EpisodeStats(returns, lengths)


def load_policy(path: str | Path) -> Policy:
    """Load the policy of a run (its newest good checkpoint) or of one checkpoint, normaliser included.

    Raises:
        CheckpointError: there is no readable checkpoint at ``path``.
    """
    return policy_from(checkpoint.locate(path))


def policy_from(saved: checkpoint.Checkpoint) -> Policy:
    """Build the policy that a checkpoint holds.

    Raises:
        CheckpointError: its parts do not fit together.
    """
    try:
        cfg = Config(**from_dict(saved.state["config"], source=str(saved.path)))
        spec = spec_from_json(saved.state["env_spec"])
        model = make_model(cfg, spec)
        normalizer = ObsNormalizer(spec.obs_dim, clip=cfg.clip_obs, enabled=cfg.norm_obs)
        flat = unpack_policy(saved.model, model, normalizer)
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as err:
        raise CheckpointError(f"{saved.path} does not hold a policy of this version: {err}") from err
    return Policy(model, flat, normalizer, spec)


def spec_to_json(spec: EnvSpec) -> dict[str, Any]:
    """Return the environment's description as JSON-ready values (infinite bounds as strings)."""
    return {
        "env_id": spec.env_id,
        "backend": spec.backend,
        "obs_dim": spec.obs_dim,
        "act_dim": spec.act_dim,
        "action_low": [repr(float(v)) for v in spec.action_low],
        "action_high": [repr(float(v)) for v in spec.action_high],
        "max_episode_steps": spec.max_episode_steps,
        "num_actions": spec.num_actions,
        "first_action": spec.first_action,
        "env_kwargs": dict(spec.env_kwargs),
        "obs_layout": spec.obs_layout,
        "choices": list(spec.choices),
    }


def spec_from_json(values: dict[str, Any]) -> EnvSpec:
    """Invert :func:`spec_to_json`; what is from before discrete actions is continuous."""
    if not isinstance(values["env_id"], str):
        raise TypeError(f"env_id must be a string, got {values['env_id']!r:.50}")
    low, high = (np.array([float(v) for v in values[name]]) for name in ("action_low", "action_high"))
    return EnvSpec(
        values["env_id"],
        values["backend"],
        values["obs_dim"],
        values["act_dim"],
        low,
        high,
        values["max_episode_steps"],
        values.get("num_actions", 0),
        values.get("first_action", 0),
        checked_keywords(values.get("env_kwargs", {})),
        str(values.get("obs_layout", "")),
        tuple(int(count) for count in values.get("choices", ())),
    )
