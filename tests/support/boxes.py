"""Instances on a small image, drawn as boxes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from diffugen.labels import shapes
from diffugen.records import Instances

WIDTH, HEIGHT = 40, 24
Box = tuple[int, int, int, int]
approx: Any = pytest.approx  # equal to a float, as type checkers should know


def box_mask(*boxes: Box, holes: tuple[Box, ...] = ()) -> NDArray[np.bool_]:
    """Return the union of boxes ``(x0, y0, x1, y1)``, without the holes."""
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    for x0, y0, x1, y1 in boxes:
        mask[y0:y1, x0:x1] = True
    for x0, y0, x1, y1 in holes:
        mask[y0:y1, x0:x1] = False
    return mask


def instances(
    *objects: tuple[str, Box | NDArray[np.bool_]] | tuple[str, Box | NDArray[np.bool_], float],
) -> Instances:
    """Return instances, each given by its class, its box or mask, and its score (0.5 unless given)."""
    masks = [item[1] if isinstance(item[1], np.ndarray) else box_mask(item[1]) for item in objects]
    scores = np.array([item[2] if len(item) == 3 else 0.5 for item in objects])
    return Instances(
        (WIDTH, HEIGHT), tuple(item[0] for item in objects), tuple(map(shapes.encode, masks)), scores
    )
