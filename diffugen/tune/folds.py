"""Decide by cross-validation whether the best of many trials is better than the first, or only looks so.

Knows each trial's value in each image, and the family of each image: the prompt or photo it goes back to.
Does not know what was tried.

The best of many trials always looks good on the images that chose it. So the images are split into folds,
with each family in one fold only, and each fold is given the trial that is best on the *other* folds. The
mean of these values over all images is what choosing is worth on images that had no part in the choice. The
trial that is best on all images is adopted only if this mean exceeds that of trial 0 by more than
`ADOPTION_ERRORS` standard errors of the difference (paired by image, clustered by family), and, for labels,
exceeds 0, the worth of having none at all: evidence that contradicts even the best settings is just as likely
to be wrong itself.

**What this guarantees, and what it does not.** On average over held-out images, what is adopted was better
than the current settings. That is no guarantee for each image, for other prompts, or against evidence that is
systematically wrong. If trials differ by chance alone, 1.5 standard errors let chance through in about one
case in fifteen. And the folds separate the choice among trials, not the search that proposed them,
which has seen all images.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

ADOPTION_ERRORS = 1.5
"""Standard errors that a gain must exceed: with one, a lucky trial on 14 rough labels lost .15 of IoU."""


@dataclass(frozen=True)
class Choice:
    """The choice between trial 0 and the best trial.

    Attributes:
        best: Number of the best trial on all images; the first one if several are equal.
        adopted: Whether to use it instead of trial 0.
        held_out: Mean value over all images, each in the trial that is best on the other folds.
        reason: Why the best trial is adopted, or why not.
    """

    best: int
    adopted: bool
    held_out: float
    reason: str


def choose(values: Values, families: Sequence[str], folds: int, seed: int, worthless: float = -inf) -> Choice:
    """Choose between trial 0 and the best of all trials.

    Args:
        values: float64 (trials, N), the value of each trial in each image.
        families: The family of each of the N images, at least two different ones.
        folds: Number of parts of the images; fewer if there are fewer families.
        seed: Decides which families share a fold.
        worthless: The value of having no labels at all; nothing is adopted unless it is worth more.
    """
    best = int(values.mean(axis=1).argmax())
    unseen = held_out(values, split(families, folds, seed))
    gain, value = float((unseen - values[0]).mean()), float(unseen.mean())
    error = standard_error(unseen - values[0], families)
    limit = ADOPTION_ERRORS * error
    numbers = f"the cross-validated gain of {gain:.4f} {{}} {ADOPTION_ERRORS:g} standard errors ({limit:.4f})"
    if best == 0:
        return Choice(best, False, value, "nothing was better on all evidence")
    if gain <= limit:
        return Choice(best, False, value, numbers.format("does not exceed"))
    if value <= worthless:
        reason = (
            f"even the best labels fit the evidence worse than no labels would (held-out value {value:.4f})"
        )
        return Choice(best, False, value, reason)
    return Choice(best, True, value, numbers.format("exceeds"))


def held_out(values: Values, folds: NDArray[np.int64]) -> Values:
    """Return each image's value in the trial that is best on the other folds.

    Args:
        values: float64 (trials, N), the value of each trial in each image.
        folds: int64 (N,), the fold of each image.

    Returns:
        float64 (N,).
    """
    found = np.empty(values.shape[1])
    for fold in np.unique(folds):
        inside = folds == fold
        # argmax takes the first of equal trials, which favours the current settings.
        found[inside] = values[values[:, ~inside].mean(axis=1).argmax(), inside]
    return found


def split(families: Sequence[str], folds: int, seed: int) -> NDArray[np.int64]:
    """Return the fold of each image, int64 (N,): whole families, in folds of about equal size."""
    counts = sorted(Counter(families).items())
    random.Random(seed).shuffle(counts)
    sizes = [0] * min(folds, len(counts))
    fold_of = {}
    for family, count in sorted(counts, key=lambda pair: -pair[1]):
        fold_of[family] = sizes.index(min(sizes))
        sizes[fold_of[family]] += count
    return np.array([fold_of[family] for family in families])


def standard_error(differences: Values, families: Sequence[str]) -> float:
    """Return the standard error of the mean of differences (N,), clustered by family."""
    _, group = np.unique(np.array(families), return_inverse=True)
    sums = np.bincount(group, differences - differences.mean())
    return float(np.sqrt(len(sums) / (len(sums) - 1) * (sums**2).sum()) / len(differences))
