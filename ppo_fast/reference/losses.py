"""The PPO losses, one function per formula of the notebook, in torch so that autograd differentiates them.

M rows that count (reset rows have been dropped before) · A actions at once · K actions to choose one from.
Works in float32 and float64 alike.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def gaussian_log_prob(mean: Tensor, log_std: Tensor, actions: Tensor) -> Tensor:
    """Compute log π(a|s) of a diagonal Gaussian.

        log π(a|s) = Σ_i [ −½ ((a_i − μ_i) / σ_i)² − log σ_i − ½ log 2π ]

    Args:
        mean: (M, A) μ(s).
        log_std: (A,) log σ, the same in every state.
        actions: (M, A) the action as it was sampled, before any clipping to the environment's range.

    Returns:
        (M,).
    """
    std = torch.exp(log_std)
    per_action = -0.5 * ((actions - mean) / std) ** 2 - log_std - 0.5 * math.log(2 * math.pi)
    return per_action.sum(dim=1)


def gaussian_entropy(log_std: Tensor) -> Tensor:
    """Compute the entropy of a diagonal Gaussian, H = Σ_i [ log σ_i + ½ log 2πe ], a scalar."""
    return (log_std + 0.5 * math.log(2 * math.pi * math.e)).sum()


def categorical_log_prob(logits: Tensor, index: Tensor) -> Tensor:
    """Compute log π(a|s) of a choice among K actions.

        π(a|s) = exp l_a / Σ_k exp l_k,   log π(a|s) = l_a − log Σ_k exp l_k

    Args:
        logits: (M, K) l(s).
        index: (M,) int64, which action was chosen.

    Returns:
        (M,).

    Source: Sutton & Barto, Reinforcement Learning, 2nd ed., eq. 13.2; Williams, Machine Learning 8 (1992) 229.
    """
    rows = torch.arange(len(index))
    return logits[rows, index] - torch.logsumexp(logits, dim=1)


def categorical_entropy(logits: Tensor) -> Tensor:
    """Compute H(s) = −Σ_k p_k log p_k, p = softmax(l), in each state, (M,).

    Source: Shannon, Bell System Technical Journal 27 (1948) 379; as a bonus: Mnih et al., arXiv:1602.01783, §4.
    """
    log_probs = logits - torch.logsumexp(logits, dim=1, keepdim=True)
    return -(torch.exp(log_probs) * log_probs).sum(dim=1)


def normalize_advantages(advantages: Tensor) -> Tensor:
    """Shift and scale advantages (M,) to mean 0 and (population) standard deviation 1."""
    centred = advantages - advantages.mean()
    return centred / (torch.sqrt((centred**2).mean()) + 1e-8)


def clipped_surrogate(ratio: Tensor, advantages: Tensor, clip_coef: float) -> Tensor:
    """Compute PPO's objective, to be maximised.

        L^CLIP = mean( min( r A, clip(r, 1 − ε, 1 + ε) A ) )

    Where A >= 0 the gain stops growing at r = 1 + ε, where A < 0 at r = 1 − ε: there the gradient is 0.

    Args:
        ratio: (M,) r = π(a|s) / π_old(a|s).
        advantages: (M,).
        clip_coef: ε.

    Source: Schulman et al., arXiv:1707.06347, eq. 7.
    """
    clipped = torch.clamp(ratio, 1 - clip_coef, 1 + clip_coef)
    return torch.minimum(ratio * advantages, clipped * advantages).mean()


def value_loss(values: Tensor, returns: Tensor) -> Tensor:
    """Compute ½ mean((V − R)²)."""
    return 0.5 * ((values - returns) ** 2).mean()


def clipped_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip_coef: float) -> Tensor:
    """Compute ½ mean(max((V − R)², (V_old + clip(V − V_old, ±ε) − R)²)).

    Source: the first public PPO code; Engstrom et al., arXiv:2005.12729, §3, found no gain from it.
    """
    near = old_values + torch.clamp(values - old_values, -clip_coef, clip_coef)
    return 0.5 * torch.maximum((values - returns) ** 2, (near - returns) ** 2).mean()


def approx_kl(log_ratio: Tensor) -> Tensor:
    """Estimate KL(π_old || π) by mean(r − 1 − log r), unbiased and never negative, from log r (M,).

    Source: Schulman, "Approximating KL divergence", 2020, estimator k3.
    """
    return (torch.exp(log_ratio) - 1 - log_ratio).mean()


def gaussian_kl(old_mean: Tensor, old_log_std: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Compute KL(π_old || π) of diagonal Gaussians in each state, (M,).

        Σ_i [ log σ_i − log σ_old,i + (σ_old,i² + (μ_old,i − μ_i)²) / (2 σ_i²) − ½ ]

    Args:
        old_mean: (M, A).
        old_log_std: (A,).
        mean: (M, A).
        log_std: (A,).
    """
    variance, old_variance = torch.exp(2 * log_std), torch.exp(2 * old_log_std)
    per_action = log_std - old_log_std + (old_variance + (old_mean - mean) ** 2) / (2 * variance) - 0.5
    return per_action.sum(dim=1)


def categorical_kl(old_logits: Tensor, logits: Tensor) -> Tensor:
    """Compute KL(π_old || π) = Σ_k p_old,k (log p_old,k − log p_k) in each state, (M,)."""
    old_log_probs = old_logits - torch.logsumexp(old_logits, dim=1, keepdim=True)
    log_probs = logits - torch.logsumexp(logits, dim=1, keepdim=True)
    return (torch.exp(old_log_probs) * (old_log_probs - log_probs)).sum(dim=1)
