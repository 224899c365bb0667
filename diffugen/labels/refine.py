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
from diffugen.records import RLE, Instances

DISTANCES = (1 / 64, 2 / 64, 4 / 64, 7 / 64, 11 / 64, 16 / 64)
"""Distances of neighbours in each of 8 directions, relative to the square root of the image area."""

COLOUR_SPREAD = 10.0
"""CIELAB distance at which a connection has weakened to exp(-1/2): about four just noticeable differences."""

HEAT_SPREAD = 0.5
"""Heat, as a fraction of the map's range, that counts as one unit of evidence: higher trusts colours more."""

PAIRWISE_STRENGTH = 4.0
"""Units of evidence that neighbours of a heat map's pixel contribute when they all agree."""

MASK_PAIRWISE_STRENGTH = 2.0
"""The same for a mask, whose edges are known better than those of heat."""

CONSENSUS_PAIRWISE_STRENGTH = 1.0
"""The same for two masks of an object, which mostly agree: the colours only decide where they do not."""

ITERATIONS = 5
LARGEST_SIDE = 160
"""Larger images are shrunk to this side in pixels: time grows with area, and heat maps are coarser anyway."""


class ColourTies:
    """How strongly each pixel of an image is tied to its neighbours: the more, the closer their colours.

    Computed once, it refines any number of masks of the image.

    Args:
        rgb: uint8 (H, W, 3), the image.
    """

    def __init__(self, rgb: NDArray[np.uint8]) -> None:
        height, width = rgb.shape[:2]
        shrink = min(1.0, LARGEST_SIDE / max(height, width))
        self.shape_hw = (height, width)
        self._small_wh = max(1, round(width * shrink)), max(1, round(height * shrink))
        pixels = cv2.resize(rgb, self._small_wh, interpolation=cv2.INTER_AREA)
        lab = cv2.cvtColor(pixels.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
        side = float(np.sqrt(lab.shape[0] * lab.shape[1]))
        self._offsets = [
            (dy * step, dx * step)
            for step in sorted({max(1, round(distance * side)) for distance in DISTANCES})
            for dy, dx in ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))
        ]
        self._reach = max(max(map(abs, offset)) for offset in self._offsets)
        margin = (self._reach, self._reach)
        channels = np.ascontiguousarray(np.moveaxis(lab, 2, 0))  # sums over the last axis would be slow
        colours = np.pad(channels, ((0, 0), margin, margin), mode="edge")
        self._strengths = [
            np.exp(
                np.square(channels - self._shifted(colours, offset, lab.shape[:2])).sum(axis=0)
                / np.float32(-2 * COLOUR_SPREAD**2)
            )
            for offset in self._offsets
        ]
        self._total = np.add.reduce(self._strengths) + np.float32(1e-6)

    def settle(self, evidence: NDArray[np.float32], pairwise: float) -> NDArray[np.bool_]:
        """Return the mask that evidence and colours agree on.

        Args:
            evidence: float32 (H, W): above 0 where a pixel seems to belong to the object.
            pairwise: Units of evidence that neighbours contribute when they all agree.

        Returns:
            bool (H, W).

        Raises:
            ValueError: Image and evidence differ in size.
        """
        if evidence.shape != self.shape_hw:
            raise ValueError(
                f"a map of shape {evidence.shape} needs pixels of shape {(*evidence.shape, 3)}, got "
                f"{(*self.shape_hw, 3)}"
            )
        small = cv2.resize(evidence, self._small_wh, interpolation=cv2.INTER_AREA)
        belief = np.tanh(small / 2)  # in (-1, 1): 2p - 1, where p is the probability of the object
        beliefs, opinion = np.pad(belief, self._reach, mode="edge"), np.empty_like(belief)
        neighbours = [self._shifted(beliefs, offset, belief.shape) for offset in self._offsets]
        for _ in range(ITERATIONS):
            beliefs[:] = np.pad(belief, self._reach, mode="edge")
            opinion.fill(0)
            for strength, neighbour in zip(self._strengths, neighbours, strict=True):
                cv2.accumulateProduct(strength, neighbour, opinion)
            belief = np.tanh((small + np.float32(pairwise) * opinion / self._total) / 2)
        height, width = self.shape_hw
        return np.asarray(cv2.resize(belief, (width, height), interpolation=cv2.INTER_LINEAR) > 0)

    def _shifted(
        self, padded: NDArray[np.float32], offset: tuple[int, int], shape_hw: tuple[int, ...]
    ) -> NDArray[np.float32]:
        top, left = self._reach + offset[0], self._reach + offset[1]
        return padded[..., top : top + shape_hw[0], left : left + shape_hw[1]]


def refine(heat: NDArray[np.float32], level: float, ties: ColourTies) -> NDArray[np.bool_]:
    """Threshold a heat map and move the edge of the mask to where the image's colours change.

    Args:
        heat: float32 (H, W), >= 0.
        level: The threshold; without refinement the mask would be ``heat > level``.
        ties: Of the image.

    Returns:
        bool (H, W); all False if the map is constant or nowhere above the level.

    Raises:
        ValueError: Image and map differ in size.
    """
    low, high = value_range(heat)
    if not low < high or level >= high:
        return np.zeros(heat.shape, dtype=np.bool_)
    evidence = (heat - np.float32(level)) / np.float32((high - low) * HEAT_SPREAD)
    return ties.settle(evidence, PAIRWISE_STRENGTH)


def refined(instances: Instances, rgb: NDArray[np.uint8]) -> Instances:
    """Return instances with mask edges moved to where the image's colours change.

    A mask that would vanish is kept as it was.

    Args:
        instances: Labels of the image, of any source.
        rgb: uint8 (H, W, 3), the image.

    Raises:
        ValueError: Image and masks differ in size.
    """
    if not len(instances):
        return instances
    ties = ColourTies(rgb)
    rles = []
    for rle in instances.rles:
        mask = ties.settle(_evidence(rle), MASK_PAIRWISE_STRENGTH)
        rles.append(encode(mask) if mask.any() else rle)
    return dataclasses.replace(instances, rles=tuple(rles))


def consensus(first: RLE, second: RLE, ties: ColourTies) -> RLE:
    """Return the mask that two masks of an object and the image's colours agree on.

    Both masks weigh the same: where only one of them covers a pixel, the pixels of its colour decide.

    Args:
        first: Of the image's size.
        second: Of the same size.
        ties: Of the image.

    Raises:
        ValueError: Image and masks differ in size.
    """
    evidence = (_evidence(first) + _evidence(second)) / np.float32(2)
    mask = ties.settle(evidence, CONSENSUS_PAIRWISE_STRENGTH)
    return encode(mask) if mask.any() else second


def _evidence(mask: RLE) -> NDArray[np.float32]:
    """Return a mask as evidence: the same for the object inside as against it outside."""
    return (decode(mask).astype(np.float32) - np.float32(0.5)) / np.float32(HEAT_SPREAD)
