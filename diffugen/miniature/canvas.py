"""Anti-aliased drawing with exact instance masks.

Knows shapes and colours, not things, scenes or captions. Everything is painted from far to near on a
supersampled canvas. Each stroke of a thing also writes the thing's number into an id map, where in the end
only its visible part remains.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

Colour = tuple[float, float, float]
Point = tuple[float, float]

SUPERSAMPLING = 2
_SHIFT = 4  # fractional bits of OpenCV's fixed-point coordinates

COLOURS: dict[str, Colour] = {
    "red": (208, 44, 40),
    "blue": (40, 86, 206),
    "green": (44, 150, 72),
    "yellow": (240, 204, 48),
    "white": (240, 240, 236),
    "black": (40, 38, 44),
    "brown": (134, 78, 38),
    "gray": (136, 138, 144),
}
"""Named colours, RGB in [0, 255]."""


def mix(colour: Colour, other: Colour, share: float) -> Colour:
    """Blend ``share`` in [0, 1] of ``other`` into ``colour``."""
    return tuple(a + (b - a) * share for a, b in zip(colour, other, strict=True))  # type: ignore[return-value]


class Canvas:
    """An RGB image and an id map of the same supersampled size, painted together.

    Args:
        size_wh: Width and height of the final image in pixels.

    Attributes:
        rgb: uint8 (H * s, W * s, 3) with s = `SUPERSAMPLING`.
        ids: uint8 (H * s, W * s): 0 is background, k the k-th thing.
        owner: The id written by strokes; 0 leaves the id map unchanged.
        light: Function from a stroke's own colour to its visible colour.
    """

    def __init__(self, size_wh: tuple[int, int]) -> None:
        self.size_wh = size_wh
        self.width, self.height = (side * SUPERSAMPLING for side in size_wh)
        self.rgb = np.zeros((self.height, self.width, 3), np.uint8)
        self.ids = np.zeros((self.height, self.width), np.uint8)
        self.owner = 0
        self.light: Callable[[Colour], Colour] = lambda colour: colour

    def polygon(self, points: Sequence[Point], colour: Colour) -> None:
        """Fill the polygon through ``points`` (x, y in supersampled pixels)."""
        fixed = np.round((np.asarray(points, np.float64) - 0.5) * (1 << _SHIFT)).astype(np.int32)
        cv2.fillPoly(self.rgb, [fixed], self.light(colour), cv2.LINE_AA, _SHIFT)
        if self.owner:
            cv2.fillPoly(self.ids, [fixed], self.owner, cv2.LINE_8, _SHIFT)

    def ellipse(self, centre: Point, radii: Point, colour: Colour) -> None:
        """Fill an upright ellipse."""
        at = tuple(round((c - 0.5) * (1 << _SHIFT)) for c in centre)
        axes = tuple(max(1, round(r * (1 << _SHIFT))) for r in radii)
        cv2.ellipse(self.rgb, at, axes, 0, 0, 360, self.light(colour), -1, cv2.LINE_AA, _SHIFT)
        if self.owner:
            cv2.ellipse(self.ids, at, axes, 0, 0, 360, self.owner, -1, cv2.LINE_8, _SHIFT)

    def line(self, start: Point, end: Point, width: float, colour: Colour) -> None:
        """Draw a straight stroke ``width`` supersampled pixels wide."""
        (x0, y0), (x1, y1) = start, end
        length = max(1e-6, float(np.hypot(x1 - x0, y1 - y0)))
        dx, dy = (y1 - y0) / length * width / 2, (x0 - x1) / length * width / 2
        self.polygon([(x0 + dx, y0 + dy), (x1 + dx, y1 + dy), (x1 - dx, y1 - dy), (x0 - dx, y0 - dy)], colour)

    def gradient(self, top: float, bottom: float, upper: Colour, lower: Colour) -> None:
        """Fill the rows from ``top`` to ``bottom`` with a vertical gradient."""
        first, last = max(0, int(top)), min(self.height, int(np.ceil(bottom)))
        if last > first:
            share = np.linspace(0, 1, last - first)[:, None]
            rows = np.array(self.light(upper)) * (1 - share) + np.array(self.light(lower)) * share
            self.rgb[first:last] = np.clip(rows, 0, 255)[:, None].astype(np.uint8)

    def haze(self, colour: Colour, share: float) -> None:
        """Blend ``share`` in [0, 1] of ``colour`` over the whole image."""
        veil = np.full_like(self.rgb, 0)
        veil[:] = colour
        cv2.addWeighted(self.rgb, 1 - share, veil, share, 0, dst=self.rgb)

    def downsampled(self, count: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Return the image, uint8 (H, W, 3), and visible masks of things 1..count, bool (count, H, W)."""
        rgb = cv2.resize(self.rgb, self.size_wh, interpolation=cv2.INTER_AREA)
        width, height = self.size_wh
        masks = np.zeros((count, height, width), bool)
        taken = np.zeros((height, width), bool)
        for k in reversed(range(count)):  # a pixel half covered by each of two things goes to the nearer one
            cover = cv2.resize(
                (self.ids == k + 1).astype(np.uint8) * 255, self.size_wh, interpolation=cv2.INTER_AREA
            )
            masks[k] = (cover >= 128) & ~taken
            taken |= masks[k]
        return rgb, masks
