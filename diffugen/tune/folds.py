"""Decide by cross-validation whether the best of many trials is better than the first, or only looks so.

Knows each trial's value in each image, and the images' prompts; not what was tried.

The best of many trials always looks good on the images that chose it. So the images are split into folds, no
prompt in two of them; in each fold that trial is looked at which is the best on the *other* folds. The mean
over all images is what choosing is worth on images that did not choose. The best trial on all images is
adopted only if that mean exceeds trial 0's by more than the standard error of the difference (paired over
images, clustered by prompt), and exceeds 0, which no labels at all are worth: evidence that even the best
settings contradict is as likely wrong itself.

**What this guarantees, and what not.** In the mean over held-out images, what is adopted was better than what
was there. It is no guarantee for each image, nor for other prompts, nor against evidence that is wrong in a
systematic way. Where trials differ by chance alone, one standard error lets chance through in about one case
of six at most. And the folds separate the choice among trials, not their proposal: the search has seen all
images.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Choice:
    """Which trial to go on with.

    Attributes:
        best: Number of the best trial on all images; the first of equals.
        adopted: Whether it may be used.
        held_out: Mean over all images of the value of the trial that the other folds choose.
        reason: Why it may, or may not, be used.
    """

    best: int
    adopted: bool
    held_out: float
    reason: str


def choose(values: Values, prompts: Sequence[str], folds: int, seed: int) -> Choice:
    """Choose between trial 0 and the best of all trials.

    Args:
        values: (trials, N), the value of each trial in each image.
        prompts: The prompt of each of the N images, at least two different ones.
        folds: Parts of the images; at most as many as there are prompts.
        seed: Decides which prompts share a fold.
    """
    best = int(values.mean(axis=1).argmax())
    unseen = held_out(values, split(prompts, folds, seed))
    gain, value = float((unseen - values[0]).mean()), float(unseen.mean())
    error = standard_error(unseen - values[0], prompts)
    numbers = f"the cross-validated gain of {gain:.4f} {{}} its standard error of {error:.4f}"
    if best == 0:
        return Choice(best, False, value, "no other settings were better on all evidence")
    if gain <= error:
        return Choice(best, False, value, numbers.format("does not exceed"))
    if value <= 0:
        reason = f"even the best labels found fit the evidence worse than no labels would (held-out value {value:.4f})"
        return Choice(best, False, value, reason)
    return Choice(best, True, value, numbers.format("exceeds"))


def held_out(values: Values, folds: NDArray[np.int64]) -> Values:
    """Return, of values (trials, N), each image's in the trial that is best outside the image's fold, float64
    (N,).
    """
    found = np.empty(values.shape[1])
    for fold in np.unique(folds):
        inside = folds == fold
        # Of equals the first: the given settings before any other.
        found[inside] = values[values[:, ~inside].mean(axis=1).argmax(), inside]
    return found


def split(prompts: Sequence[str], folds: int, seed: int) -> NDArray[np.int64]:
    """Number the fold of each image: whole prompts, the folds about equally large."""
    counts = sorted(Counter(prompts).items())
    random.Random(seed).shuffle(counts)
    sizes = [0] * min(folds, len(counts))
    fold_of = {}
    for prompt, count in sorted(counts, key=lambda pair: -pair[1]):
        fold_of[prompt] = sizes.index(min(sizes))
        sizes[fold_of[prompt]] += count
    return np.array([fold_of[prompt] for prompt in prompts])


def standard_error(differences: Values, prompts: Sequence[str]) -> float:
    """Return the standard error of the mean of differences (N,), those of one prompt taken together."""
    _, group = np.unique(np.array(prompts), return_inverse=True)
    sums = np.bincount(group, differences - differences.mean())
    return float(np.sqrt(len(sums) / (len(sums) - 1) * (sums**2).sum()) / len(differences))
