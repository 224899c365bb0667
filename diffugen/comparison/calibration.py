"""Calibrate severity: learn from decisions how often a label of a given severity and kind is really wrong.

The severity of `diffugen.comparison.disagreement` is reasoned, not measured, and its kinds need not be on one
scale. Here each kind gets a line in log-odds, ``logit(p) = offset + slope * logit(severity)`` (Platt scaling;
Platt 1999), fitted to what people decided. The uncalibrated severity is the prior: without decisions nothing
changes, and a few decisions change little.

Knows severities and what turned out wrong; not masks, images or who decided.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from diffugen.records import KINDS, SeverityBin

AGREED = "agreed"
"""The kind of an object on which both sides agree."""

ALL_KINDS = (*KINDS, AGREED)

OFFSET_SPREAD, SLOPE_SPREAD = 1.0, 0.5
"""Standard deviations of the prior: a kind is off by a factor e in its odds, and its slope by one half."""

_CLIP = 0.01


@dataclass(frozen=True)
class Outcome:
    """What turned out about one object.

    Attributes:
        kind: One of `ALL_KINDS`.
        severity: Its severity, uncalibrated, in [0, 1].
        wrong: Whether the attention label, or its absence, was wrong.
    """

    kind: str
    severity: float
    wrong: bool


@dataclass(frozen=True)
class Calibration:
    """What a severity is worth, by kind.

    Attributes:
        lines: From a kind to offset and slope; a kind without them is as it was.
        outcomes: From a kind to the number of outcomes that were learned from.
    """

    lines: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    outcomes: Mapping[str, int] = field(default_factory=dict)

    def probability(self, kind: str, severity: float) -> float:
        """Return the probability, in [0, 1], that a label of this kind and severity is wrong."""
        if kind not in self.lines:
            return severity
        offset, slope = self.lines[kind]
        return float(1 / (1 + np.exp(-(offset + slope * _logit(severity)))))


UNCALIBRATED = Calibration()


def calibrate(outcomes: Iterable[Outcome]) -> Calibration:
    """Fit a calibration to outcomes; a severity that is higher never becomes less likely.

    Args:
        outcomes: Of any number of objects, none needed.

    Raises:
        ValueError: A kind is unknown.
    """
    by_kind: dict[str, list[Outcome]] = {}
    for one in outcomes:
        if one.kind not in ALL_KINDS:
            raise ValueError(f"unknown kind {one.kind!r}; one of {', '.join(ALL_KINDS)}")
        by_kind.setdefault(one.kind, []).append(one)
    return Calibration(
        {kind: _line(found) for kind, found in by_kind.items()},
        {kind: len(found) for kind, found in by_kind.items()},
    )


def reliability(by_image: Sequence[Sequence[Outcome]], *, folds: int = 5, bins: int = 5) -> list[SeverityBin]:
    """Compare severities with what turned out: for each range of severity, how many labels were wrong.

    Each label's severity is calibrated by the decisions about other images only (cross-validation), as it is
    in the queue: before its own image is decided.

    Args:
        by_image: The outcomes of each decided image.
        folds: Parts that the images are divided into.
        bins: Ranges of equal width.

    Returns:
        The ranges that have labels, lowest first.
    """
    severities, wrong = list[float](), list[bool]()
    for fold in range(folds):
        learned = calibrate(
            one for number, made in enumerate(by_image) if number % folds != fold for one in made
        )
        for made in by_image[fold::folds]:
            severities += [learned.probability(one.kind, one.severity) for one in made]
            wrong += [one.wrong for one in made]
    places = np.minimum((np.array(severities) * bins).astype(int), bins - 1)
    found = []
    for place in range(bins):
        here = places == place
        if here.any():
            mean = float(np.array(severities)[here].mean())
            labels, bad = int(here.sum()), int(np.array(wrong)[here].sum())
            found.append(SeverityBin(place / bins, (place + 1) / bins, mean, labels, bad))
    return found


def _line(outcomes: Sequence[Outcome]) -> tuple[float, float]:
    """Return offset and slope with the highest posterior probability."""
    from scipy.optimize import minimize

    odds = np.array([_logit(one.severity) for one in outcomes])
    wrong = np.array([one.wrong for one in outcomes], dtype=np.float64)

    def loss(line: NDArray[np.float64]) -> float:
        scores = line[0] + line[1] * odds
        likelihood = np.sum(np.logaddexp(0, scores) - wrong * scores)
        prior = (line[0] / OFFSET_SPREAD) ** 2 + ((line[1] - 1) / SLOPE_SPREAD) ** 2
        return float(likelihood + prior / 2)

    found = minimize(loss, np.array([0.0, 1.0]), bounds=[(None, None), (0.0, None)], method="L-BFGS-B")
    return float(found.x[0]), float(found.x[1])


def _logit(probability: float) -> float:
    clipped = min(max(probability, _CLIP), 1 - _CLIP)
    return float(np.log(clipped / (1 - clipped)))
