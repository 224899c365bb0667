"""Score labels: five terms, each in [0, 1], and their weighted mean.

Knows how a mask lies on heat maps; not how the mask was made, nor what its class is.

Terms, of a mask on the heat map of its class:
- ``box_size``: ``1 - (1 - s)**2`` with s the square root of the box's part of the image (the paper's first
  term: larger is better). It grows everywhere, most where boxes are small: .19 at 1% of the image, .51 at 9%,
  .75 at a quarter.
- ``heat_intensity``: mean heat inside, as a part of the map's own peak (the paper's second term).
- ``contrast``: ``1 - outside / inside``: how far the mean heat of the surroundings, a band around the mask as
  wide as 5% of the image's side, falls below the mean inside. Other instances of the class are no
  surroundings.
- ``compactness``: pixels of the mask / pixels of its convex hull: 1 for a solid convex shape; holes, arms and
  scattered pieces lower it.
- ``margin``: mean over the mask of ``own / (own + rival)``, each map scaled from its minimum and maximum to
  [0, 1], and rival the strongest other phrase at the pixel: .5 is a tie; 1 if no other phrase was traced.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from diffugen.config.labelling import TERMS, ScoreWeights
from diffugen.labels.heatmaps import value_range
from diffugen.records import Instances

Range = tuple[float, float]

SURROUNDINGS_FRAC = 0.05
"""Width of the band that counts as surroundings, relative to the square root of the image's area."""


def score(terms: Mapping[str, float], weights: ScoreWeights) -> float:
    """Return ``sum(w * t) / sum(w)``, in [0, 1].

    Raises:
        ValueError: A term that has a weight is missing.
    """
    weighted = {name: weight for name, weight in weights if weight > 0}
    missing = weighted.keys() - terms.keys()
    if missing:
        raise ValueError(
            f"the score needs the terms {sorted(missing)}; the instance has {sorted(terms) or 'none'}"
        )
    mean = sum(weight * terms[name] for name, weight in weighted.items()) / sum(weighted.values())
    # Rounding can carry a mean of ones past 1.
    return float(min(mean, 1.0))


def rescore(instances: Instances, weights: ScoreWeights, accept: float = 0.0) -> Instances:
    """Return attention labels with scores by other weights, without those below ``accept``; needs no heat
    maps.

    Args:
        instances: Instances that carry their terms.
        weights: Weights of the terms.
        accept: Lowest score to keep, in [0, 1].
    """
    scores = [score(terms, weights) for terms in instances.terms]
    keep = [index for index, value in enumerate(scores) if value >= accept]
    return Instances(
        size_wh=instances.size_wh,
        class_names=tuple(instances.class_names[index] for index in keep),
        rles=tuple(instances.rles[index] for index in keep),
        scores=np.asarray([scores[index] for index in keep], dtype=np.float64),
        terms=tuple(instances.terms[index] for index in keep),
    )


def measure(
    masks: Sequence[NDArray[np.bool_]], heat: NDArray[np.float32], rivals: Sequence[NDArray[np.float32]]
) -> list[dict[str, float]]:
    """Measure the terms of all instances of one class.

    Args:
        masks: The class's N instances in the image, bool (h, w) each.
        heat: The class's heat map, float32 (h, w), >= 0.
        rivals: Heat maps of all other phrases, float32 (h, w) each; may be empty.

    Returns:
        N mappings from the names in `TERMS` to values in [0, 1]; all 0 for an empty mask.
    """
    if not masks:
        return []
    occupied = masks[0] if len(masks) == 1 else np.logical_or.reduce(masks)
    own_range = value_range(heat)
    ranged = [(rival, value_range(rival)) for rival in rivals]
    return [_measure_one(mask, heat, own_range, ranged, occupied) for mask in masks]


def _measure_one(
    mask: NDArray[np.bool_],
    heat: NDArray[np.float32],
    own_range: Range,
    rivals: Sequence[tuple[NDArray[np.float32], Range]],
    occupied: NDArray[np.bool_],
) -> dict[str, float]:
    x, y, w, h = cv2.boundingRect(mask.view(np.uint8))
    if not w:
        return dict.fromkeys(TERMS, 0.0)
    radius = max(1, round(SURROUNDINGS_FRAC * math.sqrt(mask.size)))
    # Everything happens in the mask's box and its surroundings.
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
    }
    return {name: min(max(float(value), 0.0), 1.0) for name, value in terms.items()}


def _margin(
    own: NDArray[np.float32], own_range: Range, rivals: Sequence[tuple[NDArray[np.float32], Range]]
) -> float:
    if not rivals:
        return 1.0
    mine = _scaled(own, own_range)
    strongest = np.maximum.reduce([_scaled(values, limits) for values, limits in rivals])
    both = mine + strongest
    # Where neither phrase has any heat nobody leads: a tie.
    return float(np.where(both > 0, mine / np.maximum(both, 1e-12), 0.5).mean(dtype=np.float64))


def _scaled(values: NDArray[np.float32], limits: Range) -> NDArray[np.float32]:
    low, high = limits
    return (values - np.float32(low)) / np.float32(high - low) if high > low else np.zeros_like(values)


def _hull_pixels(mask: NDArray[np.bool_]) -> int:
    contours, _ = cv2.findContours(mask.view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    hull = cv2.convexHull(np.concatenate(contours)).reshape(-1, 2)
    steps = np.abs(hull - np.roll(hull, 1, axis=0))
    border = int(np.gcd(steps[:, 0], steps[:, 1]).sum())
    # Pick's theorem counts the pixel centres in the hull, its outline included, without drawing it.
    return round(cv2.contourArea(hull) + border / 2 + 1)
