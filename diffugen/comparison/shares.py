"""A share that was counted, with the interval in which the true one lies. Knows counts alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

_Z = 1.959964
"""Quantile of the normal distribution for an interval of 95%."""


@dataclass(frozen=True)
class Share:
    """How many of a number of things.

    Attributes:
        hits: How many.
        of: Of how many; at least ``hits``.
    """

    hits: int = 0
    of: int = 0

    @property
    def frac(self) -> float | None:
        """The share in [0, 1]; None of nothing."""
        return self.hits / self.of if self.of else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95% confidence interval (Wilson 1927), from low to high in [0, 1]; None of nothing.

        It does not shrink to a point where none or all of a few are hits.
        """
        if not self.of:
            return None
        frac, spread = self.hits / self.of, _Z**2 / self.of
        middle = (frac + spread / 2) / (1 + spread)
        half = _Z * math.sqrt(frac * (1 - frac) / self.of + spread / (4 * self.of)) / (1 + spread)
        return max(0.0, middle - half), min(1.0, middle + half)

    def plus(self, hit: bool) -> Share:
        """Return the share with one thing more."""
        return Share(self.hits + hit, self.of + 1)
