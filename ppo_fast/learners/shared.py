"""A pass over minibatches whose gradients several processes share: each steps by the gradient of all rows of all.

A minibatch is the union of one minibatch of each process, which takes M rows of its own. Per pass the processes
exchange the moments of the minibatches' advantages, and at the end the sums of ``STATS``; per minibatch one gradient.

Axes: K minibatches · M rows of one in one process · B = K·M rows · P parameters.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ppo_fast.batch import Float32
from ppo_fast.distributed import Peers
from ppo_fast.learners.ppo_step import ADV_EPS, STATS
from ppo_fast.normalizers import gather_moments, merge

ROW_SUMS = STATS.index("grad_norm")  # of STATS, so many are sums over rows; the others are the same in all processes


def normalized(
    values: Float32, valid: NDArray[np.bool_], peers: Peers
) -> tuple[NDArray[np.float64], NDArray[np.float64], Float32]:
    """Normalise each row of ``values`` (K, M) over its valid ones and those of the other processes.

        (x − mean) / (std + 1e-8), 0 where not valid

    Returns:
        How many are valid in all processes, (K,) float64, and in this one; and the normalised values, (K, M).
    """
    own = valid.sum(1, dtype=np.float64)
    exact = np.where(valid, values, np.float32(0)).astype(np.float64)
    mean = exact.sum(1) / np.maximum(own, 1.0)
    m2 = np.where(valid, (exact - mean[:, None]) ** 2, 0.0).sum(1)
    count, mean, m2 = functools.reduce(merge, gather_moments(own, mean, m2, peers))
    std = np.sqrt(m2 / np.maximum(count, 1.0))
    normed = np.where(valid, (exact - mean[:, None]) / (std[:, None] + ADV_EPS), 0.0)
    return count, own, normed.astype(np.float32)


def of_minibatches(
    batch: dict[str, Float32], rows: NDArray[np.int64], peers: Peers
) -> tuple[NDArray[np.float64], NDArray[np.float64], Float32]:
    """Return the counts of :func:`normalized` of the minibatches ``rows`` (K, M), and their advantages by row, (B,)."""
    counts, own, normed = normalized(batch["advantages"][rows], batch["valid"][rows] > 0, peers)
    advantages = np.empty_like(batch["advantages"])
    advantages[rows] = normed
    return counts, own, advantages


def shared_pass(
    counts: NDArray[np.float64],
    own: NDArray[np.float64],
    gradient: Callable[[int], tuple[Tensor, Tensor]],
    step: Callable[[Tensor], Tensor | float],
    flat: Tensor,
    peers: Peers,
) -> Tensor:
    """Step through the minibatches, each by the mean gradient over its valid rows in all processes.

        g = Σ_processes (own valid rows / all valid rows) · (mean gradient over the own valid rows)

    A minibatch without a valid row anywhere makes no step; a process without one in it sends zeros.

    Args:
        counts: (K,) valid rows of each minibatch in all processes.
        own: (K,) in this one.
        gradient: returns the gradient (P,) of a minibatch and its sums of ``STATS``.
        step: clips a gradient, makes the step and returns the norm before.
        flat: (P,) parameters, for their shape and device.
        peers: the processes.

    Returns:
        (len(STATS),) float64 on the CPU, the same in all.
    """
    stats = torch.zeros(len(STATS), dtype=torch.float64, device=flat.device)
    for k in np.flatnonzero(counts).tolist():
        total = torch.zeros_like(flat)
        if own[k]:
            mean, sums = gradient(k)
            total.add_(mean, alpha=float(own[k] / counts[k]))
            stats[:ROW_SUMS] += sums[:ROW_SUMS]
        peers.sum_(total)
        stats[ROW_SUMS] += step(total)
        stats[ROW_SUMS + 1] += 1.0
    stats = stats.cpu()
    sums = stats[:ROW_SUMS].clone()
    peers.sum_(sums)
    return torch.cat([sums, stats[ROW_SUMS:]])
