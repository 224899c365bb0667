"""Outline objects with a promptable segmenter: attention shows where an object is, the segmenter its outline.

Knows rough masks, the heat under them, and a segmenter behind an interface; neither classes nor scores.

Each rough mask prompts the segmenter (Segment Anything; Kirillov et al. 2023, section 3) with its box and the
hottest point inside it. The segmenter's mask replaces the rough one if the two agree: a segmenter that was
misled outlines something else just as sharply, such as the road below the car, or one of its wheels. The
limits on the area of an instance apply to rough masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from diffugen.labels.objects import CONTAINED_FRAC
from diffugen.labels.shapes import boxes, encode

Mask = NDArray[np.bool_]

AGREEMENT_IOU = 0.5
"""IoU with the rough mask from which on a segmenter's mask replaces it: more shared than not."""


class Segmenter(Protocol):
    """Outlines the objects of an image that it is shown."""

    def masks(
        self, rgb: NDArray[np.uint8], boxes: NDArray[np.float64], points: NDArray[np.float64]
    ) -> NDArray[np.bool_]:
        """Return the mask of each of N objects.

        Args:
            rgb: uint8 (H, W, 3), the image.
            boxes: float64 (N, 4), the xyxy box of each object in px.
            points: float64 (N, 2), the x and y of a pixel of each object in px, at the pixel's centre.

        Returns:
            bool (N, H, W).
        """
        ...


def segmented(
    objects: Sequence[Sequence[Mask]],
    heats: Sequence[NDArray[np.float32]],
    limits: Sequence[Mask | None],
    rgb: NDArray[np.uint8],
    segmenter: Segmenter,
) -> list[list[Mask]]:
    """Return the objects of each class as a segmenter outlines them, large before small.

    Where it disagrees with a rough mask, that is kept. A mask of which `CONTAINED_FRAC` lies within a larger
    one of its class is dropped: the heat fell into pieces, and the segmenter has found the whole object.

    Args:
        objects: For each of C classes its rough masks, bool (h, w) each, not empty.
        heats: C heat maps that the rough masks were made from, float32 (h, w) each.
        limits: For each class the pixels, bool (h, w), that its masks must not leave; None for all pixels.
        rgb: uint8 (h, w, 3), the image.
        segmenter: Called once, with all objects, or not at all if there are none.

    Raises:
        ValueError: Image and masks differ in size.
    """
    rough = [(mask, heat) for masks, heat in zip(objects, heats, strict=True) for mask in masks]
    if not rough:
        return [[] for _ in objects]
    if rgb.shape[:2] != rough[0][0].shape:
        raise ValueError(f"masks of shape {rough[0][0].shape} need pixels of that size, got {rgb.shape}")
    points = np.array([_hottest(mask, heat) for mask, heat in rough])
    found = iter(segmenter.masks(rgb, boxes([encode(mask) for mask, _ in rough]), points))
    return [
        _whole([_agreed(mask, next(found), limit) for mask in masks])
        for masks, limit in zip(objects, limits, strict=True)
    ]


def _hottest(mask: Mask, heat: NDArray[np.float32]) -> tuple[float, float]:
    y, x = np.unravel_index(np.argmax(np.where(mask, heat, -np.inf)), mask.shape)
    return float(x) + 0.5, float(y) + 0.5


def _agreed(rough: Mask, found: Mask, limit: Mask | None) -> Mask:
    inside = found if limit is None else found & limit
    agree = (rough & inside).sum() >= AGREEMENT_IOU * (rough | inside).sum()
    return inside if agree else rough


def _whole(masks: Sequence[Mask]) -> list[Mask]:
    kept: list[Mask] = []
    for mask in sorted(masks, key=np.count_nonzero, reverse=True):
        if not any((mask & other).sum() >= CONTAINED_FRAC * mask.sum() for other in kept):
            kept.append(mask)
    return kept
