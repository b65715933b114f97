"""Running statistics of observations and of returns; frozen while a rollout is collected.

Statistics are float64 and advance over valid rows only, in (t, env) order; what they produce is float32. Processes that
train together share them: each takes the moments of its own new rows, and all merge those of all, by rank.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from ppo_fast import kernels
from ppo_fast.batch import Bool, Float32
from ppo_fast.distributed import ALONE, Peers
from ppo_fast.errors import ShapeError

Float64 = NDArray[np.float64]
_EPS = 1e-8  # keeps a constant component at 0 instead of dividing by 0


Triple = tuple[Float64, Float64, Float64]  # count, mean, sum of squared deviations


def merge(old: Triple, new: Triple) -> Triple:
    """Return count, mean and sum of squared deviations of two sets of rows taken together, from those of each.

        d = b − mean,  total = count + n
        mean + d · n/total,   m2 + b2 + d² · count · n/total;   those of the other set where one has no row

    Args:
        old: count, mean and m2; arrays that broadcast, float64.
        new: n, b and b2, likewise.

    Source: Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979.
    """
    (count, mean, m2), (n, b, b2) = old, new
    total = count + n
    weight = np.divide(n, total, out=np.zeros_like(total), where=total > 0)
    delta = b - mean
    return total, mean + delta * weight, m2 + (b2 + delta * delta * (count * weight))


def gather_moments(count: Float64, mean: Float64, m2: Float64, peers: Peers) -> list[Triple]:
    """Return every process's count, mean and m2, by rank; each 1-D, the shapes the same in all."""
    ends = np.cumsum([count.size, mean.size, m2.size])
    gathered = [np.split(each, ends[:-1]) for each in peers.gather(np.concatenate([count, mean, m2]))]
    return [(each[0], each[1], each[2]) for each in gathered]


class Moments:
    """Count, mean and sum of squared deviations of D components, float64."""

    def __init__(self, dim: int) -> None:
        self.count: Float64 = np.zeros(1)
        self.mean: Float64 = np.zeros(dim)
        self.m2: Float64 = np.zeros(dim)

    def update(self, rows: NDArray[np.float32] | Float64, valid: Bool, peers: Peers = ALONE) -> None:
        """Merge the valid rows of ``rows`` (B, D), of every process."""
        if peers.size == 1:
            kernels.update_moments(self.count, self.mean, self.m2, rows, valid)
            return
        own = Moments(len(self.mean))
        own.update(rows, valid)
        for new in gather_moments(own.count, own.mean, own.m2, peers):
            self.count[:], self.mean[:], self.m2[:] = merge((self.count, self.mean, self.m2), new)

    @property
    def var(self) -> Float64:
        """Population variance, (D,); 1 before the first row."""
        return self.m2 / self.count if self.count[0] > 0 else np.ones_like(self.m2)

    def state(self) -> dict[str, NDArray[np.generic]]:
        """Return the arrays by name."""
        return {"count": self.count, "mean": self.mean, "m2": self.m2}

    def load(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Overwrite the statistics in place.

        Raises:
            ShapeError: they are of another shape or dtype, not finite, or negative where that cannot be.
        """
        for name, array in self.state().items():
            given = state[name]
            if given.shape != array.shape or given.dtype != np.float64 or not np.isfinite(given).all():
                raise ShapeError(f"{name} must be {array.shape} float64, finite, got {given.shape} {given.dtype}")
            if name != "mean" and (given.astype(np.float64) < 0).any():
                raise ShapeError(f"{name} must not be negative")
        for name, array in self.state().items():
            array[...] = state[name]


class ObsNormalizer:
    """Map raw observations to ``clip((s − mean) / sqrt(var + 1e-8), ±clip)`` in float32."""

    def __init__(self, obs_dim: int, *, clip: float, enabled: bool = True, peers: Peers = ALONE) -> None:
        self.enabled, self.clip, self.peers = enabled, np.float32(clip), peers
        self.moments = Moments(obs_dim)
        self.freeze()

    def freeze(self) -> None:
        """Round the statistics to the float32 constants that are used until the next call."""
        self._mean: Float32 = self.moments.mean.astype(np.float32)
        self._inv_std: Float32 = (1.0 / np.sqrt(self.moments.var + _EPS)).astype(np.float32)

    @property
    def constants(self) -> tuple[Float32, Float32]:
        """Mean and 1 / sqrt(var + 1e-8), (D,) float32 each, that are used until the next freeze."""
        return self._mean, self._inv_std

    def normalize(self, obs: Float32, out: Float32 | None = None) -> Float32:
        """Return normalised ``obs`` (..., D) float32, written to ``out`` if given; a copy if switched off."""
        if out is None:
            out = np.empty_like(obs)
        if not self.enabled:
            np.copyto(out, obs)
            return out
        np.subtract(obs, self._mean, out=out)
        np.multiply(out, self._inv_std, out=out)
        return np.clip(out, -self.clip, self.clip, out=out)

    def update(self, obs: Float32, valid: Bool) -> None:
        """Merge the valid rows of ``obs`` (T, N, D), of every process, and freeze."""
        self.moments.update(obs.reshape(-1, obs.shape[-1]), valid.reshape(-1), self.peers)
        self.freeze()


class RewardScaler:
    """Divide rewards by the running standard deviation of the discounted return; the mean stays.

        G ← γ G + r (valid rows; 0 after an end),   r' = clip(r / sqrt(var(G) + 1e-8), ±clip)

    Source: Engstrom et al., arXiv:2005.12729, appendix A; Huang et al., ICLR blog 2022, continuous detail 4.
    """

    def __init__(self, num_envs: int, *, gamma: float, clip: float, enabled: bool = True, peers: Peers = ALONE) -> None:
        self.gamma, self.clip, self.enabled, self.peers = gamma, clip, enabled, peers
        self.moments = Moments(1)
        self.discounted: Float64 = np.zeros(num_envs)

    def update(self, rewards: Float32, done: Bool, valid: Bool) -> None:
        """Advance the accumulators over (T, N) rewards and merge the returns on the way, of every process."""
        returns = np.empty(rewards.shape, np.float64)
        for t in range(len(rewards)):
            # A reset row neither advances its accumulator (which is 0 there) nor enters the statistics.
            self.discounted = np.where(valid[t], self.discounted * self.gamma + rewards[t], self.discounted)
            returns[t] = self.discounted
            self.discounted = np.where(done[t], 0.0, self.discounted)
        self.moments.update(returns.reshape(-1, 1), valid.reshape(-1), self.peers)

    def scale(self, rewards: Float32, out: Float32) -> Float32:
        """Write the scaled rewards to ``out`` (T, N)."""
        if not self.enabled:
            np.copyto(out, rewards)
            return out
        inv_std = np.float32(1.0 / np.sqrt(self.moments.var[0] + _EPS))
        np.multiply(rewards, inv_std, out=out)
        return np.clip(out, np.float32(-self.clip), np.float32(self.clip), out=out)

    def state(self) -> dict[str, NDArray[np.generic]]:
        """Return the arrays by name."""
        return {**self.moments.state(), "discounted": self.discounted}

    def load(self, state: Mapping[str, NDArray[np.generic]], *, running: bool = False) -> None:
        """Overwrite the statistics, and the accumulators if the ``running`` episodes go on.

        Raises:
            ShapeError: the accumulators are of another number of environments.
        """
        self.moments.load(state)
        if running:
            given = state["discounted"]
            if given.shape != self.discounted.shape or given.dtype != np.float64 or not np.isfinite(given).all():
                raise ShapeError(f"discounted must be {self.discounted.shape} float64, finite, got {given.shape}")
            self.discounted = np.array(given, np.float64)

    def reset(self) -> None:
        """Start every accumulator at 0, as new episodes do."""
        self.discounted = np.zeros_like(self.discounted)
