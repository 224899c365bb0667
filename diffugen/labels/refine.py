"""Sharpen masks by the image's own colours: attention says roughly where an object is, its pixels say where
it ends.

Knows a heat map or mask and the pixels under it; not classes or scores.

Mean-field inference in a conditional random field, as in Krähenbühl and Koltun (2011), section 2, with two
simplifications. Each pixel is tied not to all others but to those at `DISTANCES` in 8 directions, near and
far (the neighbourhood of pixel-adaptive refinement; Ru et al. 2022, section 3.3), so that the cost grows with
the number of pixels and not with its square. And a tie depends on the colours alone: with a factor for the
distance as well, masks were worse. Where an image shows no edges at all, masks shrink to their hottest part.
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
"""How far away neighbours lie, relative to the square root of the image's area, in each of 8 directions."""

COLOUR_SPREAD = 10.0
"""CIELAB distance at which a tie has weakened to exp(-1/2): about four just noticeable differences."""

HEAT_SPREAD = 0.5
"""How much heat, as a part of the map's range, counts as one unit of evidence: larger trusts the colours
more."""

TIE_STRENGTH = 4.0
"""Units of evidence that neighbours of one opinion amount to."""

ITERATIONS = 5
LARGEST_SIDE = 160
"""Larger images are refined at this size in pixels: time grows with the area, and heat maps hold no finer
detail."""


def refine(heat: NDArray[np.float32], level: float, rgb: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return the mask of an object whose heat exceeds a level, with its edge moved to where the colours
    change.

    Args:
        heat: float32 (H, W), >= 0.
        level: What ``heat > level`` would take for the object.
        rgb: uint8 (H, W, 3), the image.

    Returns:
        bool (H, W); empty where the map is flat or nothing exceeds the level.

    Raises:
        ValueError: The image has another size than the map.
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
    """Return instances whose masks end where the image's colours change; a mask that would vanish stays as it
    is.

    Args:
        instances: Objects of the image.
        rgb: uint8 (H, W, 3), the image.
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
    ties = [
        np.exp(
            ((lab - _shifted(colours, offset, reach, lab.shape)) ** 2).sum(axis=2)
            / np.float32(-2 * COLOUR_SPREAD**2)
        )
        for offset in offsets
    ]
    total = np.add.reduce(ties) + np.float32(1e-6)
    belief = np.tanh(evidence / 2)
    for _ in range(ITERATIONS):
        beliefs = np.pad(belief, reach, mode="edge")
        opinion = np.zeros_like(belief)
        for tie, offset in zip(ties, offsets, strict=True):
            opinion += tie * _shifted(beliefs, offset, reach, belief.shape)
        belief = np.tanh((evidence + np.float32(TIE_STRENGTH) * opinion / total) / 2)
    return belief


def _shifted(
    padded: NDArray[np.float32], offset: tuple[int, int], reach: int, shape: tuple[int, ...]
) -> NDArray[np.float32]:
    top, left = reach + offset[0], reach + offset[1]
    return padded[top : top + shape[0], left : left + shape[1]]
