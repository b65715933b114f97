"""The torch learner: PPO epochs over shuffled minibatches, eager or compiled, on any device."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ppo_fast import kernels
from ppo_fast.batch import Float32, Rollout
from ppo_fast.config import Config
from ppo_fast.errors import BackendError
from ppo_fast.learners.ppo_step import (
    ADAM_BETAS,
    ADV_EPS,
    STATS,
    LossConfig,
    Minibatch,
    Optimizer,
    minibatch_step,
)
from ppo_fast.models import ActorCritic

log = logging.getLogger(__name__)

Step = Callable[[Optimizer, Tensor, Minibatch], None]

# On two CPU cores a compilation costs 10 to 20 s and saves 0.6 to 0.9 ms per minibatch step (bench_update.py).
COMPILE_PAYS_AFTER = 30_000


class TorchLearner:
    """PPO with Adam on the flat parameter vector.

    Args:
        model: shapes of the networks.
        flat: (P,) initial parameters; copied to ``device``.
        cfg: the run's options.
        device: where the update runs.

    Raises:
        BackendError: ``cfg.update == "compile"`` and no compiler works here.
    """

    def __init__(self, model: ActorCritic, flat: Tensor, cfg: Config, device: torch.device) -> None:
        self.model, self.cfg, self.device = model, cfg, device
        self.hp = LossConfig(
            clip_coef=cfg.clip_coef,
            clip_vloss=cfg.clip_vloss,
            norm_adv_minibatch=cfg.norm_adv == "minibatch",
            ent_coef=cfg.ent_coef,
            vf_coef=cfg.vf_coef,
            max_grad_norm=cfg.max_grad_norm,
            adam_eps=cfg.adam_eps,
        )
        self.flat = flat.detach().clone().to(device)
        self.opt = Optimizer(
            self.flat,
            torch.zeros_like(self.flat),
            torch.zeros_like(self.flat),
            torch.zeros(len(STATS), dtype=torch.float32, device=device),
        )
        self.adam_steps = 0
        self.epochs_done = 0
        self.learning_rate = cfg.learning_rate
        self._shuffled = self._allocate()
        self.mode, self.compile_s, self.why_eager = "eager", 0.0, ""
        self._step: Step = self._bind(compiled=False)
        self._choose_mode()

    # --- schedules ---------------------------------------------------------------------------------------------------
    def set_progress(self, progress: float) -> None:
        """Set the learning rate: ``lr · (1 − progress)`` when annealed, else ``lr``."""
        self.learning_rate = self.cfg.learning_rate * (1.0 - progress if self.cfg.anneal_lr else 1.0)

    # --- the update --------------------------------------------------------------------------------------------------
    def update(self, rollout: Rollout) -> dict[str, float]:
        """Run ``update_epochs`` passes over the rollout; waits for the device once per epoch only with ``target_kl``.

        The KL rule: after each epoch, a mean KL over that epoch's valid rows above ``target_kl`` ends the update.
        """
        batch = self._stage(rollout)
        stats = torch.zeros_like(self.opt.stats)
        epochs = 0
        for _ in range(self.cfg.update_epochs):
            self.opt.stats.zero_()
            self._epoch(batch)
            stats += self.opt.stats
            epochs += 1
            if self.cfg.target_kl is not None and self._mean_kl(self.opt.stats) > self.cfg.target_kl:
                break
        return {**self._metrics(stats), "learning_rate": self.learning_rate, "epochs": float(epochs)}

    def _stage(self, rollout: Rollout) -> dict[str, Float32]:
        """Flatten to (B, ...) and put 0 wherever a row does not count, before any arithmetic touches it."""
        valid = rollout.valid.reshape(-1)

        def rows(array: Float32) -> Float32:
            return array.reshape(len(valid), *array.shape[2:])

        def masked(array: Float32) -> Float32:
            flat = rows(array)
            return np.where(valid if flat.ndim == 1 else valid[:, None], flat, np.float32(0))

        advantages = masked(rollout.advantages)
        if self.cfg.norm_adv == "batch":
            chosen = advantages[valid].astype(np.float64)
            normed = (advantages - chosen.mean()) / (chosen.std() + ADV_EPS) if chosen.size else advantages
            advantages = np.where(valid, normed, 0.0).astype(np.float32)
        return {
            "norm_obs": rows(rollout.norm_obs[:-1]),
            "actions": masked(rollout.actions),
            "log_probs": masked(rollout.log_probs),
            "advantages": advantages,
            "returns": masked(rollout.returns),
            "values": rows(rollout.values),
            "valid": valid.astype(np.float32),
        }

    def _epoch(self, batch: dict[str, Float32]) -> None:
        """Shuffle the batch once, then step through it in minibatches of M contiguous rows."""
        cfg = self.cfg
        order = kernels.permutation(cfg.batch_size, seed=cfg.seed, stream=self.epochs_done)
        self.epochs_done += 1
        for name, source in batch.items():
            kernels.gather(source, order, out=self._shuffled[name])
        counts = self._shuffled["valid"].reshape(cfg.num_minibatches, -1).sum(1)
        scalars = self._scalars(counts)
        views = {name: torch.from_numpy(array).to(self.device) for name, array in self._shuffled.items()}
        for i in np.flatnonzero(counts):  # a minibatch of reset rows alone makes no step
            start = int(i) * cfg.minibatch_size
            mb = Minibatch(**{name: view[start : start + cfg.minibatch_size] for name, view in views.items()})
            self._step(self.opt, scalars[int(i)], mb)

    def _scalars(self, counts: Float32) -> Tensor:
        """Return (num_minibatches, 3): 1 / valid rows, lr / (1 − β₁ᵗ), 1 / sqrt(1 − β₂ᵗ); t counts real steps."""
        beta1, beta2 = ADAM_BETAS
        t = self.adam_steps + np.maximum(np.cumsum(counts > 0), 1)
        self.adam_steps += int((counts > 0).sum())
        columns = (
            1.0 / np.maximum(counts, 1.0),
            self.learning_rate / (1.0 - beta1**t),
            1.0 / np.sqrt(1.0 - beta2**t),
        )
        return torch.from_numpy(np.stack(columns, 1).astype(np.float32)).to(self.device)

    def _mean_kl(self, stats: Tensor) -> float:
        sums = stats.tolist()
        return float(sums[STATS.index("approx_kl")] / max(sums[STATS.index("rows")], 1.0))

    def _metrics(self, stats: Tensor) -> dict[str, float]:
        sums = dict(zip(STATS, stats.tolist(), strict=True))
        rows, steps = max(sums.pop("rows"), 1.0), max(sums.pop("steps"), 1.0)
        grad_norm = sums.pop("grad_norm") / steps
        return {**{name: total / rows for name, total in sums.items()}, "grad_norm": grad_norm}

    # --- eager or compiled -------------------------------------------------------------------------------------------
    def _choose_mode(self) -> None:
        cfg = self.cfg
        planned = cfg.total_timesteps // cfg.batch_size * cfg.update_epochs * cfg.num_minibatches
        if cfg.update == "eager":
            self.why_eager = "asked for"
        elif cfg.update == "auto" and self.device.type == "cpu" and planned < COMPILE_PAYS_AFTER:
            self.why_eager = f"{planned} minibatch steps do not repay a compilation"
        else:
            self._compile(forced=cfg.update == "compile")

    def _compile(self, *, forced: bool) -> None:
        """Compile the step on copies: the first real minibatch runs at speed, and a missing compiler shows now."""
        start = time.perf_counter()
        step = torch.compile(self._bind(compiled=True), fullgraph=True, dynamic=False)
        opt = Optimizer(*(tensor.clone() for tensor in self.opt))
        rows = {name: torch.from_numpy(array).to(self.device) for name, array in self._shuffled.items()}
        mb = Minibatch(**{name: view[: self.cfg.minibatch_size] for name, view in rows.items()})
        try:
            step(opt, torch.ones(2, 3, device=self.device)[1], mb)
        except Exception as err:  # torch documents no common base of its compiler errors; the reason is passed on
            reason = str(err).strip().split("\n")[0]
            if forced:
                raise BackendError(f"--update compile: torch.compile does not work here: {reason}") from err
            log.warning("torch.compile does not work here, updates run eagerly: %s", reason)
            self.why_eager = f"torch.compile does not work here: {reason}"
            return
        self._step, self.mode, self.compile_s = step, "compile", time.perf_counter() - start

    def _bind(self, *, compiled: bool) -> Step:
        model, hp = self.model, self.hp

        def step(opt: Optimizer, scalars: Tensor, mb: Minibatch) -> None:
            minibatch_step(model, hp, compiled, opt, scalars, mb)

        return step

    def _allocate(self) -> dict[str, Float32]:
        b = self.cfg.batch_size
        widths = {"norm_obs": (b, self.model.obs_dim), "actions": (b, self.model.act_dim)}
        return {name: np.zeros(widths.get(name, (b,)), np.float32) for name in Minibatch._fields}

    # --- state -------------------------------------------------------------------------------------------------------
    def state(self) -> dict[str, Tensor]:
        """Return Adam's moments (P,) and the counters, on the CPU."""
        counters = torch.tensor([self.adam_steps, self.epochs_done], dtype=torch.int64)
        return {
            "exp_avg": self.opt.exp_avg.cpu().clone(),
            "exp_avg_sq": self.opt.exp_avg_sq.cpu().clone(),
            "counters": counters,
        }

    def load(self, state: dict[str, Tensor]) -> None:
        """Restore what :meth:`state` returned."""
        self.opt.exp_avg.copy_(state["exp_avg"])
        self.opt.exp_avg_sq.copy_(state["exp_avg_sq"])
        self.adam_steps, self.epochs_done = (int(value) for value in state["counters"])

    def is_finite(self) -> bool:
        """Return whether every parameter is finite; waits for the device."""
        return math.isfinite(float(self.flat.sum()))
