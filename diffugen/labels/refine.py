"""Sharpen masks with the image's colours: attention shows where an object is, pixels show where it ends.

Knows a heat map or mask and the pixels under it; neither classes nor scores.

Mean-field inference in a conditional random field, as in Krähenbühl and Koltun (2011), section 2, with two
simplifications. Each pixel is connected not to all others but to those at `DISTANCES` in 8 directions, near
and far (the neighbourhood of pixel-adaptive refinement; Ru et al. 2022, section 3.3), so the cost grows with
the number of pixels, not with its square. And the strength of a connection depends on the colours alone: an
additional factor for the distance made masks worse. In an image without any edges, masks shrink to their
hottest part.
"""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
from numpy.typing import NDArray

from diffugen.labels.heatmaps import value_range
from diffugen.labels.shapes import decode, encode
from diffugen.records import Instances

DISTANCES = (1 / 64, 2 / 64, 4 / 64, 7 / 64, 11 / 64, 16 / 64)
"""Distances of neighbours in each of 8 directions, relative to the square root of the image area."""

COLOUR_SPREAD = 10.0
"""CIELAB distance at which a connection has weakened to exp(-1/2): about four just noticeable differences."""

HEAT_SPREAD = 0.5
"""Heat, as a fraction of the map's range, that counts as one unit of evidence: higher trusts colours more."""

PAIRWISE_STRENGTH = 4.0
"""Units of evidence that neighbours contribute when they all agree."""

ITERATIONS = 5
LARGEST_SIDE = 160
"""Larger images are shrunk to this side in pixels: time grows with area, and heat maps are coarser anyway."""


def refine(heat: NDArray[np.float32], level: float, rgb: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Threshold a heat map and move the edge of the mask to where the image's colours change.

    Args:
        heat: float32 (H, W), >= 0.
        level: The threshold; without refinement the mask would be ``heat > level``.
        rgb: uint8 (H, W, 3), the image.

    Returns:
        bool (H, W); all False if the map is constant or nowhere above the level.

    Raises:
        ValueError: Image and map differ in size.
    """
    if rgb.shape != (*heat.shape, 3):
        raise ValueError(
            f"a heat map of shape {heat.shape} needs pixels of shape {(*heat.shape, 3)}, got {rgb.shape}"
        )
    low, high = value_range(heat)
    if not low < high or level >= high:
        return np.zeros(heat.shape, dtype=np.bool_)
    evidence = (heat - np.float32(level)) / np.float32((high - low) * HEAT_SPREAD)
    height, width = heat.shape
    shrink = min(1.0, LARGEST_SIDE / max(height, width))
    size_wh = max(1, round(width * shrink)), max(1, round(height * shrink))
    small, pixels = (cv2.resize(array, size_wh, interpolation=cv2.INTER_AREA) for array in (evidence, rgb))
    belief = _mean_field(small, cv2.cvtColor(pixels.astype(np.float32) / 255, cv2.COLOR_RGB2LAB))
    return np.asarray(cv2.resize(belief, (width, height), interpolation=cv2.INTER_LINEAR) > 0)


def refined(instances: Instances, rgb: NDArray[np.uint8]) -> Instances:
    """Return instances with mask edges moved to where the image's colours change.

    A mask that would vanish is kept as it was.

    Args:
        instances: Labels of the image, of any source.
        rgb: uint8 (H, W, 3), the image.

    Raises:
        ValueError: Image and masks differ in size.
    """
    rles = []
    for rle in instances.rles:
        mask = refine(decode(rle).astype(np.float32), 0.5, rgb)
        rles.append(encode(mask) if mask.any() else rle)
    return dataclasses.replace(instances, rles=tuple(rles))


def _mean_field(evidence: NDArray[np.float32], lab: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return each pixel's belief, in (-1, 1), that it belongs to the object: ``2p - 1``."""
    side = float(np.sqrt(evidence.size))
    offsets = [
        (dy * step, dx * step)
        for step in sorted({max(1, round(distance * side)) for distance in DISTANCES})
        for dy, dx in ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))
    ]
    reach = max(max(map(abs, offset)) for offset in offsets)
    colours = np.pad(lab, ((reach, reach), (reach, reach), (0, 0)), mode="edge")
    strengths = [
        np.exp(
            ((lab - _shifted(colours, offset, reach, lab.shape)) ** 2).sum(axis=2)
            / np.float32(-2 * COLOUR_SPREAD**2)
        )
        for offset in offsets
    ]
    total = np.add.reduce(strengths) + np.float32(1e-6)
    belief = np.tanh(evidence / 2)
    for _ in range(ITERATIONS):
        beliefs = np.pad(belief, reach, mode="edge")
        opinion = np.zeros_like(belief)
        for strength, offset in zip(strengths, offsets, strict=True):
            opinion += strength * _shifted(beliefs, offset, reach, belief.shape)
        belief = np.tanh((evidence + np.float32(PAIRWISE_STRENGTH) * opinion / total) / 2)
    return belief


def _shifted(
    padded: NDArray[np.float32], offset: tuple[int, int], reach: int, shape: tuple[int, ...]
) -> NDArray[np.float32]:
    top, left = reach + offset[0], reach + offset[1]
    return padded[top : top + shape[0], left : left + shape[1]]
