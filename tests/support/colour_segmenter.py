"""A segmenter that needs no weights, for images whose objects are of one colour each."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray


class ColourSegmenter:
    """Outlines the connected pixels that have the colour of the point.

    Attributes:
        asked: The boxes and points of each call.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = []

    def masks(
        self, rgb: NDArray[np.uint8], boxes: NDArray[np.float64], points: NDArray[np.float64]
    ) -> NDArray[np.bool_]:
        self.asked.append((boxes, points))
        found = []
        for x, y in points.astype(int):
            same = (rgb == rgb[y, x]).all(axis=2)
            _, pieces = cv2.connectedComponents(same.astype(np.uint8), connectivity=4)
            found.append(pieces == pieces[y, x])
        return np.stack(found)
