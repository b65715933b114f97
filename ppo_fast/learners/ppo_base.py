"""What every PPO learner does around its minibatch steps: stage the rollout, shuffle, stop on KL, report, keep state.

Axes: T steps · N envs · B = T·N rows · D observation · A action · P parameters.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ppo_fast import kernels
from ppo_fast.batch import Bool, Float32, Rollout
from ppo_fast.config import Config
from ppo_fast.distributed import ALONE, Peers
from ppo_fast.errors import ShapeError
from ppo_fast.kernels._checks import BOOL, FLOAT32, check_array, check_choices
from ppo_fast.learners.ppo_step import ADV_EPS, STATS, LossConfig
from ppo_fast.learners.shared import normalized, of_minibatches, shared_pass
from ppo_fast.models import ActorCritic

Order = NDArray[np.int64]

RATES = (1e-6, 1e-2)  # between which ``adaptive_kl`` moves the learning rate
RATE_FACTOR = 1.5


class PPOLearner(ABC):
    """PPO with Adam on the flat parameter vector; a subclass makes the steps of an epoch.

    Args:
        model: shapes of the networks.
        flat: (P,) initial parameters; copied to ``device``.
        cfg: the run's options.
        device: where the update runs.
        peers: the processes that share their gradients.

    Raises:
        ShapeError: ``flat`` is not (P,) float32.
    """

    name: str  # as in --learner
    mode: str  # how a step runs, for the banner and the log
    why_eager: str = ""
    compile_s: float = 0.0
    simd: str | None = None
    threads: int = 1

    def __init__(
        self, model: ActorCritic, flat: Tensor, cfg: Config, device: torch.device, *, peers: Peers = ALONE
    ) -> None:
        if flat.shape != (model.num_params,) or flat.dtype != torch.float32:
            raise ShapeError(f"flat must be ({model.num_params},) torch.float32, got {tuple(flat.shape)} {flat.dtype}")
        self.model, self.cfg, self.device, self.peers = model, cfg, device, peers
        self.hp = LossConfig(
            clip_coef=cfg.clip_coef, clip_vloss=cfg.clip_vloss, precision=cfg.precision,
            norm_adv_minibatch=cfg.norm_adv == "minibatch" and peers.size == 1,  # else before the pass, over all
            ent_coef=cfg.ent_coef,
            vf_coef=cfg.vf_coef,
            max_grad_norm=cfg.max_grad_norm,
            adam_eps=cfg.adam_eps,
        )  # fmt: skip
        self.flat = flat.detach().clone().to(device)
        self.exp_avg, self.exp_avg_sq = torch.zeros_like(self.flat), torch.zeros_like(self.flat)
        self.adam_steps = 0
        self.epochs_done = 0
        self.base_rate = self.learning_rate = cfg.learning_rate

    def set_progress(self, progress: float, lr_scale: float = 1.0) -> None:
        """Set the learning rate: ``lr · lr_scale``, times ``1 − progress`` when annealed; ``adaptive_kl`` moves lr."""
        self.learning_rate = self.base_rate * (1.0 - progress if self.cfg.anneal_lr else 1.0) * lr_scale

    # --- the update --------------------------------------------------------------------------------------------------
    def update(self, rollout: Rollout) -> dict[str, float]:
        """Run ``update_epochs`` passes over the rollout; waits for the device once per epoch only with ``target_kl``.

        The KL rule: after each epoch, a mean KL over that epoch's valid rows above ``target_kl`` ends the update.

        Raises:
            ShapeError: an array of the rollout is not as ``cfg`` and the model say, or an action of a valid row is no
                index of a categorical policy.
        """
        batch = self.stage(rollout)
        if not self.cfg.recompute_adv:
            return self.learn(batch)
        stats: list[Tensor] = []
        while len(stats) < self.cfg.update_epochs and not self._stops(stats[-1:]):
            if stats:
                batch |= self._judged_again(rollout)
            stats.append(self._passes(batch, 1)[0])
            self.epochs_done += 1
        return self._learned(torch.stack(stats))

    def learn(self, batch: dict[str, Float32]) -> dict[str, float]:
        """Do the same with a batch that :meth:`stage` made, and the advantages and returns in it."""
        stats = self._passes(batch, self.cfg.update_epochs)
        self.epochs_done += len(stats)
        return self._learned(stats)

    def _stops(self, stats: Sequence[Tensor]) -> bool:
        """Return whether the KL rule ends an update after a pass with these sums."""
        target = self.cfg.target_kl
        return target is not None and any(mean_kl(each) > target for each in stats)

    def _judged_again(self, rollout: Rollout) -> dict[str, Float32]:
        """Return advantages and returns as today's critic sees the rollout; the policy's old probabilities stay.

        Source: Andrychowicz et al., arXiv:2006.05990, §3.5.
        """
        steps, envs = rollout.valid.shape
        rows = torch.from_numpy(rollout.norm_obs.reshape((steps + 1) * envs, -1)).to(self.device)
        with torch.no_grad():
            values = self.model.value(self.model.params(self.flat), rows).cpu().numpy().reshape(steps + 1, envs)
        advantages, returns = kernels.gae(
            rollout.scaled_rewards, values[:-1], values[1:], rollout.terminated, rollout.done,
            gamma=self.cfg.gamma, gae_lambda=self.cfg.gae_lambda,
        )  # fmt: skip
        valid = rollout.valid
        return {
            "advantages": self._normed(np.where(valid, advantages, np.float32(0)).reshape(-1), valid.reshape(-1)),
            "returns": np.where(valid, returns, np.float32(0)).reshape(-1),
        }

    def _learned(self, stats: Tensor) -> dict[str, float]:
        if self.cfg.adaptive_kl is not None:
            self.base_rate = adapted_rate(self.base_rate, mean_kl(stats[-1]), self.cfg.adaptive_kl)
        return {**self._metrics(stats.sum(0)), "learning_rate": self.learning_rate, "epochs": float(len(stats))}

    def _passes(self, batch: dict[str, Float32], passes: int) -> Tensor:
        """Do what :meth:`_epochs` does, or what :meth:`_shared_epochs` does where there are several processes."""
        return self._epochs(batch, passes) if self.peers.size == 1 else self._shared_epochs(batch, passes)

    def _shared_epochs(self, batch: dict[str, Float32], passes: int) -> Tensor:
        cfg, stats = self.cfg, list[Tensor]()
        self._begin()
        while len(stats) < passes and not self._stops(stats[-1:]):
            stream = kernels.stream_id(self.peers.rank, self.epochs_done + len(stats))
            order = kernels.permutation(cfg.batch_size, seed=cfg.seed, stream=stream)
            rows = order.reshape(cfg.num_minibatches, cfg.minibatch_size)
            counts, own, advantages = of_minibatches(batch, rows, self.peers)
            self._shuffle(batch | ({"advantages": advantages} if cfg.norm_adv == "minibatch" else {}), order)
            stats.append(shared_pass(counts, own, self._gradient, self._step, self.flat, self.peers))
        self._end()
        return torch.stack(stats)

    @abstractmethod
    def _begin(self) -> None:
        """Get ready for gradients and steps."""

    @abstractmethod
    def _end(self) -> None:
        """Bring ``flat``, Adam's moments and its steps up to date."""

    @abstractmethod
    def _shuffle(self, batch: dict[str, Float32], order: Order) -> None:
        """Take in a batch whose k-th minibatch are the rows ``order[k * M : (k + 1) * M]``, until the next call."""

    @abstractmethod
    def _gradient(self, k: int) -> tuple[Tensor, Tensor]:
        """Return the mean gradient (P,) over the valid rows of minibatch k, of which there are some, and its sums."""

    @abstractmethod
    def _step(self, gradient: Tensor) -> Tensor | float:
        """Clip the gradient (P,), make a step of Adam, and return the norm before clipping."""

    @abstractmethod
    def _epochs(self, batch: dict[str, Float32], passes: int) -> Tensor:
        """Step through the batch in minibatches of M rows, ``passes`` times or until the KL rule says stop.

        Pass e takes the rows in the order ``permutation(B, seed, stream=epochs_done + e)``.

        Returns:
            (passes, len(STATS)), the sums that ``STATS`` names.
        """

    def stage(self, rollout: Rollout) -> dict[str, Float32]:
        """Flatten to (B, ...) and put 0 wherever a row does not count, before any arithmetic touches it.

        Raises:
            ShapeError: as of :meth:`update`.
        """
        self._check(rollout)
        valid = rollout.valid.reshape(-1)

        def rows(array: Float32) -> Float32:
            return array.reshape(len(valid), *array.shape[2:])

        def masked(array: Float32) -> Float32:
            flat = rows(array)
            return np.where(valid if flat.ndim == 1 else valid[:, None], flat, np.float32(0))

        return {
            "norm_obs": rows(rollout.norm_obs[:-1]),
            "actions": masked(rollout.actions),
            "log_probs": masked(rollout.log_probs),
            "advantages": self._normed(masked(rollout.advantages), valid),
            "returns": masked(rollout.returns),
            "values": rows(rollout.values),
            "valid": valid.astype(np.float32),
        }

    def _normed(self, advantages: Float32, valid: Bool) -> Float32:
        """Return advantages (B,), normalised over the valid rows of the batch if that is asked for."""
        if self.cfg.norm_adv == "batch" and self.peers.size > 1:
            return normalized(advantages[None], valid[None], self.peers)[2].reshape(-1)
        chosen = advantages[valid].astype(np.float64)
        if self.cfg.norm_adv != "batch" or not chosen.size:
            return advantages
        normed = (advantages.astype(np.float64) - chosen.mean()) / (chosen.std() + ADV_EPS)
        return np.where(valid, normed, 0.0).astype(np.float32)

    def _check(self, rollout: Rollout) -> None:
        steps, envs = self.cfg.num_steps, self.cfg.num_envs

        def check(name: str, axes: str, *shape: int, dtype: np.dtype[Any] = FLOAT32) -> None:
            check_array(name, getattr(rollout, name), dtype, axes, shape)

        check("norm_obs", "(T+1, N, D)", steps + 1, envs, self.model.obs_dim)
        check("actions", "(T, N, A)", steps, envs, self.model.act_dim)
        for name in ("log_probs", "advantages", "returns", "values"):
            check(name, "(T, N)", steps, envs)
        check("valid", "(T, N)", steps, envs, dtype=BOOL)
        if self.model.num_actions:
            check_choices(rollout.actions[rollout.valid], self.model.num_actions)

    def _metrics(self, stats: Tensor) -> dict[str, float]:
        sums = dict(zip(STATS, stats.tolist(), strict=True))
        rows, steps = max(sums.pop("rows"), 1.0), max(sums.pop("steps"), 1.0)
        grad_norm = sums.pop("grad_norm") / steps
        return {**{name: total / rows for name, total in sums.items()}, "grad_norm": grad_norm}

    def state(self) -> dict[str, Tensor]:
        """Return Adam's moments (P,) and the counters, on the CPU; the same of every learner."""
        counters = torch.tensor([self.adam_steps, self.epochs_done], dtype=torch.int64)
        moments = {"exp_avg": self.exp_avg.cpu().clone(), "exp_avg_sq": self.exp_avg_sq.cpu().clone()}
        base_rate = {"base_rate": torch.tensor([self.base_rate], dtype=torch.float64)}
        return {**moments, "counters": counters, **({} if self.cfg.adaptive_kl is None else base_rate)}

    def load(self, state: dict[str, Tensor]) -> None:
        """Restore what :meth:`state` returned.

        Raises:
            ShapeError: a tensor has another shape or dtype, is not finite, or is negative where that cannot be.
        """
        for name, into in (("exp_avg", self.exp_avg), ("exp_avg_sq", self.exp_avg_sq)):
            given = state[name]
            if given.shape != into.shape or given.dtype != into.dtype or not bool(given.isfinite().all()):
                raise ShapeError(f"{name} must be {tuple(into.shape)} {into.dtype}, finite, got {tuple(given.shape)}")
        counters = state["counters"]
        if (
            counters.shape != (2,)
            or counters.dtype != torch.int64
            or not bool(((counters >= 0) & (counters < 2**53)).all())
        ):
            raise ShapeError("counters must be (2,) int64 in [0, 2**53)")
        if bool((state["exp_avg_sq"] < 0).any()):
            raise ShapeError("exp_avg_sq must not be negative")
        if self.cfg.adaptive_kl is not None and "base_rate" in state:  # else the rule begins now
            rate = state["base_rate"]
            if rate.shape != (1,) or rate.dtype != torch.float64 or not 0 < float(rate) < math.inf:
                raise ShapeError("base_rate must be (1,) float64, finite and above 0")
            self.base_rate = float(rate)
        self.exp_avg.copy_(state["exp_avg"])
        self.exp_avg_sq.copy_(state["exp_avg_sq"])
        self.adam_steps, self.epochs_done = counters.tolist()

    def is_finite(self) -> bool:
        """Return whether every parameter and every moment of Adam is finite; waits for the device."""
        return bool(torch.stack([array.sum() for array in (self.flat, self.exp_avg, self.exp_avg_sq)]).isfinite().all())


def mean_kl(stats: Tensor) -> float:
    """Return the mean KL over the valid rows of one pass, from the sums ``STATS``."""
    sums = dict(zip(STATS, stats.tolist(), strict=True))
    return float(sums["approx_kl"] / max(sums["rows"], 1.0))


def adapted_rate(rate: float, kl: float, target: float) -> float:
    """Return the learning rate of the next update, given the mean KL of this one's last epoch.

        lr / 1.5 where KL > 2 target,   1.5 lr where KL < target / 2,   within [1e-6, 1e-2]

    Source: the rule of the adaptive penalty of Schulman et al., arXiv:1707.06347, §4, applied to the learning rate, as
    rl_games and rsl_rl do.
    """
    if kl > 2.0 * target:
        rate /= RATE_FACTOR
    elif kl < 0.5 * target:
        rate *= RATE_FACTOR
    return min(max(rate, RATES[0]), RATES[1])
