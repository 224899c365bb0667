"""Cheap features of an image, to tell which images look alike. Knows pixels only."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray


def features_of(rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the features of an image, uint8 (H, W, 3): a CIELAB thumbnail of 8 by 8, float32 (192,)."""
    small = cv2.resize(rgb, (8, 8), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    return np.asarray(cv2.cvtColor(small, cv2.COLOR_RGB2LAB), dtype=np.float32).ravel()
