"""Paint over the objects of an image that nobody can be sure of, so that nothing is learned from them.

A detector like YOLO has no regions to ignore: what is not labelled counts as background. Knows pixels and
masks, and nothing of why an object is hidden.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from diffugen.labels.shapes import decode
from diffugen.records import RLE

RIM_FRAC = 0.03
"""Width of the rim around a mask that is painted over too, relative to the square root of the image area."""


def painted_over(rgb: NDArray[np.uint8], hidden: Sequence[RLE], shown: Sequence[RLE]) -> NDArray[np.uint8]:
    """Return an image in which some objects are filled in from their surroundings (Telea 2004).

    Args:
        rgb: uint8 (H, W, 3).
        hidden: Masks of the objects to paint over.
        shown: Masks of the objects that stay; no pixel of them changes.
    """
    if not hidden:
        return rgb
    area = np.zeros(rgb.shape[:2], dtype=np.uint8)
    for rle in hidden:
        area |= decode(rle).view(np.uint8)
    radius = max(1, round(RIM_FRAC * math.sqrt(area.size)))
    area = cv2.dilate(area, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1,) * 2))
    for rle in shown:
        area &= ~decode(rle).view(np.uint8) & 1
    filled = cv2.inpaint(np.ascontiguousarray(rgb), area, radius, cv2.INPAINT_TELEA)
    return np.asarray(filled, dtype=np.uint8)
