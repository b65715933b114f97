"""REINFORCE, with Adam in place of plain gradient ascent. Twin: ``ppo_fast/reference/reinforce.py``.

Axes: T steps · N envs · V rows that count · P parameters.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor

from ppo_fast.batch import Float32, Rollout
from ppo_fast.config import Config
from ppo_fast.errors import ShapeError
from ppo_fast.learners.ppo_base import PPOLearner
from ppo_fast.learners.ppo_step import ADAM_BETAS, Optimizer, adam_step
from ppo_fast.learners.separate import Rows, SeparateLearner, policy_of


class ReinforceLearner(SeparateLearner):
    """The policy's step: one of Adam along the policy gradient, with moments of its own.

        ∇J ≈ mean(Ψ ∇ log π(a|s))

    Ψ is ``policy_weight``: the return of the whole episode, the return from here on, or the advantage.

    Args:
        critic: see :class:`SeparateLearner`.
        cfg: the run's options.

    Source: Williams, Machine Learning 8 (1992) 229; Ψ: Schulman et al., arXiv:1506.02438, §2.
    """

    def __init__(self, critic: PPOLearner, cfg: Config) -> None:
        super().__init__(critic, cfg)
        self.exp_avg, self.exp_avg_sq = torch.zeros_like(self.flat), torch.zeros_like(self.flat)
        self.policy_steps = 0
        self.policy_lr = cfg.policy_lr

    def set_progress(self, progress: float, lr_scale: float = 1.0) -> None:
        """Set both learning rates: ``lr · lr_scale``, times ``1 − progress`` when annealed."""
        super().set_progress(progress, lr_scale)
        self.policy_lr = self.cfg.policy_lr * (1.0 - progress if self.cfg.anneal_lr else 1.0) * lr_scale

    def _weighted(self, rollout: Rollout) -> Rollout:
        if self.cfg.policy_weight == "advantage":
            return rollout
        weighted = copy.copy(rollout)
        total = self.cfg.policy_weight == "total_return"
        weighted.advantages = total_returns(rollout) if total else rollout.returns
        return weighted

    def _improve(self, rows: Rows) -> dict[str, float]:
        leaf = self.flat.detach().clone().requires_grad_()
        log_probs = policy_of(self.model, leaf, rows.norm_obs).log_prob(rows.actions)
        loss = -(log_probs * rows.weights).mean()
        (grad,) = torch.autograd.grad(loss, leaf)
        norm = self._step(grad)
        with torch.no_grad():
            new = policy_of(self.model, self.flat, rows.norm_obs)
            log_ratio = new.log_prob(rows.actions) - rows.log_probs
        return {
            "policy_loss": float(loss.detach()),
            "entropy": float(new.entropy().mean()),
            "approx_kl": float((log_ratio.exp() - 1.0 - log_ratio).mean()),
            "policy_grad_norm": float(norm),
            "policy_lr": self.policy_lr,
        }

    def _step(self, grad: Tensor) -> Tensor:
        """Clip the policy's gradient (P,) and make one step of Adam; the critic's part is 0 and stays where it is."""
        self.policy_steps += 1
        beta1, beta2 = ADAM_BETAS
        unused = grad.new_zeros(0)
        opt = Optimizer(self.flat, self.exp_avg, self.exp_avg_sq, unused)
        step_size = grad.new_tensor(self.policy_lr / (1.0 - beta1**self.policy_steps))
        inv_sqrt_bias2 = grad.new_tensor((1.0 - beta2**self.policy_steps) ** -0.5)
        return adam_step(self.critic.hp, opt, step_size, inv_sqrt_bias2, grad)

    def _nothing(self) -> dict[str, float]:
        names = ("policy_loss", "entropy", "approx_kl", "policy_grad_norm")
        return {**dict.fromkeys(names, 0.0), "policy_lr": self.policy_lr}

    # --- state -------------------------------------------------------------------------------------------------------
    def state(self) -> dict[str, Tensor]:
        """Return the optimizer states and counters of critic and policy by name, all on the CPU."""
        return {
            **super().state(),
            "policy_exp_avg": self.exp_avg.cpu().clone(),
            "policy_exp_avg_sq": self.exp_avg_sq.cpu().clone(),
            "policy_steps": torch.tensor([self.policy_steps]),
        }

    def load(self, state: dict[str, Tensor]) -> None:
        """Restore what :meth:`state` returned.

        Raises:
            ShapeError: a tensor has another shape or dtype, is not finite, or is negative where that cannot be.
        """
        own = {name: state[name] for name in ("policy_exp_avg", "policy_exp_avg_sq", "policy_steps")}
        for name in ("policy_exp_avg", "policy_exp_avg_sq"):
            if own[name].shape != self.flat.shape or own[name].dtype != self.flat.dtype:
                raise ShapeError(f"{name} must be {tuple(self.flat.shape)} {self.flat.dtype}")
            if not bool(own[name].isfinite().all()):
                raise ShapeError(f"{name} must be finite")
        steps = own["policy_steps"]
        if steps.shape != (1,) or steps.dtype != torch.int64 or not 0 <= int(steps) < 2**53:
            raise ShapeError("policy_steps must be (1,) int64 in [0, 2**53)")
        if bool((own["policy_exp_avg_sq"] < 0).any()):
            raise ShapeError("policy_exp_avg_sq must not be negative")
        super().load(state)
        self.exp_avg.copy_(own["policy_exp_avg"])
        self.exp_avg_sq.copy_(own["policy_exp_avg_sq"])
        self.policy_steps = int(steps)

    def is_finite(self) -> bool:
        """Return whether every parameter and every moment is finite; waits for the device."""
        own = torch.stack([array.sum() for array in (self.exp_avg, self.exp_avg_sq)])
        return super().is_finite() and bool(own.isfinite().all())


def total_returns(rollout: Rollout) -> Float32:
    """Return for every row what ``returns`` has for the first row of the same piece of an episode, (T, N).

    A piece begins with the rollout, or with an episode. Reset rows get what is in ``returns``; they do not count.
    """
    totals = rollout.returns.copy()
    for t in range(1, len(totals)):
        goes_on = rollout.valid[t] & rollout.valid[t - 1] & ~rollout.done[t - 1]
        totals[t] = np.where(goes_on, totals[t - 1], totals[t])
    return totals
