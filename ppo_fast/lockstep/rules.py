"""When two results count as the same: the three rules of CONTRIBUTING.md, "Tolerances".

Each rule takes in results as they come and says at the end what is wrong, or nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

MIN_BATCHES = 32  # over fewer, a root-mean-square error is a matter of luck
SMALL = 256  # elements; a tensor with fewer is pooled with the other small ones


class Rule(Protocol):
    """What is asked of a rule when the run is over."""

    allowed: ClassVar[str]

    def shown(self) -> str:
        """Return the worst that was met, in a word."""

    def complaint(self) -> str:
        """Return what breaks the rule, in a sentence; empty if nothing does."""


@dataclass
class Equal:
    """Every number equals the reference's; NaN equals NaN."""

    allowed: ClassVar[str] = "equal"
    numbers: int = 0
    differing: int = 0
    worst: float = 0.0

    def add(self, candidate: Any, reference: Any) -> None:
        """Take in two arrays of one shape and dtype."""
        ours, theirs = np.asarray(candidate), np.asarray(reference)
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
        differs = ~((ours == theirs) | ((ours != ours) & (theirs != theirs)))
        self.numbers += ours.size
        if differs.any():
            self.differing += int(differs.sum())
            distance = np.abs(ours[differs].astype(np.float64) - theirs[differs].astype(np.float64))
            self.worst = float(np.maximum(self.worst, distance.max()))

    def shown(self) -> str:
        """Return ``equal``, or how many numbers differ."""
        return f"{self.differing:,} differ" if self.differing else "equal"

    def complaint(self) -> str:
        """Return what differs."""
        if not self.numbers:
            return "nothing was compared"
        if not self.differing:
            return ""
        return f"{self.differing:,} of {self.numbers:,} numbers differ, by up to {self.worst:.1e}"


@dataclass
class TwoRoundings:
    """A float32 product or quotient of two numbers, one of them rounded before: within 2**-23 of the float64 truth."""

    allowed: ClassVar[str] = "2^-23"
    numbers: int = 0
    worst: float = 0.0  # relative

    def add(self, candidate: NDArray[np.float32], exact: NDArray[np.float64]) -> None:
        """Take in two arrays of one shape."""
        assert candidate.shape == exact.shape
        error = np.abs(candidate.astype(np.float64) - exact)
        relative = np.divide(error, np.abs(exact), out=np.where(error > 0, np.inf, error), where=exact != 0)
        self.numbers += exact.size
        self.worst = float(np.maximum(self.worst, relative.max()))

    def shown(self) -> str:
        """Return the worst relative error."""
        return f"{self.worst:.1e}"

    def complaint(self) -> str:
        """Return by how much the bound is missed."""
        if not self.numbers:
            return "nothing was compared"
        # The bound itself is rounded: (1 + 2**-24)**2 - 1 is a little more than 2**-23.
        return "" if self.worst <= 2.0**-23 * (1 + 2.0**-20) else f"relative error {self.worst:.1e}, above 2**-23"


@dataclass
class TwoTimesRule:
    """Root-mean-square error against float64, per tensor, pooled over the batches: at most 2x the float32 reference's.

    Tensors under 256 elements are pooled together, since a mean over few numbers is noise.
    """

    allowed: ClassVar[str] = "2x"
    batches: int = 0
    sums: dict[str, list[float]] = field(
        default_factory=dict
    )  # name -> [Σ candidate error², Σ reference error², count]

    def add(
        self, candidate: Mapping[str, Any], reference: Mapping[str, Any], oracle: Mapping[str, Any], *, batches: int = 1
    ) -> None:
        """Take in a batch, or several, of named tensors or numbers; ``oracle`` is float64."""
        self.batches += batches
        assert set(candidate) == set(reference) == set(oracle)
        for name, exact in oracle.items():
            exact = np.asarray(exact, np.float64)
            pool = self.sums.setdefault(name if exact.size >= SMALL else "small tensors", [0.0, 0.0, 0.0])
            for i, got in enumerate((candidate[name], reference[name])):
                assert np.shape(got) == exact.shape, name
                pool[i] += float(((np.asarray(got, np.float64) - exact) ** 2).sum())
            pool[2] += exact.size

    def ratios(self) -> dict[str, float]:
        """Return candidate error / reference error by tensor."""
        return {name: math.sqrt(ours / max(theirs, 1e-300)) for name, (ours, theirs, _) in self.sums.items()}

    def shown(self) -> str:
        """Return the largest ratio."""
        worst = max(self.ratios().values(), key=lambda ratio: math.inf if math.isnan(ratio) else ratio, default=0.0)
        return f"{worst:.2f}x" if not worst >= 100 else f"{worst:.0e}x"

    def complaint(self) -> str:
        """Return which tensors break the rule."""
        if self.batches < MIN_BATCHES:
            return f"{self.batches} batches were pooled, at least {MIN_BATCHES} are needed"
        return "; ".join(
            f"{name}: error {math.sqrt(self.sums[name][0] / self.sums[name][2]):.1e}, "
            f"{ratio:.2f} times that of the float32 reference"
            for name, ratio in self.ratios().items()
            if not ratio <= 2.0
        )
