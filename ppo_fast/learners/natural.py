"""The natural gradient: Fisher-vector products without the Fisher matrix, and the conjugate gradient method.

Pure functions of tensors. Twin: ``ppo_fast/reference/trpo.py``, which differentiates the KL divergence twice.

Axes: V rows that count · D observation · H head · A action · P parameters.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ppo_fast.models import ActorCritic, Categorical, Gaussian


class Fisher:
    """The Fisher matrix of a policy at some parameters, averaged over states, as a linear map.

        F = mean_s Jᵀ M J,    J = ∂(head, log σ)/∂θ,    M = Fisher information of the distribution by head and log σ

    This equals the Hessian of mean KL(π_θ || π_θ') by θ' at θ' = θ, and needs first derivatives only. J and its
    transpose are kept as graphs: a product costs two sweeps through the network and no forward pass.

    Args:
        model: shapes of the networks.
        flat: (P,) θ.
        norm_obs: (V, D) states.

    Source: Schulman et al., arXiv:1502.05477, appendix C.1; J by differentiating vᵀJ by v: Martens, "Deep learning via
    Hessian-free optimization", 2010, §3.1, and Townsend, "A new trick for calculating Jacobian vector products", 2017.
    """

    def __init__(self, model: ActorCritic, flat: Tensor, norm_obs: Tensor) -> None:
        self._leaf = flat.detach().clone().requires_grad_()  # θ stays what it is when ``flat`` moves on
        params = model.params(self._leaf)
        self._outputs = (model.head(params, norm_obs), params.log_std)
        self.policy: Gaussian | Categorical = model.policy(*(out.detach() for out in self._outputs))
        self._cotangents = tuple(torch.zeros_like(out, requires_grad=True) for out in self._outputs)
        self._pulled = self._pull(self._cotangents, create_graph=True)
        self._rows = len(norm_obs)

    def _pull(self, cotangents: tuple[Tensor, ...], *, create_graph: bool = False) -> Tensor:
        (out,) = torch.autograd.grad(
            self._outputs, self._leaf, cotangents, retain_graph=True, create_graph=create_graph
        )
        return out

    def gradient(self, by_head: Tensor, by_log_std: Tensor) -> Tensor:
        """Return Jᵀ applied to derivatives by the head (V, H) and by log σ (A,), (P,)."""
        return self._pull((by_head, by_log_std))

    def times(self, v: Tensor) -> Tensor:
        """Return F v, (P,), for v (P,); what v holds for the critic has no effect."""
        push = torch.autograd.grad(self._pulled, self._cotangents, v, retain_graph=True, materialize_grads=True)
        by_head, by_log_std = self.policy.fisher(*push)
        return self._pull((by_head / self._rows, by_log_std))


def conjugate_gradient(times: Callable[[Tensor], Tensor], b: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Solve A x = b approximately for a symmetric positive definite A.

        α = rᵀr / pᵀAp,   x += α p,   r −= α A p,   p = r + (r'ᵀr' / rᵀr) p

    Ends early where the residual has lost ten digits, or where A shows not to be positive.

    Args:
        times: v (P,) -> A v (P,).
        b: (P,).
        steps: how many at most.

    Returns:
        x (P,), and ‖b − A x‖ / ‖b‖ as the recurrence has it, 0-d; x is 0 and this 0 where b is 0.

    Source: Hestenes & Stiefel, "Methods of conjugate gradients for solving linear systems", 1952.
    """
    x, r = torch.zeros_like(b), b.clone()
    p, square = r, _dot(r, r)
    first = square
    for _ in range(steps):
        if not square > first * 1e-20:  # b may be 0
            break
        product = times(p)
        curvature = _dot(p, product)
        if not curvature > 0:
            break
        alpha = square / curvature
        x = x + alpha.to(b.dtype) * p
        r = r - alpha.to(b.dtype) * product
        square, before = _dot(r, r), square
        p = r + (square / before).to(b.dtype) * p
    return x, (square / first).sqrt() if first > 0 else first


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Return aᵀb, summed in float64."""
    return torch.dot(a.double(), b.double())
