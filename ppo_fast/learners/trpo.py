"""Trust region policy optimisation. Twin: ``ppo_fast/reference/trpo.py``.

Axes: V rows that count · P parameters.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ppo_fast.config import Config
from ppo_fast.learners.natural import Fisher, conjugate_gradient
from ppo_fast.learners.ppo_base import PPOLearner
from ppo_fast.learners.separate import Rows, SeparateLearner, policy_of
from ppo_fast.models import ActorCritic, Categorical, Gaussian


class TRPOLearner(SeparateLearner):
    """The policy's step: along the natural gradient, as far as the KL divergence allows.

        g = ∇ mean(r A),   (F + damping) x = g,   β = sqrt(2δ / xᵀ(F + damping) x)
        θ ← θ + c^j β x   with the first j at which mean KL(π_old || π) <= δ and mean(r A) has grown; else θ stays

    After a rollback from NaN, ``lr_scale`` multiplies δ as well.

    Args:
        critic: see :class:`SeparateLearner`.
        cfg: the run's options.

    Source: Schulman et al., arXiv:1502.05477, §6 and appendix C.
    """

    def __init__(self, critic: PPOLearner, cfg: Config) -> None:
        super().__init__(critic, cfg)
        self.delta = cfg.delta

    def set_progress(self, progress: float, lr_scale: float = 1.0) -> None:
        """Set the critic's learning rate, and the bound on the KL divergence, which is not annealed."""
        super().set_progress(progress, lr_scale)
        self.delta = self.cfg.delta * lr_scale

    def _improve(self, rows: Rows) -> dict[str, float]:
        cfg, damping = self.cfg, self.cfg.cg_damping
        fisher = Fisher(self.model, self.flat, rows.norm_obs)
        gradient, before = self._gradient(fisher, rows)
        x, residual = conjugate_gradient(lambda v: fisher.times(v) + damping * v, gradient, cfg.cg_steps)
        curvature = torch.dot(x.double(), (fisher.times(x) + damping * x).double())
        metrics = {**self._nothing(), "cg_residual": float(residual)}
        if not curvature > 0:  # no direction is better than another
            return metrics | {"policy_loss": -float(before), "entropy": float(fisher.policy.entropy().mean())}
        step = x * (2.0 * self.delta / curvature).sqrt().to(x.dtype)
        return metrics | self._search(fisher.policy, float(before), step, rows)

    def _gradient(self, fisher: Fisher, rows: Rows) -> tuple[Tensor, Tensor]:
        """Return the gradient of the surrogate (P,) and its value at the old parameters."""
        outputs = [out.clone().requires_grad_() for out in _parameters(fisher.policy, self.model)]
        surrogate = self._surrogate(self.model.policy(*outputs), rows)
        by_head, by_log_std = torch.autograd.grad(surrogate, outputs, materialize_grads=True)
        return fisher.gradient(by_head, by_log_std), surrogate.detach()

    @torch.no_grad()
    def _search(self, old: Gaussian | Categorical, before: float, step: Tensor, rows: Rows) -> dict[str, float]:
        """Set ``flat`` to the longest step that is allowed and helps; leave it where none is and does."""
        start, fraction = self.flat.clone(), 1.0
        for tried in range(self.cfg.backtrack_steps):
            self.flat.copy_(start + fraction * step)
            new = policy_of(self.model, self.flat, rows.norm_obs)
            kl, surrogate = float(mean_kl(old, new)), float(self._surrogate(new, rows))
            if kl <= self.delta and surrogate > before:  # false with NaN
                return {
                    "policy_loss": -surrogate,
                    "entropy": float(new.entropy().mean()),
                    "approx_kl": kl,
                    "step_fraction": fraction,
                    "backtracks": float(tried),
                }
            fraction *= self.cfg.backtrack_coef
        self.flat.copy_(start)
        tries = float(self.cfg.backtrack_steps)
        return {"policy_loss": -before, "entropy": float(old.entropy().mean()), "backtracks": tries}

    def _surrogate(self, policy: Gaussian | Categorical, rows: Rows) -> Tensor:
        """Return mean(π(a|s) / π_old(a|s) · A)."""
        return (torch.exp(policy.log_prob(rows.actions) - rows.log_probs) * rows.weights).mean()

    def _nothing(self) -> dict[str, float]:
        names = ("policy_loss", "entropy", "approx_kl", "cg_residual", "step_fraction", "backtracks")
        return dict.fromkeys(names, 0.0)


def mean_kl(old: Gaussian | Categorical, new: Gaussian | Categorical) -> Tensor:
    """Return mean KL(old || new) over the states, averaged in float64."""
    return old.kl(new).double().mean()  # type: ignore[arg-type]  # both are of the same kind


def _parameters(policy: Gaussian | Categorical, model: ActorCritic) -> tuple[Tensor, Tensor]:
    """Return head and log σ of a policy; log σ is empty where there is none."""
    if isinstance(policy, Gaussian):
        return policy.mean, policy.log_std
    return policy.logits, policy.logits.new_zeros(0)
