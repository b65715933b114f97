"""Collect T steps of N environments with torch: whole batches in the order of the environments, on any device.

Axes: T steps · N envs · D observation · A action.
"""

from __future__ import annotations

from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from ppo_fast import kernels
from ppo_fast.batch import Rollout
from ppo_fast.envs.base import VectorEnv
from ppo_fast.envs.replay import EpisodeLog, start_envs
from ppo_fast.models import ActorCritic
from ppo_fast.normalizers import ObsNormalizer
from ppo_fast.rollout.finite import check_finite
from ppo_fast.timing import PhaseTimer


class RolloutWorker:
    """Own the (T, N) buffers, drive the environments with a policy, and fill a :class:`Rollout`.

    Only the actor runs between two environment steps. Values and log-probabilities need the whole rollout once, and
    all action noise of a rollout is drawn at once: it is keyed by (seed, global env index, step), not by order.

    Args:
        env: the environments; reset here, or replayed.
        model: shapes of the networks.
        normalizer: frozen while a rollout is collected.
        num_steps: T.
        seed: key of the action noise.
        device: where the networks run.
        timer: receives the phases ``physics`` and ``act``.
        log: what ``env`` has to go through to be where a run goes on; None for a reset.
        first_env: global index of environment 0, for the noise.
    """

    def __init__(
        self,
        env: VectorEnv,
        model: ActorCritic,
        normalizer: ObsNormalizer,
        *,
        num_steps: int,
        seed: int,
        device: torch.device,
        timer: PhaseTimer,
        log: EpisodeLog | None = None,
        first_env: int = 0,
    ) -> None:
        self.env, self.model, self.normalizer = env, model, normalizer
        self.num_steps, self.seed, self.device, self.timer = num_steps, seed, device, timer
        n, d, a = env.num_envs, env.spec.obs_dim, env.spec.act_dim
        self.buffers = Rollout.allocate(num_steps, n, d, a, first_env)
        self.steps_done = 0  # per environment, reset rows included: half of the noise's key
        self._heads = np.zeros((num_steps, n, model.head_dim), np.float32)
        # MKL's last bit depends on the alignment of its input, and row t of an odd-sized buffer begins anywhere.
        self._norm_obs = torch.zeros(n, d)
        self._env_ids = np.tile(np.arange(first_env, first_env + n, dtype=np.int64), num_steps)
        self._noise = np.empty((num_steps * n, a), np.float64)
        start_envs(env, log, self.buffers.obs[-1])

    @torch.no_grad()
    def collect(self, flat: Tensor) -> Rollout:
        """Return the next rollout under parameters ``flat`` (P,); its arrays are overwritten by the next call.

        Raises:
            NonFiniteError: an action, a reward or an observation of a valid row is NaN or infinite; nothing has been
                added to any statistic.
        """
        buf, timer = self.buffers, self.timer
        params = self.model.params(flat)
        log_std = params.log_std.cpu()
        noise = self._draw_noise()
        buf.obs[0] = buf.obs[-1]
        for t in range(self.num_steps):
            start = perf_counter()
            buf.norm_obs[t] = self.normalizer.normalize(buf.obs[t], out=self._norm_obs.numpy())
            head = self.model.head(params, self._norm_obs.to(self.device)).cpu()
            self._heads[t] = head
            buf.actions[t] = self.model.policy(head, log_std).sample(noise[t])
            acted = perf_counter()
            self.env.step(
                buf.actions[t], buf.obs[t + 1], buf.rewards[t], buf.terminated[t], buf.truncated[t], buf.valid[t]
            )
            timer.add("act", acted - start)
            timer.add("physics", perf_counter() - acted)
        self.steps_done += self.num_steps
        check_finite(buf, self.steps_done)

        with timer("act"):
            np.logical_or(buf.terminated, buf.truncated, out=buf.done)
            self.normalizer.normalize(buf.obs[-1], out=buf.norm_obs[-1])
            rows = self._tensor(buf.norm_obs.reshape(-1, self.model.obs_dim))
            buf.values_all.reshape(-1)[:] = self.model.value(params, rows).cpu()
            policy = self.model.policy(torch.from_numpy(self._heads), log_std)
            buf.log_probs[:] = policy.log_prob(torch.from_numpy(buf.actions))
        return buf

    def _draw_noise(self) -> Tensor:
        """Return the (T, N, A) float64 numbers that the policy's samples are made of."""
        t, n = self.num_steps, self.env.num_envs
        steps = np.repeat(np.arange(self.steps_done, self.steps_done + t, dtype=np.int64), n)
        draw = kernels.uniforms if self.model.num_actions else kernels.normals
        draw(self._env_ids, steps, self.model.act_dim, seed=self.seed, out=self._noise)
        return torch.from_numpy(self._noise).reshape(t, n, -1)

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.device)
