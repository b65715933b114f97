"""One PPO minibatch as pure functions of tensors: loss, gradient, and the clipped Adam step.

The gradient and the step are separable, so that an all-reduce can go between them; :func:`minibatch_step` is both. No
function here reads a Python number that changes during a run, so a compiled step never recompiles. Twin:
``ppo_fast/reference/losses.py``.

Axes: M rows · D observation · A action · P parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ppo_fast.models import ActorCritic

ADAM_BETAS = (0.9, 0.999)  # Kingma & Ba, arXiv:1412.6980, §2
ADV_EPS = 1e-8

# What `stats` sums: over valid rows, but grad_norm and steps over minibatches.
STATS = ("policy_loss", "value_loss", "entropy", "approx_kl", "clip_frac", "rows", "grad_norm", "steps")


class Minibatch(NamedTuple):
    """M rows; where ``valid`` is 0 every field but ``norm_obs`` and ``values`` has been replaced by 0."""

    norm_obs: Tensor  # (M, D)
    actions: Tensor  # (M, A)
    log_probs: Tensor  # (M,) log π_old(a|s)
    advantages: Tensor  # (M,)
    returns: Tensor  # (M,)
    values: Tensor  # (M,) V_old(s)
    valid: Tensor  # (M,) float32, 1 or 0


class Optimizer(NamedTuple):
    """Adam's state over the flat vector, and the accumulated metrics, all updated in place."""

    flat: Tensor  # (P,)
    exp_avg: Tensor  # (P,)
    exp_avg_sq: Tensor  # (P,)
    stats: Tensor  # (len(STATS),)


@dataclass(frozen=True)
class LossConfig:
    """The constants of the loss."""

    clip_coef: float
    clip_vloss: bool
    norm_adv_minibatch: bool
    ent_coef: float
    vf_coef: float
    max_grad_norm: float
    adam_eps: float
    precision: str = "float32"  # see precision.py

    @property
    def hidden_dtype(self) -> torch.dtype | None:
        """What the hidden layers are computed in if not in that of the parameters."""
        return torch.bfloat16 if self.precision == "bf16" else None


def ppo_loss(
    model: ActorCritic, hp: LossConfig, flat: Tensor, inv_count: Tensor, mb: Minibatch
) -> tuple[Tensor, Tensor]:
    """Return the PPO loss and the metric sums, over the valid rows of a minibatch.

        r = π(a|s) / π_old(a|s)
        L = mean(max(−A r, −A clip(r, 1±ε))) + vf_coef · mean(½ (V − R)²) − ent_coef · H
        KL ≈ mean(r − 1 − log r)

    Args:
        model: shapes of the networks.
        hp: constants of the loss.
        flat: (P,) parameters.
        inv_count: 0-d, 1 / number of valid rows.
        mb: the rows.

    Source: Schulman et al., arXiv:1707.06347, eq. 7 and 9; KL: Schulman, "Approximating KL divergence", 2020 (k3).
    """
    params = model.params(flat)
    is_dummy = mb.valid == 0

    def mean(x: Tensor) -> Tensor:  # select before summing: 0 × NaN would be NaN
        return x.masked_fill(is_dummy, 0.0).sum() * inv_count

    advantages = mb.advantages
    if hp.norm_adv_minibatch:
        centred = advantages - mean(advantages)
        # Differs from CleanRL: the population standard deviation, so that one valid row gives 0 and not NaN.
        advantages = centred / (mean(centred * centred).sqrt() + ADV_EPS)

    head, values = model.forward(params, mb.norm_obs, hidden_dtype=hp.hidden_dtype)
    policy = model.policy(head, params.log_std)
    log_ratio = (policy.log_prob(mb.actions) - mb.log_probs).masked_fill(is_dummy, 0.0)
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1.0 - hp.clip_coef, 1.0 + hp.clip_coef)
    policy_loss = mean(torch.maximum(-advantages * ratio, -advantages * clipped))

    value_error = (values - mb.returns) ** 2
    if hp.clip_vloss:
        near = mb.values + (values - mb.values).clamp(-hp.clip_coef, hp.clip_coef)
        value_error = torch.maximum(value_error, (near - mb.returns) ** 2)
    value_loss = 0.5 * mean(value_error)

    entropy = mean(policy.entropy()) if model.num_actions else policy.entropy()
    loss = policy_loss + hp.vf_coef * value_loss - hp.ent_coef * entropy
    with torch.no_grad():
        count = mb.valid.sum()
        kl = mean(ratio - 1.0 - log_ratio)
        clip_frac = mean(((ratio - 1.0).abs() > hp.clip_coef).float())
        sums = torch.stack([policy_loss, value_loss, entropy, kl, clip_frac, torch.ones_like(count)]) * count
    return loss, sums.detach()


def eager_gradient(
    model: ActorCritic, hp: LossConfig, flat: Tensor, inv_count: Tensor, mb: Minibatch
) -> tuple[Tensor, Tensor]:
    """Return the gradient (P,) of :func:`ppo_loss` and its metric sums, by autograd."""
    leaf = flat.detach().requires_grad_()
    loss, sums = ppo_loss(model, hp, leaf, inv_count, mb)
    return torch.autograd.grad(loss, leaf)[0], sums


def functional_gradient(
    model: ActorCritic, hp: LossConfig, flat: Tensor, inv_count: Tensor, mb: Minibatch
) -> tuple[Tensor, Tensor]:
    """Return the same as :func:`eager_gradient` in the form that torch.compile takes without a graph break."""

    def loss_of(parameters: Tensor) -> tuple[Tensor, Tensor]:
        return ppo_loss(model, hp, parameters, inv_count, mb)

    grad, (_, sums) = torch.func.grad_and_value(loss_of, has_aux=True)(flat)
    return grad, sums


@torch.no_grad()
def adam_step(hp: LossConfig, opt: Optimizer, step_size: Tensor, inv_sqrt_bias2: Tensor, grad: Tensor) -> Tensor:
    """Clip the gradient's norm, make one Adam step in place, and return the norm before clipping.

        g ← g · min(1, max_grad_norm / (‖g‖ + 1e-6))
        m ← β₁ m + (1 − β₁) g,   v ← β₂ v + (1 − β₂) g²
        θ ← θ − (lr / (1 − β₁ᵗ)) · m / (sqrt(v / (1 − β₂ᵗ)) + eps)

    Args:
        hp: max_grad_norm and adam_eps.
        opt: parameters and moments, updated.
        step_size: 0-d, lr / (1 − β₁ᵗ).
        inv_sqrt_bias2: 0-d, 1 / sqrt(1 − β₂ᵗ).
        grad: (P,), not changed.

    Source: Kingma & Ba, arXiv:1412.6980, algorithm 1.
    """
    beta1, beta2 = ADAM_BETAS
    # Summed in float64: in float32 torch adds the squares of a long vector one after another, and loses a digit.
    norm: Tensor = torch.linalg.vector_norm(grad, dtype=torch.float64).to(grad.dtype)
    grad = grad * (hp.max_grad_norm / (norm + 1e-6)).clamp(max=1.0)
    opt.exp_avg.mul_(beta1).add_(grad, alpha=1.0 - beta1)
    opt.exp_avg_sq.mul_(beta2).addcmul_(grad, grad, value=1.0 - beta2)
    opt.flat.sub_(step_size * (opt.exp_avg / (opt.exp_avg_sq.sqrt() * inv_sqrt_bias2 + hp.adam_eps)))
    return norm


@torch.no_grad()
def adam_step_where(
    hp: LossConfig, opt: Optimizer, step_size: Tensor, inv_sqrt_bias2: Tensor, grad: Tensor, counts: Tensor
) -> Tensor:
    """Do what :func:`adam_step` does where ``counts`` (0-d bool), and change nothing elsewhere, without a wait.

    What is not taken may be NaN: it is left out by selection.
    """
    kept = [tensor.clone() for tensor in opt[:3]]
    norm = adam_step(hp, opt, step_size, inv_sqrt_bias2, grad)
    for tensor, before in zip(opt[:3], kept, strict=True):
        tensor.copy_(torch.where(counts, tensor, before))
    return norm


def minibatch_step(
    model: ActorCritic, hp: LossConfig, compiled: bool, opt: Optimizer, scalars: Tensor, mb: Minibatch
) -> None:
    """Make one optimizer step in place on ``opt`` and add the minibatch's metrics to ``opt.stats``.

    Args:
        model: shapes of the networks.
        hp: constants of the loss.
        compiled: take the gradient in the form that torch.compile needs.
        opt: what is updated.
        scalars: (3,) 1 / valid rows, lr / (1 − β₁ᵗ), 1 / sqrt(1 − β₂ᵗ).
        mb: the rows.
    """
    gradient = functional_gradient if compiled else eager_gradient
    grad, sums = gradient(model, hp, opt.flat, scalars[0], mb)
    norm = adam_step(hp, opt, scalars[1], scalars[2], grad)
    opt.stats.add_(torch.cat([sums, norm.reshape(1), torch.ones_like(norm).reshape(1)]))


def minibatch_step_where(
    model: ActorCritic,
    hp: LossConfig,
    compiled: bool,
    opt: Optimizer,
    scalars: Tensor,
    mb: Minibatch,
    running: Tensor,
) -> None:
    """Do what :func:`minibatch_step` does where ``running`` (0-d bool) and a row of the minibatch is valid.

    Elsewhere ``opt`` stays as it is, so that a fixed sequence of such steps may stop early.
    """
    gradient = functional_gradient if compiled else eager_gradient
    grad, sums = gradient(model, hp, opt.flat, scalars[0], mb)
    counts = running & (mb.valid.sum() > 0)
    norm = adam_step_where(hp, opt, scalars[1], scalars[2], grad, counts)
    sums = torch.cat([sums, norm.reshape(1), torch.ones_like(norm).reshape(1)])
    opt.stats.add_(sums.masked_fill(~counts, 0.0))
