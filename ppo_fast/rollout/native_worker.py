"""Collect T steps of N environments with the native actor, which answers every environment when it comes back.

Axes: T steps · N envs · D observation · A action · b rows of an arrival.
"""

from __future__ import annotations

from time import perf_counter

import numpy as np
from torch import Tensor

from ppo_fast import native
from ppo_fast.batch import Rollout
from ppo_fast.envs import StreamEnv
from ppo_fast.envs.base import ActionRescaler
from ppo_fast.envs.replay import EpisodeLog, start_envs
from ppo_fast.errors import BackendError, NonFiniteError
from ppo_fast.models import ActorCritic
from ppo_fast.normalizers import ObsNormalizer
from ppo_fast.rollout.finite import check_finite
from ppo_fast.timing import PhaseTimer


class NativeRolloutWorker:
    """Own the (T, N) buffers and fill a :class:`Rollout` by one pass of the C++ core over each arrival.

    The pass casts, stores, normalises, acts with noise keyed by (seed, global env index, step), and writes every field
    at its (t, env), so that the rollout's bits depend neither on the order nor on the size of the arrivals. While it
    runs, the simulator steps the environments that have not come back yet.

    Args:
        env: the environments; reset here, or replayed.
        model: shapes of the networks.
        normalizer: frozen while a rollout is collected.
        num_steps: T.
        seed: key of the action noise.
        timer: receives the phases ``physics``, the wait for the simulator, and ``act``.
        simd: ``avx512``, ``avx2`` or ``baseline``; empty: what ``PPO_FAST_SIMD`` says, else the best there is.
        log: what ``env`` has to go through to be where a run goes on; None for a reset.
        first_env: global index of environment 0, for the noise.

    Raises:
        BackendError: the core is missing or lacks something, or this processor does not run that SIMD level.
    """

    def __init__(
        self,
        env: StreamEnv,
        model: ActorCritic,
        normalizer: ObsNormalizer,
        *,
        num_steps: int,
        seed: int,
        timer: PhaseTimer,
        simd: str = "",
        log: EpisodeLog | None = None,
        first_env: int = 0,
    ) -> None:
        if reason := native.lacks(model):
            raise BackendError(f"the native actor cannot be had: {reason}")
        from ppo_fast import _core

        self.env, self.model, self.normalizer, self.timer = env, model, normalizer, timer
        self.num_steps, self.seed = num_steps, seed
        n, a = env.num_envs, model.act_dim
        rescaler = ActionRescaler(env.spec, n)
        try:
            self.core = _core.PpoActor(
                native.networks(model),
                num_envs=n,
                num_steps=num_steps,
                seed=seed,
                first_env=first_env,
                normalize=normalizer.enabled,
                clip_obs=float(normalizer.clip),
                action_low=rescaler.low.tolist(),
                half_range=rescaler.half_range.tolist(),
                bounded=rescaler.bounded.tolist(),
                simd=simd,
            )
        except ValueError as err:
            raise BackendError(f"the native actor cannot be had: {err}") from None
        self.simd = self.core.simd_level
        self.buffers = Rollout.allocate(num_steps, n, model.obs_dim, a, first_env)
        self.steps_done = 0  # per environment, reset rows included: half of the noise's key
        self._env_ids, self._actions = np.empty(n, np.int32), np.empty((n, a), np.float64)
        start_envs(env, log, self.buffers.obs[-1])

    def collect(self, flat: Tensor) -> Rollout:
        """Return the next rollout under parameters ``flat`` (P,); its arrays are overwritten by the next call.

        Raises:
            NonFiniteError: an action, a reward or an observation of a valid row is NaN or infinite; nothing has been
                added to any statistic.
        """
        buf, core, env, timer = self.buffers, self.core, self.env, self.timer
        start = perf_counter()
        waited = 0.0
        core.load(flat.cpu().numpy(), *self.normalizer.constants)
        buf.obs[0] = buf.obs[-1]
        answers = core.begin(
            buf.obs, buf.norm_obs, buf.actions, buf.log_probs, buf.values_all, buf.rewards, buf.terminated,
            buf.truncated, buf.valid, first_step=self.steps_done, out_env_ids=self._env_ids, out_actions=self._actions,
        )  # fmt: skip
        while core.remaining:
            self._require_finite_actions()
            if answers:
                env.send(self._env_ids[:answers], self._actions[:answers])
            sent = perf_counter()
            arrivals = env.recv()
            waited += perf_counter() - sent
            answers = core.receive(*arrivals, self._env_ids, self._actions)
        self._require_finite_actions()
        self.steps_done += self.num_steps
        check_finite(buf, self.steps_done)
        np.logical_or(buf.terminated, buf.truncated, out=buf.done)
        timer.add("physics", waited)
        timer.add("act", perf_counter() - start - waited)
        return buf

    def _require_finite_actions(self) -> None:
        if self.core.failed_env >= 0:
            check_finite(self.buffers, self.steps_done + self.num_steps)  # the cause, if a row that came back is bad
            env = self.buffers.first_env + self.core.failed_env
            raise NonFiniteError(
                f"the action of environment {env} is not finite, at a step from {self.steps_done} on; it was not taken",
                [(self.steps_done, env)],
            )
