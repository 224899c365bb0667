"""Choose the threshold of each class from heat maps and images alone, without any label.

DiffuMask (Wu et al. 2023, section 3.3) chooses a threshold for each class by how well masks fit those of an
affinity network. Here, a threshold is worth more if its masks end where the image's colours change (the term
``edge`` of `diffugen.labels.score`), and if a somewhat higher one would change them little: *edge times
stability*, averaged over the maps of the class. Otsu's threshold is replaced only if another one is clearly
better by that: heat that falls off evenly around an object gives Otsu masks that are far too large.

Knows maps and pixels; not where they come from, nor which class is which.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from diffugen.config.labelling import LabelSettings, Threshold
from diffugen.labels.heatmaps import level, value_range
from diffugen.labels.label import contest, mask_of, within_limit
from diffugen.labels.refine import ColourTies
from diffugen.labels.score import edge, in_lab
from diffugen.labels.witness import Witness
from diffugen.records import RLE, Phrase

FRACTIONS = tuple(round(0.15 + 0.05 * step, 2) for step in range(13))
"""The thresholds that are tried: .15 to .75 of the way from a map's minimum to its maximum."""

_TRIED: tuple[Threshold, ...] = ("otsu", *FRACTIONS)

STEP = 0.1
"""How much higher the threshold is that shows how stable a mask is."""

LEAST_MAPS = 8
"""A class with fewer maps keeps Otsu's threshold."""

LEAST_ERRORS = 2.0
"""Standard errors by which a threshold must be better than Otsu's."""

Worth = NDArray[np.float64]
"""What Otsu's threshold and each of `FRACTIONS` are worth in one map, (1 + len(FRACTIONS),), in [0, 1]."""


def worths(
    heats: NDArray[np.float32],
    phrases: Sequence[Phrase],
    settings: LabelSettings,
    rgb: NDArray[np.uint8],
    region: RLE | None = None,
    witness: Witness | None = None,
) -> dict[str, Worth]:
    """Return what each threshold is worth for each class that attention labels in an image.

    Args:
        heats: float32 (P, h, w), >= 0, from `diffugen.labels.heatmaps.combine`.
        phrases: The P phrases.
        settings: How maps become masks; their threshold counts only for what a witness can have misnamed.
        rgb: uint8 (h, w, 3), the image.
        region: The part of the image that was painted; None for all of it.
        witness: What a detector found in the image; classes that it knows are left out.
    """
    lab, ties = in_lab(rgb), ColourTies(rgb) if settings.refine == "crf" else None
    ready = contest(heats, phrases, settings, region, witness)
    known = frozenset[str]() if witness is None else witness.class_names
    found = {}
    for name, heat, limit in zip(ready.names, ready.own, ready.limits, strict=True):
        low, high = value_range(heat)
        if name in known or low == high:
            continue
        values = []
        for how in _TRIED:
            least = level(heat, how)
            mask = within_limit(mask_of(heat, how, settings, ties), limit)
            kept = float((heat > least + STEP * (high - low)).sum()) / float((heat > least).sum())
            values.append(kept * edge(mask, lab))
        found[name] = np.array(values)
    return found


def choose(by_class: Mapping[str, Sequence[Worth]]) -> dict[str, float]:
    """Return the best threshold of each class for which it is clearly better than Otsu's.

    Args:
        by_class: From a class to what thresholds are worth in each of its maps.
    """
    chosen = {}
    for name, values in by_class.items():
        if len(values) < LEAST_MAPS:
            continue
        table = np.stack(values)
        best = 1 + int(table[:, 1:].mean(axis=0).argmax())
        gains = table[:, best] - table[:, 0]
        if gains.mean() > LEAST_ERRORS * gains.std(ddof=1) / np.sqrt(len(gains)):
            chosen[name] = FRACTIONS[best - 1]
    return chosen
