"""Trust Region Policy Optimisation: the best step within a bound on how far the policy may move, measured by KL.

    max_θ  L(θ) = E[ π_θ(a|s) / π_old(a|s) · A ]      subject to   E[ KL(π_old(·|s) || π_θ(·|s)) ] <= δ

Near θ_old, L is g·x and the KL divergence ½ xᵀH x, for a step x, with g = ∇L and H the Hessian of the KL divergence. So
the best step points along H⁻¹g, and is as long as ½ xᵀH x = δ allows. H is never written down: Hv is the derivative of
∇KL · v, and conjugate gradients need no more than such products. Last, a line search makes sure with the true L and KL.

Source: Schulman et al., arXiv:1502.05477, §6 and appendix C.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import losses
from .on_policy import Array, Rows
from .separate import PolicyAndCritic, SeparateSettings


@dataclass(frozen=True)
class Settings(SeparateSettings):
    """Options of TRPO; names and meanings are those of ``ppo_fast.train``."""

    delta: float = 0.01
    cg_steps: int = 10
    cg_damping: float = 0.1
    backtrack_steps: int = 10
    backtrack_coef: float = 0.8


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """Lay tensors out as one vector (P,)."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def hessian_vector_product(kl: Callable[[], Tensor], parameters: Sequence[Tensor], v: Tensor) -> Tensor:
    """Compute H v = ∇(∇KL · v) by differentiating twice.

    Args:
        kl: computes the mean KL divergence, a scalar, from the parameters.
        parameters: tensors with P elements in all.
        v: (P,).

    Returns:
        (P,).

    Source: Pearlmutter, "Fast exact multiplication by the Hessian", Neural Computation 6 (1994) 147.
    """
    first = flat(torch.autograd.grad(kl(), parameters, create_graph=True))
    return flat(torch.autograd.grad(first @ v, parameters))


def conjugate_gradient(times: Callable[[Tensor], Tensor], b: Tensor, steps: int) -> Tensor:
    """Solve A x = b, for a symmetric positive definite A of which only products with a vector are known.

    Each step goes down to the bottom along a direction p, and no later one disturbs what it has achieved.

    Args:
        times: v (P,) -> A v (P,).
        b: (P,).
        steps: after P of them x would be exact but for rounding; a few are enough.

    Source: Hestenes & Stiefel, "Methods of conjugate gradients for solving linear systems", 1952.
    """
    x, residual = torch.zeros_like(b), b.clone()
    direction = residual
    for _ in range(steps):
        square = residual @ residual
        if square <= 1e-20 * (b @ b):
            break
        product = times(direction)
        length = square / (direction @ product)
        x = x + length * direction
        residual = residual - length * product
        direction = residual + (residual @ residual) / square * direction
    return x


def line_search(
    evaluate: Callable[[float], tuple[float, float]], before: float, delta: float, steps: int, shrink: float
) -> float:
    """Find the longest step that keeps KL <= δ and improves L; each try is shorter than the one before.

    Args:
        evaluate: fraction of the full step -> L and KL there.
        before: L without a step.
        delta: δ.
        steps: how many lengths to try.
        shrink: ratio of one length to the one before.

    Returns:
        The fraction of the full step; 0 if no length will do.
    """
    for fraction in (shrink**j for j in range(steps)):
        objective, kl = evaluate(fraction)
        if kl <= delta and objective > before:
            return fraction
    return 0.0


class TRPO(PolicyAndCritic):
    """Trust Region Policy Optimisation, written to be read."""

    def improve(self, batch: dict[str, Array]) -> dict[str, float]:
        """Fit the critic, then take one step of the policy on all rows that count."""
        rows = self.rows(batch)
        self.fit_critic(rows)
        counting = {key: value[rows["valid"]] for key, value in rows.items()}
        counting["advantages"] = losses.normalize_advantages(counting["advantages"])
        return {"approx_kl": self.policy_step(counting)}

    def policy_step(self, rows: Rows) -> float:
        """Move the policy's parameters; return the mean KL divergence from where they were."""
        s: Settings = self.settings
        parameters = self.policy_parameters
        with torch.no_grad():
            old_head, old_log_std = self.net(rows["norm_obs"])[0], self.log_std().clone()
            start = flat(parameters)

        def surrogate() -> Tensor:
            return (torch.exp(self.log_prob(rows) - rows["log_probs"]) * rows["advantages"]).mean()

        def kl() -> Tensor:
            head: Tensor = self.net(rows["norm_obs"])[0]
            if self.num_actions:
                return losses.categorical_kl(old_head, head).mean()
            return losses.gaussian_kl(old_head, old_log_std, head, self.log_std()).mean()

        def damped(v: Tensor) -> Tensor:
            return hessian_vector_product(kl, parameters, v) + s.cg_damping * v

        def at(fraction: float) -> tuple[float, float]:
            self.place(start + fraction * step)
            with torch.no_grad():
                return float(surrogate()), float(kl())

        objective = surrogate()
        gradient = flat(torch.autograd.grad(objective, parameters))
        direction = conjugate_gradient(damped, gradient, s.cg_steps)
        curvature = float(torch.dot(direction, damped(direction)))
        if not curvature > 0:  # no direction is better than another
            return 0.0
        step = direction * math.sqrt(2 * s.delta / curvature)
        fraction = line_search(at, float(objective.detach()), s.delta, s.backtrack_steps, s.backtrack_coef)
        return at(fraction)[1]

    def log_std(self) -> Tensor:
        """Return log σ, (A,); of a choice among actions, nothing."""
        return torch.zeros(0) if self.num_actions else self.net.log_std

    def place(self, vector: Tensor) -> None:
        """Set the policy's parameters to those in a vector (P,)."""
        with torch.no_grad():
            sizes = [parameter.numel() for parameter in self.policy_parameters]
            for parameter, part in zip(self.policy_parameters, torch.split(vector, sizes), strict=True):
                parameter.copy_(part.view_as(parameter))
