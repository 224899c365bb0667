"""Score labels: eight terms, each in [0, 1], and their weighted mean.

Knows how a mask lies on heat maps and pixels; not how the mask was made, nor which class it has.

The terms compare a mask with the heat map of its class:

- ``box_size``: ``1 - (1 - s)**2``, where s is the square root of the box's share of the image area (the
  paper's first term: larger is better). It always grows with the box, fastest where boxes are small: .19 at
  1% of the image, .51 at 9%, .75 at a quarter.
- ``heat_intensity``: mean heat inside the mask, as a fraction of the map's peak (the paper's second term).
- ``contrast``: ``1 - outside / inside``: how far the mean heat of the surroundings falls below the mean heat
  inside. The surroundings are a band around the mask, as wide as 5% of the image side, without the other
  instances of the class.
- ``compactness``: pixels of the mask / pixels of its convex hull: 1 for a solid convex shape; holes, arms and
  scattered pieces lower it.
- ``margin``: mean over the mask of ``own / (own + rival)``, where each map is rescaled to [0, 1] and rival is
  the strongest other phrase at the pixel: .5 is a tie; 1 if no other phrase was traced.
- ``separation``: how far the map falls into two levels at all: Otsu's criterion, the variance between the
  pixels above and below his threshold as a share of all variance (Otsu 1979, eq. 16).
- ``edge``: ``1 - exp(-d / 20)``, where d is the CIELAB distance between the pixels along the outline and
  those beside them outside, on average: whether the mask ends where the image's colours change.
- ``certainty``: ``1 - d``, where d is how much the networks of a decoder disagree on the pixels of the mask:
  their mean Jensen-Shannon divergence in bits; see `diffugen.labels.decoder`. Labels of attention lack it.

The paper's own score is the mean of the first two (``score: paper``). Which terms tell good labels from bad
ones is measured in reports/miniature.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from diffugen.config.labelling import CERTAINTY, TERMS, ScoreWeights
from diffugen.labels.heatmaps import level, value_range
from diffugen.records import Instances

Range = tuple[float, float]

SURROUNDINGS_FRAC = 0.05
"""Width of the band of surroundings, relative to the square root of the image area."""

EDGE_SPREAD = 20.0
"""CIELAB distance at which ``edge`` is 1 - 1/e; about eight just noticeable differences."""


def score(terms: Mapping[str, float], weights: ScoreWeights) -> float:
    """Return ``sum(w * t) / sum(w)``, in [0, 1]; ``certainty`` does not count where it is missing.

    Raises:
        ValueError: Another term with a weight above 0 is missing.
    """
    weighted = {
        name: weight for name, weight in weights if weight > 0 and (name != CERTAINTY or name in terms)
    }
    missing = weighted.keys() - terms.keys()
    if missing:
        raise ValueError(
            f"the score needs the terms {sorted(missing)}; the instance has {sorted(terms) or 'none'}"
        )
    mean = sum(weight * terms[name] for name, weight in weighted.items()) / sum(weighted.values())
    # Rounding errors can push a mean of ones above 1.
    return float(min(mean, 1.0))


def rescore(instances: Instances, weights: ScoreWeights, accept: float = 0.0) -> Instances:
    """Return attention labels with scores by these weights, without those below ``accept``.

    Needs no heat maps.

    Args:
        instances: Instances that carry their terms; one without any, such as a witness's, keeps its score.
        weights: Weights of the terms.
        accept: Lowest score to keep, in [0, 1].

    Raises:
        ValueError: An instance lacks a term with a weight above 0.
    """
    scores = [
        score(terms, weights) if terms else float(kept)
        for terms, kept in zip(instances.terms, instances.scores, strict=True)
    ]
    scored = dataclasses.replace(instances, scores=np.array(scores))
    return scored.take([index for index, value in enumerate(scores) if value >= accept])


def measure(
    masks: Sequence[NDArray[np.bool_]],
    heat: NDArray[np.float32],
    rivals: Sequence[NDArray[np.float32]],
    lab: NDArray[np.float32] | None = None,
    doubt: NDArray[np.float32] | None = None,
) -> list[dict[str, float]]:
    """Measure the terms of all instances of one class.

    Args:
        masks: The class's N instances in the image, bool (h, w) each.
        heat: The class's heat map, float32 (h, w), >= 0.
        rivals: Heat maps of all other phrases, float32 (h, w) each; may be empty.
        lab: The image, float32 (h, w, 3), from `in_lab`; without it there is no ``edge``.
        doubt: How doubtful a decoder's drawing of the class is, float32 (h, w), in [0, 1]; without it there
            is no ``certainty``.

    Returns:
        N mappings from the names in ``TERMS`` to values in [0, 1]; all 0 for an empty mask, which has all.
    """
    if not masks:
        return []
    occupied = masks[0] if len(masks) == 1 else np.logical_or.reduce(masks)
    own_range = value_range(heat)
    ranged = [(rival, value_range(rival)) for rival in rivals]
    shared = {"separation": _separation(heat)}
    return [_measure_one(mask, heat, own_range, ranged, occupied, lab, doubt, shared) for mask in masks]


def in_lab(rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return an image, uint8 (h, w, 3), in CIELAB, float32 (h, w, 3)."""
    return np.asarray(cv2.cvtColor(rgb.astype(np.float32) / 255, cv2.COLOR_RGB2LAB), dtype=np.float32)


def _measure_one(
    mask: NDArray[np.bool_],
    heat: NDArray[np.float32],
    own_range: Range,
    rivals: Sequence[tuple[NDArray[np.float32], Range]],
    occupied: NDArray[np.bool_],
    lab: NDArray[np.float32] | None,
    doubt: NDArray[np.float32] | None,
    shared: Mapping[str, float],
) -> dict[str, float]:
    x, y, w, h = cv2.boundingRect(mask.view(np.uint8))
    if not w:
        return dict.fromkeys(TERMS, 0.0)
    radius = max(1, round(SURROUNDINGS_FRAC * math.sqrt(mask.size)))
    # Work only in the mask's box and its surroundings.
    part = np.s_[max(y - radius, 0) : y + h + radius, max(x - radius, 0) : x + w + radius]
    inside = np.ascontiguousarray(mask[part])
    band = (
        cv2.dilate(inside.view(np.uint8), np.ones((2 * radius + 1,) * 2, np.uint8)).view(np.bool_)
        & ~occupied[part]
    )
    own = heat[part][inside]
    mean, peak = float(own.mean(dtype=np.float64)), own_range[1]
    around = float(heat[part][band].mean(dtype=np.float64)) if band.any() else mean
    side = math.sqrt(w * h / mask.size)
    terms = {
        "box_size": 1 - (1 - side) ** 2,
        "heat_intensity": mean / peak if peak > 0 else 0.0,
        "contrast": 1 - around / mean if mean > 0 else 0.0,
        "compactness": len(own) / _hull_pixels(inside),
        "margin": _margin(own, own_range, [(rival[part][inside], limits) for rival, limits in rivals]),
        **shared,
    }
    if lab is not None:
        terms["edge"] = edge(inside, lab[part])
    if doubt is not None:
        terms[CERTAINTY] = 1 - float(doubt[part][inside].mean(dtype=np.float64))
    return {name: min(max(float(value), 0.0), 1.0) for name, value in terms.items()}


def _margin(
    own: NDArray[np.float32], own_range: Range, rivals: Sequence[tuple[NDArray[np.float32], Range]]
) -> float:
    if not rivals:
        return 1.0
    mine = _scaled(own, own_range)
    strongest = np.maximum.reduce([_scaled(values, limits) for values, limits in rivals])
    both = mine + strongest
    # A tie where neither phrase has any heat.
    return float(np.where(both > 0, mine / np.maximum(both, 1e-12), 0.5).mean(dtype=np.float64))


def _separation(heat: NDArray[np.float32]) -> float:
    above = heat > level(heat, "otsu")
    share, spread = float(above.mean()), float(heat.var(dtype=np.float64))
    if not 0 < share < 1 or spread <= 0:
        return 0.0
    gap = float(heat[above].mean(dtype=np.float64)) - float(heat[~above].mean(dtype=np.float64))
    return share * (1 - share) * gap**2 / spread


def edge(mask: NDArray[np.bool_], lab: NDArray[np.float32]) -> float:
    """Return the term ``edge`` of a mask, in [0, 1]; 0 if it has no pixel, or none beside it.

    Args:
        mask: bool (h, w), in the image or a part of it.
        lab: float32 (h, w, 3), the same part, from `in_lab`.
    """
    pixels = mask.astype(np.uint8)
    outside = cv2.dilate(pixels, np.ones((3, 3), np.uint8)) - pixels
    beside = cv2.boxFilter(outside.astype(np.float32), -1, (3, 3), normalize=False)
    outline = mask & (beside > 0)
    if not outline.any():
        return 0.0
    total = cv2.boxFilter(lab * outside[..., None], -1, (3, 3), normalize=False)
    distance = np.linalg.norm(lab[outline] - total[outline] / beside[outline][:, None], axis=1)
    return 1 - math.exp(-float(distance.mean(dtype=np.float64)) / EDGE_SPREAD)


def _scaled(values: NDArray[np.float32], limits: Range) -> NDArray[np.float32]:
    low, high = limits
    return (values - np.float32(low)) / np.float32(high - low) if high > low else np.zeros_like(values)


def _hull_pixels(mask: NDArray[np.bool_]) -> int:
    contours, _ = cv2.findContours(mask.view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    hull = cv2.convexHull(np.concatenate(contours)).reshape(-1, 2)
    steps = np.abs(hull - np.roll(hull, 1, axis=0))
    border = int(np.gcd(steps[:, 0], steps[:, 1]).sum())
    # Pick's theorem: the number of pixel centres in the hull, outline included, without drawing it.
    return round(cv2.contourArea(hull) + border / 2 + 1)
