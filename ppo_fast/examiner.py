"""The policy of a run under evaluation: the first process evaluates it, and all learn the result."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ppo_fast.config import Config
from ppo_fast.envs.base import EnvSpec
from ppo_fast.evaluation import EpisodeStats, InterruptedEvaluation, Policy, evaluate
from ppo_fast.normalizers import ObsNormalizer
from ppo_fast.parts import Parts


class Examiner:
    """Evaluate the policy of a run.

    Args:
        cfg: the run's options.
        spec: of its environments.
        parts: whose policy it is.
    """

    def __init__(self, cfg: Config, spec: EnvSpec, parts: Parts) -> None:
        self._cfg, self._spec, self._parts = cfg, spec, parts

    def policy(self) -> Policy:
        """Return a copy of the current policy with its normaliser."""
        cfg, parts = self._cfg, self._parts
        frozen = ObsNormalizer(self._spec.obs_dim, clip=cfg.clip_obs, enabled=cfg.norm_obs)
        frozen.moments.load(parts.normalizer.moments.state())
        frozen.freeze()
        return Policy(parts.model, parts.learner.flat, frozen, self._spec)

    def examine(self, stop: Callable[[], bool]) -> EpisodeStats | None:
        """Return returns and lengths on other environments, the same in every process; None if it was broken off.

        Args:
            stop: asked before every step; True breaks it off.

        Raises:
            NonFiniteError: a reward was NaN or infinite.
        """
        numbers = np.frombuffer(self._parts.peers.first(lambda: self._evaluated(stop)))
        if not numbers.size:
            return None
        returns, lengths = np.split(numbers, 2)
        return EpisodeStats(returns, lengths.astype(np.int64))

    def _evaluated(self, stop: Callable[[], bool]) -> bytes:
        cfg = self._cfg
        try:
            stats = evaluate(
                self.policy(), cfg.env, episodes=cfg.eval_episodes, seed=cfg.seed, backend=cfg.env_backend,
                num_threads=cfg.env_threads, stop=stop,
            )  # fmt: skip
        except InterruptedEvaluation:
            return b""
        return np.concatenate([stats.returns, stats.lengths]).tobytes()  # float64, in which every length is exact
