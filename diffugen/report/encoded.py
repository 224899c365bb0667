"""Encode the pictures of a report: each as JPEG for the page, and side by side as PNG for Markdown."""

from __future__ import annotations

import io
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from diffugen.labels.pictures import BACKGROUND
from diffugen.run.codec import rgb_to_png

RGB = NDArray[np.uint8]

HEIGHT = 200
"""Height of each picture in pixels."""

_QUALITY = 82
_GAP_PX = 6


def jpeg(rgb: RGB) -> bytes:
    """Return a picture, uint8 (H, W, 3), as the bytes of a JPEG file."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, format="JPEG", quality=_QUALITY, optimize=True)
    return buffer.getvalue()


def side_by_side(size_wh: tuple[int, int], pictures: Iterable[RGB | None]) -> bytes:
    """Return pictures of height `HEIGHT` in a row, as the bytes of a PNG file; None leaves a gap.

    Args:
        size_wh: Width and height of the image that they show.
        pictures: uint8 (`HEIGHT`, W, 3) each.
    """
    width = max(1, round(size_wh[0] * HEIGHT / size_wh[1]))
    gap = np.full((HEIGHT, _GAP_PX, 3), BACKGROUND, np.uint8)
    empty = np.full((HEIGHT, width, 3), BACKGROUND, np.uint8)
    parts = [part for picture in pictures for part in (empty if picture is None else picture, gap)]
    return rgb_to_png(np.concatenate(parts[:-1], axis=1))
